/** Samplers as undertow has them: generators that yield the x and level they want an estimate of, and receive it. */

import type { Level } from "./model";
import type { Noise } from "./random";

export interface Call {
  x: Float32Array;
  level: Level;
}
export type Sampler = Generator<Call, Float32Array, Float32Array>;
type Make = (x: Float32Array, levels: Level[], noise: Noise) => Sampler;

/** A sum of arrays, each by its factor. */
export function mixed(...terms: [number, Float32Array][]): Float32Array {
  const found = new Float32Array(terms[0]![1].length);
  for (let i = 0; i < found.length; i++) {
    let sum = 0;
    for (const [factor, values] of terms) sum += factor * values[i]!;
    found[i] = sum;
  }
  return found;
}

/** The levels, each with the sigma that follows; the last step goes to 0. */
function* steps(levels: Level[]): Generator<{ level: Level; sigma: number; target: number }> {
  for (const [index, level] of levels.entries()) yield { level, sigma: level[0], target: levels[index + 1]?.[0] ?? 0 };
}

/** sampling/dpm_solver.py, `dpmpp_2m` (arXiv:2211.01095, algorithm 2). */
function* dpmpp2m(x: Float32Array, levels: Level[]): Sampler {
  let previous: Float32Array | undefined;
  let lastH = 0;
  for (const { level, sigma, target } of steps(levels)) {
    const denoised = yield { x, level };
    let estimate = denoised;
    if (target > 0) {
      const h = Math.log(sigma / target);
      if (previous) {
        const r = lastH / h;
        estimate = mixed([1 + 1 / (2 * r), denoised], [-1 / (2 * r), previous]);
      }
      lastH = h;
    }
    x = mixed([target / sigma, x], [1 - target / sigma, estimate]);
    previous = denoised;
  }
  return x;
}

/** sampling/euler.py, `euler` (arXiv:2206.00364, algorithm 2 without its correction). */
function* euler(x: Float32Array, levels: Level[]): Sampler {
  for (const { level, sigma, target } of steps(levels)) {
    const denoised = yield { x, level };
    x = mixed([1 - target / sigma, denoised], [target / sigma, x]);
  }
  return x;
}

/** sampling/euler.py, `euler_a` at eta 1: below each target, then fresh noise up to it. */
function* eulerAncestral(x: Float32Array, levels: Level[], noise: Noise): Sampler {
  for (const { level, sigma, target } of steps(levels)) {
    const denoised = yield { x, level };
    const up = Math.min(target, Math.sqrt((target ** 2 * (sigma ** 2 - target ** 2)) / sigma ** 2));
    const down = Math.sqrt(target ** 2 - up ** 2);
    x = mixed([1 - down / sigma, denoised], [down / sigma, x]);
    if (up > 0) x = mixed([1, x], [up, noise.draw(x.length)]);
  }
  return x;
}

/** sampling/consistency.py, `lcm`: the estimate, and fresh noise at the next level. */
function* lcm(x: Float32Array, levels: Level[], noise: Noise): Sampler {
  for (const { level, target } of steps(levels)) {
    const denoised = yield { x, level };
    x = target > 0 ? mixed([1, denoised], [target, noise.draw(x.length)]) : denoised;
  }
  return x;
}

export const SAMPLERS: Record<string, Make> = { dpmpp_2m: dpmpp2m, euler, euler_a: eulerAncestral, lcm };
