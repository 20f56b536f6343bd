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

/** What a field is, or will be without it. */
export function get<T>(name: keyof Request, usual: T): T {
  const value = form.value.request[name] ?? choices.value?.request[name];
  return (value ?? usual) as T;
}

/** Height and width that will be drawn. */
export function sizeOf(): [number, number] {
  const own = modelNamed(form.value.options.model)?.size ?? 512;
  return form.value.request.size ?? [own, own];
}

/** The body for POST /v1/jobs: what differs from the defaults. */
export function bodyOf(more: Options = {}): Record<string, unknown> {
  const usual = choices.value?.request ?? { prompt: "" };
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

/** Every setting of a job, with the seed of the picture that was looked at. */
export function restore(job: Job, picture = 0): void {
  const request = structuredClone(job.request);
  for (const name of ["image", "mask", "depth"] as const) request[name] = bare(request[name] as Artifact | null);
  if (picture > 0) {
    request.seed = job.pictures[picture]?.seed ?? request.seed;
    request.count = 1;
  }
  const format = job.pictures[0]?.media_type.replace("image/", "");
  form.value = { request, options: { model: job.model, mode: job.mode, format }, keepSeed: true };
}

export function clearForm(): void {
  form.value = { ...EMPTY, options: { model: form.value.options.model } };
}

/** Fields that act although no control shows them. */
export function hiddenFields(): string[] {
  const usual = choices.value?.request;
  if (!usual) return [];
  return Object.entries(form.value.request)
    .filter(([name, value]) => !SHOWN.has(name) && !same(value, usual[name]))
    .map(([name]) => name);
}

export function unset(name: string): void {
  const request = { ...form.value.request };
  delete request[name];
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
