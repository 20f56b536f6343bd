/** Requests to the service: with the key where there is one, refusals as errors, and what happens while it is away. */

import { signal } from "@preact/signals";
import type { Problem } from "./types";

const KEPT = "undertow-key";
const AGAIN_MS = 1000;

/** The API key of this tab; empty on a service without keys. */
export const key = signal(sessionStorage.getItem(KEPT) ?? "");
/** Why a key is needed, as the service says it; null while it takes us. */
export const locked = signal<string | null>(null);
/** Whether the service does not answer. */
export const away = signal(false);
/** Counts how often the service came back, so that what is shown can be asked again. */
export const returns = signal(0);

/** The service refused a request, and says why. */
export class Refusal extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
  }
}

/** The service did not answer. */
export class Away extends Error {
  constructor() {
    super("The service does not answer.");
  }
}

export interface Asked {
  method?: string;
  json?: unknown;
  body?: Blob;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export function setKey(secret: string): void {
  key.value = secret;
  if (secret) sessionStorage.setItem(KEPT, secret);
  else sessionStorage.removeItem(KEPT);
  locked.value = null;
  returns.value += 1;
}

/** The answer as it is. Throws `Refusal` and `Away`. */
export async function send(path: string, asked: Asked = {}): Promise<Response> {
  const headers: Record<string, string> = { ...asked.headers };
  if (key.value) headers["Authorization"] = `Bearer ${key.value}`;
  if (asked.json !== undefined) headers["Content-Type"] = "application/json";
  const body = asked.json === undefined ? asked.body : JSON.stringify(asked.json);
  let answer: Response;
  try {
    answer = await fetch(path, { method: asked.method ?? "GET", headers, body, signal: asked.signal });
  } catch (error) {
    if (asked.signal?.aborted) throw error;
    leave();
    throw new Away();
  }
  if (answer.ok) return answer;
  const problem = await problemOf(answer);
  if (answer.status === 401) locked.value = problem.detail;
  throw new Refusal(problem);
}

/** The JSON of the answer. */
export async function ask<T>(path: string, asked: Asked = {}): Promise<T> {
  return (await send(path, asked)).json() as Promise<T>;
}

/** Resolves when the service answers, at once while it does. */
export function present(): Promise<void> {
  if (!away.value) return Promise.resolve();
  return new Promise((resolve) => {
    const stop = away.subscribe((gone) => {
      if (gone) return;
      resolve();
      queueMicrotask(() => stop());
    });
  });
}

/** The sentence of an error for people. */
export function sentence(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function problemOf(answer: Response): Promise<Problem> {
  const text = await answer.text();
  try {
    return JSON.parse(text) as Problem;
  } catch {
    const detail = `The service answered ${answer.status} ${answer.statusText}.`;
    return { title: answer.statusText, status: answer.status, code: "unknown", detail };
  }
}

function leave(): void {
  if (away.value) return;
  away.value = true;
  const timer = setInterval(async () => {
    try {
      const answer = await fetch("/health/live", { cache: "no-store" });
      if (!answer.ok) return;
      clearInterval(timer);
      away.value = false;
      returns.value += 1;
    } catch {
      // still away
    }
  }, AGAIN_MS);
}
