/** Settings of pictures side by side, and pixels subtracted. */

import type { Job } from "../api/types";
import { same } from "../state/form";
import { choices } from "../state/service";

/** What differs from the defaults, flat and as text; prompt, size and seed always. */
export function settingsOf(job: Job, index: number): Record<string, string> {
  const usual = choices.value?.request ?? { prompt: "" };
  const always = new Set(["prompt", "size", "steps", "sampler", "guidance_scale"]);
  const found: Record<string, string> = { model: job.model, seed: String(job.pictures[index]?.seed ?? job.request.seed) };
  for (const [name, value] of Object.entries(job.request)) {
    if (name !== "seed" && name !== "count" && (always.has(name) || !same(value, usual[name]))) flatten(name, value, found);
  }
  found["mode"] = job.mode;
  if (job.report.sampler) found["drawn with"] = [job.report.sampler, job.report.schedule].filter(Boolean).join(", ");
  return found;
}

/** Names of settings that differ, with both values; an empty text where one has it not. */
export function changes(one: Record<string, string>, other: Record<string, string>): [string, string, string][] {
  const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
  return names.filter((name) => one[name] !== other[name]).map((name) => [name, one[name] ?? "", other[name] ?? ""]);
}

function flatten(name: string, value: unknown, found: Record<string, string>): void {
  if (name === "size" && Array.isArray(value)) found[name] = `${value[1]} × ${value[0]}`;
  else if (Array.isArray(value) && value.some((one) => typeof one === "object" && one !== null)) {
    value.forEach((one: unknown, place) => flatten(`${name} ${place + 1}`, one, found));
  } else if (Array.isArray(value)) found[name] = value.join(", ");
  else if (typeof value === "object" && value !== null) {
    const artifact = (value as { artifact?: string }).artifact;
    if (artifact) found[name] = artifact.slice(0, 12);
    else for (const [part, inner] of Object.entries(value)) if (worthSaying(part, inner)) flatten(`${name}, ${part}`, inner, found);
  } else found[name] = value === null || value === undefined ? "none" : String(value);
}

/** Of an adapter or a region, what is not as it always is. */
function worthSaying(part: string, value: unknown): boolean {
  const usual: Record<string, unknown> = { start: 0, end: 1, residency: "auto", priority: 0, control_mode: "balanced", weight: 1 };
  return value !== null && part !== "name" && !same(value, usual[part]) && !(Array.isArray(value) && value.length === 0);
}

export interface PixelChange {
  /** Share of pixels that differ at all. */
  share: number;
  /** Largest and mean difference of a channel, of 255. */
  largest: number;
  mean: number;
}

/** The difference of two pictures of one size, times `gain`, into `target`. */
export function subtract(one: ImageData, other: ImageData, target: ImageData, gain: number): PixelChange {
  let [changed, largest, sum] = [0, 0, 0];
  for (let k = 0; k < one.data.length; k += 4) {
    let any = false;
    for (let c = 0; c < 3; c++) {
      const by = Math.abs(one.data[k + c]! - other.data[k + c]!);
      target.data[k + c] = Math.min(255, by * gain);
      largest = Math.max(largest, by);
      sum += by;
      any ||= by > 0;
    }
    target.data[k + 3] = 255;
    changed += any ? 1 : 0;
  }
  const count = one.data.length / 4;
  return { share: changed / count, largest, mean: sum / (count * 3) };
}
