/** What was promised when a job was accepted, against when it was done. */

import type { Job } from "../api/types";

export interface Kept {
  job: Job;
  promised_s: number;
  took_s: number;
  kept: boolean;
}

const NEWEST = 20;
const WITHIN_S = 1;
const WITHIN_SHARE = 0.1;

export function keptOf(jobs: Job[]): Kept[] {
  const found: Kept[] = [];
  for (const job of jobs) {
    if (job.state !== "succeeded" || job.reused || job.finished_at === null || job.promised_at === null) continue;
    const promised_s = job.promised_at - job.submitted_at;
    const took_s = job.finished_at - job.submitted_at;
    const kept = Math.abs(took_s - promised_s) <= Math.max(WITHIN_S, WITHIN_SHARE * took_s);
    found.push({ job, promised_s, took_s, kept });
  }
  return found.slice(0, NEWEST);
}
