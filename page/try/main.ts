/** The page: a form, a picture, and what is said about it. */

import "./style.css";
import { bytesOf, readModel, unpacked } from "./files";
import type { Model } from "./model";
import { lacking } from "./simd";
import type { Answer, Asked } from "./worker";
import Worker from "./worker?worker&inline";

const element = <Kind extends HTMLElement>(id: string): Kind => document.getElementById(id) as Kind;
const form = element<HTMLFormElement>("form");
const button = element<HTMLButtonElement>("draw");
const status = element<HTMLOutputElement>("status");
const canvas = element<HTMLCanvasElement>("picture");
const field = (name: string): HTMLInputElement => form.elements.namedItem(name) as HTMLInputElement;

const MOST_SEED = 2n ** 64n - 1n;

function say(text: string): void {
  status.value = text;
}

function fill(model: Model): void {
  document.title = `${model.name}, in this browser`;
  element("model").textContent = model.name;
  field("prompt").value = model.examples[0] ?? "";
  field("steps").value = String(model.steps);
  field("guidance").value = String(model.guidance);
  field("steps").max = String(model.grids[0]!.length);
  field("sampler").append(...Object.keys(model.samplers).map((name) => new Option(name)));
  element("examples").append(...model.examples.map((text) => new Option(text)));
  [canvas.width, canvas.height] = model.size;
  canvas.style.aspectRatio = model.size.join(" / ");
}

function seedOf(text: string): bigint | undefined {
  const found = /^\d+$/.test(text.trim()) ? BigInt(text.trim()) : -1n;
  return found >= 0n && found <= MOST_SEED ? found : undefined;
}

/** Draws what the form says. */
function draw(worker: Worker, model: Model): void {
  const seed = seedOf(field("seed").value);
  if (seed === undefined) {
    say(`Seed is ${field("seed").value || "empty"}; a whole number from 0 to ${MOST_SEED} is expected.`);
    return;
  }
  const [steps, guidance] = [field("steps").valueAsNumber, field("guidance").valueAsNumber];
  const request = { prompt: field("prompt").value, negative: field("negative").value, sampler: field("sampler").value };
  const begun = performance.now();
  button.disabled = true;
  say("Reading the prompt");
  worker.onmessage = ({ data }: MessageEvent<Answer>) => {
    if (data.kind === "step") {
      say(`Step ${data.done} of ${steps}`);
      return;
    }
    button.disabled = false;
    if (data.kind === "drawn") {
      canvas.getContext("2d")!.putImageData(new ImageData(data.pixels, ...model.size), 0, 0);
      canvas.setAttribute("aria-label", request.prompt);
      canvas.dataset.drawn = String(Number(canvas.dataset.drawn ?? 0) + 1);
      const seconds = ((performance.now() - begun) / 1000).toFixed(2);
      say([`Drawn in ${seconds} s`, ...data.notes].join("; "));
    } else if (data.kind === "failed") say(`Not drawn: ${data.why}`);
  };
  worker.postMessage({ kind: "draw", request: { ...request, steps, guidance, seed } } satisfies Asked);
}

async function open(): Promise<void> {
  const missing = lacking();
  if (missing) {
    say(`${missing}, which drawing needs. Chromium 91, Firefox 113 and Safari 16.4 have it, and all that came later.`);
    return;
  }
  say("Reading the model");
  const model = await readModel();
  fill(model);
  const [runtime, text_encoder, unet, vae_decoder] = await Promise.all([
    bytesOf("runtime").then(unpacked),
    bytesOf("text_encoder"),
    bytesOf("unet"),
    bytesOf("vae_decoder"),
  ]);
  const worker = new Worker();
  worker.onmessage = ({ data }: MessageEvent<Answer>) => {
    if (data.kind === "failed") {
      say(`The model cannot run here: ${data.why}`);
      return;
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      draw(worker, model);
    });
    button.disabled = false;
    say("Ready");
  };
  const files = { runtime, text_encoder, unet, vae_decoder };
  worker.postMessage({ kind: "load", model, files } satisfies Asked, Object.values(files));
}

open().catch((error: unknown) => say(`The page cannot start: ${error instanceof Error ? error.message : error}`));
