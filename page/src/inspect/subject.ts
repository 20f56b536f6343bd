/** Which job is looked into. */

import { signal } from "@preact/signals";
import { Away, ask, present } from "../api/client";
import type { Job, Options } from "../api/types";
import { isFinal } from "../api/types";
import { LOOK, poll } from "../state/jobs";

export const inspected = signal<Job | null>(null);

const WAIT_S = 20;

/** Draws a job's request again with more asked of it, and waits until it is final. Throws `Refusal`. */
export async function drawnAgain(job: Job, more: Options, changed: Record<string, unknown> = {}): Promise<Job> {
  const body = { ...job.request, model: job.model, mode: job.mode, label: LOOK, ...more, ...changed };
  const submitted = await ask<Job>("/v1/jobs", { method: "POST", json: body });
  void poll();
  return finished(submitted);
}

/** The job when it is final. */
export async function finished(job: Job): Promise<Job> {
  while (!isFinal(job.state)) {
    try {
      job = await ask<Job>(`/v1/jobs/${job.id}`, { headers: { Prefer: `wait=${WAIT_S}` } });
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      await present();
    }
  }
  if (job.failure) throw new Error(job.failure.detail);
  if (job.state !== "succeeded") throw new Error(`The job was ${job.state}.`);
  return job;
}
