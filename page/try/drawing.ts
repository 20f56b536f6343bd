/** A prompt to pixels: the engine's loop, for one picture. */

import type { InferenceSession, Tensor } from "onnxruntime-web/wasm";
import type { Level, Model } from "./model";
import { Noise } from "./random";
import { SAMPLERS, mixed } from "./sampling";
import { Tokenizer } from "./tokenizer";

export interface Request {
  prompt: string;
  negative: string;
  steps: number;
  sampler: string;
  guidance: number;
  seed: bigint;
}

export interface Drawn {
  /** Red, green, blue and opacity of each pixel. */
  pixels: Uint8ClampedArray;
  notes: string[];
}

/** The runtime: a session of each network, and how it makes tensors. */
export interface Runtime {
  text: InferenceSession;
  unet: InferenceSession;
  decoder: InferenceSession;
  tensor: (type: "float32" | "int64", data: Float32Array | BigInt64Array, shape: readonly number[]) => Tensor;
}

/** What changes only the look of an emoji, as in emoji_names.py. */
const MODIFIERS = /[\ufe0e\ufe0f\u200d\u20e3\u{1f3fb}-\u{1f3ff}\u{e0020}-\u{e007f}]/gu;

export class Drawer {
  private readonly tokenizer: Tokenizer;
  private readonly contexts = new Map<string, Tensor>();

  constructor(
    private readonly model: Model,
    private readonly runtime: Runtime,
  ) {
    this.tokenizer = new Tokenizer(model.tokenizer);
  }

  /** Draws a picture. stepped: called after each step. */
  async draw(request: Request, stepped: (done: number) => void): Promise<Drawn> {
    const { model } = this;
    const { algorithm, table } = model.samplers[request.sampler]!;
    const grid = model.grids[table]![request.steps - 1]!;
    const noise = new Noise(request.seed);
    const [channels, height, width] = model.latents;
    const start = mixed([grid.start, noise.draw(channels * height * width)]);
    const conditional = await this.context(request.prompt);
    const unconditional = request.guidance === 1 ? undefined : await this.context(request.negative);
    const sampler = SAMPLERS[algorithm]!(start, grid.levels, noise);
    let answer = sampler.next();
    for (let done = 1; !answer.done; done++) {
      const { x, level } = answer.value;
      let estimate = await this.denoised(x, level, conditional);
      if (unconditional) {
        const without = await this.denoised(x, level, unconditional);
        estimate = mixed([request.guidance, estimate], [1 - request.guidance, without]);
      }
      stepped(done);
      answer = sampler.next(estimate);
    }
    return { pixels: await this.decoded(answer.value), notes: this.notes(request) };
  }

  private async denoised(x: Float32Array, level: Level, context: Tensor): Promise<Float32Array> {
    const { tensor, unet } = this.runtime;
    const [, timestep, input, skip, output] = level;
    const found = await unet.run({
      latents: tensor("float32", mixed([input, x]), [1, ...this.model.latents]),
      timesteps: tensor("float32", new Float32Array([timestep]), [1]),
      context,
    });
    return mixed([skip, x], [output, found.prediction!.data as Float32Array]);
  }

  private async context(text: string): Promise<Tensor> {
    const known = this.contexts.get(text);
    if (known) return known;
    const { ids } = this.tokenizer.chunk(this.spelled(text), this.model.positions);
    const given = this.runtime.tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const context = (await this.runtime.text.run({ ids: given })).context!;
    this.contexts.set(text, context);
    return context;
  }

  private async decoded(latents: Float32Array): Promise<Uint8ClampedArray> {
    const given = this.runtime.tensor("float32", latents, [1, ...this.model.latents]);
    const planes = (await this.runtime.decoder.run({ latents: given })).pixels!.data as Float32Array;
    const count = planes.length / 3;
    const pixels = new Uint8ClampedArray(4 * count).fill(255);
    for (let i = 0; i < count; i++) {
      for (let color = 0; color < 3; color++) pixels[4 * i + color] = (planes[color * count + i]! / 2 + 0.5) * 255;
    }
    return pixels;
  }

  /** With names for emoji, of which a small model's tokenizer knows none. */
  private spelled(text: string): string {
    const { characters } = this.model;
    const parts = Array.from(text, (character) => (character in characters ? ` ${characters[character]} ` : character));
    return parts.length && parts.join("") !== text ? parts.join("").replace(MODIFIERS, "") : text;
  }

  private notes({ prompt, negative }: Request): string[] {
    const known = new Set(this.model.words);
    const texts = [prompt, negative].map((text) => this.spelled(text));
    const said = texts.flatMap((text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []);
    const unknown = known.size ? [...new Set(said)].filter((word) => !known.has(word)) : [];
    const cut = texts.map((text) => this.tokenizer.chunk(text, this.model.positions).cut).filter(Boolean);
    return [
      ...cut.map((text) => `too long, cut off: ${text}`),
      ...(unknown.length ? [`never learned by this model: ${unknown.join(", ")}`] : []),
    ];
  }
}
