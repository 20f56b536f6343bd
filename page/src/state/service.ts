/** What the service has: models, adapters, what a request may say. Asked at the start, and when it comes back. */

import { computed, signal } from "@preact/signals";
import { ask } from "../api/client";
import type { AdapterEntry, Choices, Model } from "../api/types";

export const models = signal<Model[]>([]);
export const adapters = signal<AdapterEntry[]>([]);
export const skipped = signal<{ name: string; reason: string }[]>([]);
export const choices = signal<Choices | null>(null);

export const scopes = computed(() => new Set(choices.value?.key.scopes ?? []));

export function may(scope: string): boolean {
  return scopes.value.has(scope) || scopes.value.has("admin");
}

export async function loadService(): Promise<void> {
  const found = await ask<Choices>("/v1/choices"); // alone: without a key one refusal is enough
  const [models_, listed] = await Promise.all([
    ask<{ data: Model[] }>("/v1/models"),
    ask<{ adapters: AdapterEntry[]; skipped: { name: string; reason: string }[] }>("/v1/adapters"),
  ]);
  choices.value = found;
  models.value = models_.data;
  adapters.value = listed.adapters;
  skipped.value = listed.skipped;
}

export async function loadAdapters(): Promise<void> {
  const listed = await ask<{ adapters: AdapterEntry[]; skipped: { name: string; reason: string }[] }>("/v1/adapters");
  adapters.value = listed.adapters;
  skipped.value = listed.skipped;
}

/** The model that a request draws with; the service's first where none is named. */
export function modelNamed(name: string | null | undefined): Model | undefined {
  return models.value.find((one) => one.id === name) ?? models.value.find((one) => one.default) ?? models.value[0];
}
