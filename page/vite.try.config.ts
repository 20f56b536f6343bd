import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { defaultClientConditions, defineConfig, type Plugin } from "vite";
import { manifest } from "./manifest.ts";

const BUILT = "../src/undertow/export/page";
/** What the page is made of; tests/page/test_try_built.py reads the same, and needs no node for it. */
const SOURCES = ["manifest.ts", "package.json", "package-lock.json", "tsconfig.json", "try", "vite.try.config.ts"];
const RUNTIME = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";

/** The page itself, and ONNX Runtime's WebAssembly, packed. */
function beside(): Plugin {
  return {
    name: "undertow-beside",
    closeBundle() {
      copyFileSync("try/index.html", join(BUILT, "index.html"));
      writeFileSync(join(BUILT, "runtime.wasm.gz"), gzipSync(readFileSync(RUNTIME), { level: 9 }));
    },
  };
}

// The page that `undertow export --to web` writes: one script that any browser takes from a disk, without modules.
export default defineConfig({
  plugins: [beside(), manifest(BUILT, SOURCES)],
  publicDir: false,
  // ONNX Runtime without its WebAssembly as part of the script: the page has that in a file of its own.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  worker: { format: "iife" },
  build: {
    outDir: BUILT,
    emptyOutDir: true,
    target: "es2022",
    lib: { entry: "try/main.ts", formats: ["iife"], name: "undertowTry", fileName: () => "try.js", cssFileName: "try" },
  },
});
