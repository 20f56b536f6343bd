import { defineConfig } from "vite";

// The built files are committed and shipped in the package: one script, one style sheet, no map, no comments.
export default defineConfig({
  base: "/",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../src/undertow/serving/page",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: true,
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8188", "/metrics": "http://127.0.0.1:8188", "/health": "http://127.0.0.1:8188" } },
});
