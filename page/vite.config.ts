import { defineConfig } from "vite";
import { manifest } from "./manifest.ts";

const BUILT = "../src/undertow/serving/page";
/** What the page is made of; tests/page/test_built.py reads the same, and needs no node for it. */
const SOURCES = ["index.html", "manifest.ts", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

// The built files are committed and shipped in the package: one script and one style sheet.
export default defineConfig({
  plugins: [manifest(BUILT, SOURCES)],
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: { outDir: BUILT, emptyOutDir: true, target: "es2022", modulePreload: false, assetsInlineLimit: 0 },
  server: { proxy: Object.fromEntries(["/v1", "/metrics", "/health", "/docs"].map((path) => [path, "http://127.0.0.1:8188"])) },
});
