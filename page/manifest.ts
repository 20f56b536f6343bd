import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Plugin } from "vite";

const sha256 = (content: string | Buffer): string => createHash("sha256").update(content).digest("hex");

function files(path: string): string[] {
  if (path.includes(".")) return [path];
  return readdirSync(path).sort().flatMap((name) => files(`${path}/${name}`));
}

/** Writes beside the built files of which sources they were made, so that stale ones are noticed. */
export function manifest(built: string, sources: string[]): Plugin {
  return {
    name: "undertow-manifest",
    closeBundle() {
      const read = sources.flatMap(files).sort().map((path) => `${path} ${sha256(readFileSync(path))}\n`);
      const names = readdirSync(built, { recursive: true, encoding: "utf8" }).filter((name) => name.includes("."));
      const made = Object.fromEntries(
        names.filter((name) => name !== "built.json").sort().map((name) => [name, sha256(readFileSync(join(built, name)))]),
      );
      writeFileSync(join(built, "built.json"), JSON.stringify({ sources: sha256(read.join("")), files: made }, null, 2) + "\n");
    },
  };
}
