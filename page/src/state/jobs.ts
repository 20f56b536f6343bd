/** Jobs: those that wait or run, those that are done, and the one that is looked at, followed by its events. */

import { computed, effect, signal } from "@preact/signals";
import { Away, Refusal, ask, away, locked, present, returns } from "../api/client";
import { follow, type Event } from "../api/events";
import type { Job, Options } from "../api/types";
import { isFinal } from "../api/types";
import { bodyOf } from "./form";
import { say } from "./notices";
import { view } from "./route";
import { choices } from "./service";

/** Drawn while typing; not worth a place in the history. */
export const DRAFT = "studio: while typing";
/** Only looks into another job; its pictures are there already. */
export const LOOK = "studio: look inside";

/** Whether a job's pictures are not worth a place beside others. */
export function aside(job: Job): boolean {
  return job.label === DRAFT || job.label === LOOK;
}

const BUSY_MS = 1000;
const IDLE_MS = 5000;
const PAGE = 60;
const SHOWN = "undertow-shown";
/** Jobs that are followed at once; browsers open six connections to a service, and others are needed. */
const FOLLOWED = 3;

export const active = signal<Job[]>([]);
export const done = signal<Job[]>([]);
export const more = signal<string | null>(null);
/** The job on the stage. */
export const shown = signal<Job | null>(null);
/** The newest preview of each job that is followed, as a URL. */
export const previews = signal<ReadonlyMap<string, string>>(new Map());

/** Waiting and running jobs in the order in which the service expects to end them. */
export const queue = computed(() =>
  [...active.value].sort((one, other) => {
    if (one.state !== other.state) return one.state === "running" ? -1 : 1;
    return rank(one) - rank(other);
  }),
);

/** A step of priority is worth a minute of waiting. */
const PRIORITY_S = 60;
const MOST = 10;

function rank(job: Job): number {
  return job.submitted_at - PRIORITY_S * job.priority;
}

const following = new Map<string, AbortController>();

/** Shows a job on the stage, and follows it until it is final. */
export function look(job: Job): void {
  shown.value = job;
  sessionStorage.setItem(SHOWN, job.id);
  attend(job);
}

/** Hears of a job's steps and previews until it is final. */
function attend(job: Job): void {
  if (isFinal(job.state) || following.has(job.id)) return;
  while (following.size >= FOLLOWED) {
    const [oldest] = [...following.keys()].filter((id) => id !== shown.value?.id);
    if (oldest === undefined) break;
    leave(oldest);
  }
  const control = new AbortController();
  following.set(job.id, control);
  const heard = (event: Event) => {
    if (event.kind === "preview") keepPreview(job.id, event.data as { media_type: string; base64: string });
    else apply(job.id, event);
  };
  void follow(job.id, heard, control.signal).then(() => {
    leave(job.id);
    return refresh(job.id);
  });
}

function leave(id: string): void {
  following.get(id)?.abort();
  following.delete(id);
}

function keepPreview(id: string, preview: { media_type: string; base64: string }): void {
  const next = new Map([...previews.value].slice(-FOLLOWED * 2));
  next.set(id, `data:${preview.media_type};base64,${preview.base64}`);
  previews.value = next;
}

function apply(id: string, event: Event): void {
  if (shown.value?.id === id) shown.value = changed(shown.value, event.kind, event.data);
  active.value = active.value.map((job) => (job.id === id ? changed(job, event.kind, event.data) : job));
}

/** waitS: the job is answered when it is done, or after so many seconds; nobody else is told of it meanwhile. */
export async function submit(more: Options = {}, waitS = 0): Promise<Job | null> {
  const body = bodyOf(more);
  const headers = { "Idempotency-Key": crypto.randomUUID(), ...(waitS && { Prefer: `wait=${waitS}` }) };
  for (;;) {
    try {
      const job = await ask<Job>("/v1/jobs", { method: "POST", json: body, headers });
      if (!waitS) void poll();
      return job;
    } catch (error) {
      if (error instanceof Away) {
        await present(); // the same key again: it is one job, however often it is sent
        continue;
      }
      if (error instanceof Refusal && error.problem.status !== 401) say(error.problem.detail, "refused");
      return null;
    }
  }
}

export async function cancel(job: Job): Promise<void> {
  try {
    const now = await ask<Job>(`/v1/jobs/${job.id}/cancel`, { method: "POST" });
    if (shown.value?.id === job.id) shown.value = now;
  } catch (error) {
    if (error instanceof Refusal) say(error.problem.detail, "refused");
  }
  await poll();
}

/** Gives a job another place among those that wait, counted from 0, by the fewest and smallest priorities that do. */
export async function move(job: Job, place: number): Promise<void> {
  const wanted = queue.value.filter((one) => one.state === "queued" && one.id !== job.id);
  wanted.splice(place, 0, job);
  for (const [one, priority] of priorities(wanted, job)) await prioritize(one, priority);
  await poll();
}

