/** Runs the networks beside the page, so that the page answers while they compute. */

import * as ort from "onnxruntime-web/wasm";
import glue from "../node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.mjs?raw";
import { Drawer, type Request, type Runtime } from "./drawing";
import type { Model } from "./model";

export interface Files {
  runtime: ArrayBuffer;
  text_encoder: ArrayBuffer;
  unet: ArrayBuffer;
  vae_decoder: ArrayBuffer;
}
export type Asked = { kind: "load"; model: Model; files: Files } | { kind: "draw"; request: Request };
export type Answer =
  | { kind: "ready" }
  | { kind: "step"; done: number }
  | { kind: "drawn"; pixels: Uint8ClampedArray<ArrayBuffer>; notes: string[] }
  | { kind: "failed"; why: string };

let drawer: Drawer | undefined;

/** "all" adds what depends on the processor, and gained nothing that could be measured. */
const OPTIONS: ort.InferenceSession.SessionOptions = { executionProviders: ["wasm"], graphOptimizationLevel: "extended" };

async function load(model: Model, files: Files): Promise<Answer> {
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.wasmBinary = files.runtime;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([glue], { type: "text/javascript" })) };
  const session = (file: ArrayBuffer) => ort.InferenceSession.create(new Uint8Array(file), OPTIONS);
  const runtime: Runtime = {
    text: await session(files.text_encoder),
    unet: await session(files.unet),
    decoder: await session(files.vae_decoder),
    tensor: (type, data, shape) => new ort.Tensor(type as "float32", data as Float32Array, shape),
  };
  drawer = new Drawer(model, runtime);
  return { kind: "ready" };
}

async function draw(request: Request): Promise<Answer> {
  const { pixels, notes } = await drawer!.draw(request, (done) => answer({ kind: "step", done }));
  return { kind: "drawn", pixels: pixels as Uint8ClampedArray<ArrayBuffer>, notes };
}

function answer(message: Answer): void {
  postMessage(message);
}

onmessage = async ({ data }: MessageEvent<Asked>) => {
  try {
    answer(data.kind === "load" ? await load(data.model, data.files) : await draw(data.request));
  } catch (error) {
    answer({ kind: "failed", why: error instanceof Error ? error.message : String(error) });
  }
};
