/** What was promised when a job was accepted, against when it was done: read from the first event of each job. */

import { send } from "../api/client";
import type { Job } from "../api/types";

export interface Promise_ {
  job: Job;
  promised_s: number;
  took_s: number;
}

const known = new Map<string, number | null>();
const AT_ONCE = 20;

export async function promises(jobs: Job[]): Promise<Promise_[]> {
  const ended = jobs.filter((job) => job.state === "succeeded" && !job.reused && job.finished_at !== null).slice(0, AT_ONCE);
  const found: Promise_[] = [];
  for (const job of ended) {
    if (!known.has(job.id)) known.set(job.id, await promised(job.id));
    const at = known.get(job.id);
    if (at != null) found.push({ job, promised_s: at - job.submitted_at, took_s: job.finished_at! - job.submitted_at });
  }
  return found;
}

/** The log of a job that is final ends at once. */
async function promised(id: string): Promise<number | null> {
  const text = await (await send(`/v1/jobs/${id}/events`)).text();
  const line = text.split(/\r?\n/).find((one) => one.startsWith("data: "));
  const data = line ? (JSON.parse(line.slice(6)) as { finish_at?: number }) : {};
  return data.finish_at ?? null;
}