/** Jobs whose priority must change so that all are drawn in this order. moved: may lose a priority that it has. */
function priorities(wanted: Job[], moved: Job): [Job, number][] {
  const found: [Job, number][] = [];
  let behind: { came: number; priority: number } | null = null;
  for (const job of wanted.toReversed()) {
    const usual = job.id === moved.id ? Math.min(0, job.priority) : job.priority;
    const least: number = behind ? Math.floor(behind.priority + (job.submitted_at - behind.came) / PRIORITY_S) + 1 : usual;
    const priority: number = behind ? Math.max(usual, least) : least;
    if (Math.abs(priority) > MOST) {
      say(`That place needs a priority beyond ${MOST}, which is the highest.`);
      return [];
    }
    if (priority !== job.priority) found.push([job, priority]);
    behind = { came: job.submitted_at, priority };
  }
  return found;
}

async function prioritize(job: Job, priority: number): Promise<void> {
  try {
    await ask<Job>(`/v1/jobs/${job.id}`, { method: "PATCH", json: { priority } });
  } catch (error) {
    if (error instanceof Refusal && error.problem.code !== "job_not_waiting") say(error.problem.detail, "refused");
  }
}

/** Reads the queue; what has left it is done. */
export async function poll(): Promise<void> {
  const found = await ask<{ jobs: Job[] }>("/v1/jobs?state=queued&state=running&limit=200").catch(() => null);
  if (!found) return;
  const ids = new Set(found.jobs.map((job) => job.id));
  const left = active.value.some((job) => !ids.has(job.id));
  active.value = found.jobs.filter((job) => job.label !== DRAFT);
  for (const job of queue.value.filter((one) => one.state === "running").slice(0, FOLLOWED - 1)) attend(job);
  const current = shown.value;
  if (current && !isFinal(current.state) && !following.has(current.id)) void refresh(current.id);
  if (left) await loadDone();
}

export async function loadDone(): Promise<void> {
  const states = "state=succeeded&state=failed&state=canceled&state=expired";
  const found = await ask<{ jobs: Job[]; next: string | null }>(`/v1/jobs?${states}&limit=${PAGE}`).catch(() => null);
  if (!found) return;
  const ids = new Set(found.jobs.map((job) => job.id));
  const oldest = found.jobs.at(-1)?.submitted_at ?? 0;
  done.value = [...found.jobs, ...done.value.filter((job) => !ids.has(job.id) && job.submitted_at < oldest)];
  more.value ??= found.next;
}

export async function loadMore(): Promise<void> {
  if (!more.value) return;
  const found = await ask<{ jobs: Job[]; next: string | null }>(more.value).catch(() => null);
  if (!found) return;
  done.value = [...done.value, ...found.jobs];
  more.value = found.next;
}

/** Follows the queue while the page is open; takes up the job that was on the stage before a reload. */
export async function begin(): Promise<void> {
  await Promise.all([poll(), loadDone()]);
  const kept = sessionStorage.getItem(SHOWN);
  const last = active.value[0] ?? done.value.find((job) => job.pictures.length > 0 && !aside(job));
  if (!shown.value && kept) await ask<Job>(`/v1/jobs/${kept}`).then(look, () => undefined);
  if (!shown.value && last) look(last);
}

export function keepPolling(): void {
  let timer = 0;
  const again = async () => {
    clearTimeout(timer);
    if (!document.hidden && !away.value && choices.value !== null && locked.value === null) await poll();
    const busy = active.value.length > 0 || view.value === "queue";
    timer = window.setTimeout(again, busy ? BUSY_MS : IDLE_MS);
  };
  void again();
  document.addEventListener("visibilitychange", () => void again());
  effect(() => {
    if (returns.value > 0) void again();
  });
}

/** What became of a job that was followed. */
async function refresh(id: string): Promise<void> {
  for (;;) {
    try {
      const job = await ask<Job>(`/v1/jobs/${id}`);
      if (shown.value?.id === id) look(job);
      if (isFinal(job.state) && job.label !== DRAFT) await Promise.all([poll(), loadDone()]);
      return;
    } catch (error) {
      if (!(error instanceof Away)) return;
      await present();
    }
  }
}

/** A job after one of its events. */
function changed(job: Job, kind: string, data: Record<string, unknown>): Job {
  const now = { ...job };
  if (kind === "started") now.state = "running";
  if (kind === "requeued") now.state = "queued";
  if (typeof data["finish_at"] === "number") now.finish_at = data["finish_at"];
  if (typeof data["cancel_requested"] === "boolean") now.cancel_requested = data["cancel_requested"];
  if (typeof data["step"] === "number") {
    now.state = "running";
    now.progress = { ...job.progress, ...(data as unknown as Job["progress"]) };
  }
  return now;
}
