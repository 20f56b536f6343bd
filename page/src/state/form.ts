/** The request that is being written. Every field of a request is kept, also those that no control shows. */

import { effect, signal } from "@preact/signals";
import type { Artifact, Job, Options, Request } from "../api/types";
import { choices, modelNamed } from "./service";

const KEPT = "undertow-form";

export interface Form {
  request: Request;
  options: Options;
  /** Whether the seed is sent; the service chooses one otherwise. */
  keepSeed: boolean;
}

const EMPTY: Form = { request: { prompt: "" }, options: {}, keepSeed: false };

export const form = signal<Form>(kept());

/** Fields that have controls; others are listed by name where they differ from what happens without them. */
const SHOWN = new Set([
  "prompt", "negative_prompt", "dialect", "seed", "count", "steps", "sampler", "schedule", "guidance_scale",
  "guidance_method", "size", "image", "mask", "strength", "regions", "regions_by", "adapters", "seamless", "clip_skip",
]);

effect(() => localStorage.setItem(KEPT, JSON.stringify(form.value)));

export function set<K extends keyof Request>(name: K, value: Request[K]): void {
  form.value = { ...form.value, request: { ...form.value.request, [name]: value } };
}

export function setOption<K extends keyof Options>(name: K, value: Options[K]): void {
  form.value = { ...form.value, options: { ...form.value.options, [name]: value } };
}

export function setSeed(seed: number | null): void {
  const request = { ...form.value.request };
  if (seed === null) delete request.seed;
  else request.seed = seed;
  form.value = { ...form.value, request, keepSeed: seed !== null };
}

/** What happens without a field: as the model suggests, or else the service's default. */
export function usualOf(model: string | null | undefined): Request {
  return { prompt: "", ...choices.value?.request, ...modelNamed(model)?.suggested };
}

/** What a field is, or will be without it. */
export function get<T>(name: keyof Request, otherwise: T): T {
  const value = form.value.request[name] ?? usualOf(form.value.options.model)[name];
  return (value ?? otherwise) as T;
}

/** Fields that were set otherwise than the model suggests. */
export function againstModel(): string[] {
  const suggested = modelNamed(form.value.options.model)?.suggested ?? {};
  return Object.keys(suggested).filter((name) => !same(get(name, null), suggested[name]));
}

/** Height and width that will be drawn. */
export function sizeOf(): [number, number] {
  const own = modelNamed(form.value.options.model)?.size ?? 512;
  return form.value.request.size ?? [own, own];
}

/** The body for POST /v1/jobs: what differs from what happens without it. */
export function bodyOf(more: Options = {}): Record<string, unknown> {
  const usual = usualOf(form.value.options.model);
  const body: Record<string, unknown> = { prompt: form.value.request.prompt };
  for (const [name, value] of Object.entries(form.value.request)) {
    if (name !== "seed" && !same(value, usual[name])) body[name] = value;
  }
  if (form.value.keepSeed && form.value.request.seed !== undefined) body["seed"] = form.value.request.seed;
  for (const [name, value] of Object.entries({ ...form.value.options, ...more })) {
    if (value !== undefined && value !== null && value !== "") body[name] = value;
  }
  return body;
}

/** Fields that models may suggest: left as they were suggested, they follow when another model is chosen. */
const OF_MODEL = ["steps", "guidance_scale"] as const;

/** Every setting of a job, with the seed of the picture that was looked at. */
export function restore(job: Job, picture = 0): void {
  const request = structuredClone(job.request);
  for (const name of ["image", "mask", "depth"] as const) request[name] = bare(request[name] as Artifact | null);
  if (picture > 0) {
    request.seed = job.pictures[picture]?.seed ?? request.seed;
    request.count = 1;
  }
  for (const name of OF_MODEL) if (same(request[name], usualOf(job.model)[name])) delete request[name];
  const format = job.pictures[0]?.media_type.replace("image/", "");
  form.value = { request, options: { model: job.model, mode: job.mode, format }, keepSeed: true };
}

export function clearForm(): void {
  form.value = { ...EMPTY, options: { model: form.value.options.model } };
}

/** Fields that act although no control shows them. */
export function hiddenFields(): string[] {
  if (!choices.value) return [];
  const usual = usualOf(form.value.options.model);
  return Object.entries(form.value.request)
    .filter(([name, value]) => !SHOWN.has(name) && !same(value, usual[name]))
    .map(([name]) => name);
}

export function unset(...names: string[]): void {
  const request = { ...form.value.request };
  for (const name of names) delete request[name];
  form.value = { ...form.value, request };
}

export function same(one: unknown, other: unknown): boolean {
  return JSON.stringify(one ?? null) === JSON.stringify(other ?? null);
}

function bare(given: Artifact | null | undefined): Artifact | null {
  return given ? { artifact: given.artifact } : null;
}

function kept(): Form {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? "null") as Form | null;
    return found && typeof found.request?.prompt === "string" ? found : EMPTY;
  } catch {
    return EMPTY;
  }
}
