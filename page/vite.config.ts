import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig, type Plugin } from "vite";

const BUILT = "../src/undertow/serving/page";
/** What the page is made of; tests/page/test_built.py reads the same, and needs no node for it. */
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

const sha256 = (content: string | Buffer): string => createHash("sha256").update(content).digest("hex");

function files(path: string): string[] {
  if (path.includes(".")) return [path];
  return readdirSync(path).sort().flatMap((name) => files(`${path}/${name}`));
}

/** Writes beside the built files of which sources they were made, so that stale ones are noticed. */
function manifest(): Plugin {
  return {
    name: "undertow-manifest",
    closeBundle() {
      const sources = SOURCES.flatMap(files).sort().map((path) => `${path} ${sha256(readFileSync(path))}\n`);
      const names = ["index.html", ...readdirSync(join(BUILT, "assets")).sort().map((name) => `assets/${name}`)];
      const built = Object.fromEntries(names.map((name) => [name, sha256(readFileSync(join(BUILT, name)))]));
      writeFileSync(join(BUILT, "built.json"), JSON.stringify({ sources: sha256(sources.join("")), files: built }, null, 2) + "\n");
    },
  };
}

// The built files are committed and shipped in the package: one script and one style sheet.
export default defineConfig({
  plugins: [manifest()],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: { outDir: BUILT, emptyOutDir: true, target: "es2022", modulePreload: false, assetsInlineLimit: 0 },
  server: { proxy: Object.fromEntries(["/v1", "/metrics", "/health", "/docs"].map((path) => [path, "http://127.0.0.1:8188"])) },
});
