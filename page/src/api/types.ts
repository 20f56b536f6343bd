/** What the service's API takes and gives, as far as the page reads it. Times are seconds since 1970. */

export type State = "queued" | "running" | "succeeded" | "failed" | "canceled" | "expired";

export interface Artifact {
  artifact: string;
  size?: [number, number];
}

export interface AdapterUse {
  source: string;
  name?: string | null;
  scale?: number | number[];
  start?: number;
  end?: number;
  image?: Artifact | Artifact[] | null;
  [field: string]: unknown;
}

export interface Region {
  prompt: string;
  /** Left, top, right and bottom as fractions of the picture. */
  box: [number, number, number, number];
  weight?: number;
  adapters?: AdapterUse[];
}

/** A GenerationRequest; fields that the page has no control for are kept as they are. */
export interface Request {
  prompt: string;
  negative_prompt?: string;
  dialect?: string;
  seed?: number;
  count?: number;
  steps?: number;
  sampler?: string;
  schedule?: string | null;
  guidance_scale?: number;
  guidance_method?: string;
  /** Height and width. */
  size?: [number, number] | null;
  image?: Artifact | null;
  mask?: Artifact | null;
  strength?: number;
  regions?: Region[];
  adapters?: AdapterUse[];
  [field: string]: unknown;
}

export interface Options {
  model?: string | null;
  mode?: string | null;
  format?: string;
  priority?: number;
  label?: string;
  reuse?: boolean;
  /** In place of the request's own. */
  seed?: number;
  inspect?: Record<string, unknown>;
}

export interface Picture {
  url: string;
  sha256: string;
  media_type: string;
  bytes: number;
  width: number;
  height: number;
  seed: number | null;
}

export interface Failure {
  code: string;
  detail: string;
  remedy: string;
  may_retry: boolean;
  origin: string;
}

export interface Inspected {
  kind: string;
  name: string;
  picture: number | null;
  url: string;
  media_type: string;
}

export interface Report {
  sampler?: string;
  schedule?: string;
  seconds?: Record<string, number>;
  memory?: { peak_bytes?: number; forecast_bytes?: number };
  decisions?: string[];
  adapters?: unknown[];
  rows?: number;
}

export interface Job {
  id: string;
  kind: string;
  state: State;
  model: string;
  mode: string;
  label: string;
  priority: number;
  submitted_at: number;
  started_at: number | null;
  finished_at: number | null;
  promised_at: number | null;
  finish_at: number | null;
  finish_in_s: number | null;
  attempt: number;
  cancel_requested: boolean;
  progress: { stage: string; step: number; steps: number; pictures: number };
  pictures: Picture[];
  files: Inspected[];
  inspection?: Inspected[];
  reused: boolean;
  failure: Failure | null;
  request: Request;
  report: Report;
  links: Record<string, string>;
}

export interface Problem {
  title: string;
  status: number;
  detail: string;
  code: string;
  argument?: string;
  remedy?: string;
  retry_after_s?: number;
}

export interface Model {
  id: string;
  family: string;
  dtype: string;
  size: number;
  default: boolean;
  /** Fields that it is drawn with where a request leaves them out. */
  suggested: Record<string, number>;
  /** A model that draws the same in few steps. */
  quicker: string | null;
}

export interface AdapterEntry {
  name: string;
  kind: string;
  title: string;
  model: string | null;
  words: string[];
}

export interface Choices {
  version: string;
  key: { name: string; scopes: string[] };
  samplers: { name: string; also: string[] }[];
  schedules: string[];
  guidance_methods: string[];
  dialects: string[];
  modes: string[];
  mode: string;
  formats: string[];
  limits: Record<string, number>;
  request: Request;
}

export interface Memory {
  fits: boolean;
  budget_bytes: number | null;
  peak_bytes: number;
  process_bytes: number;
  asked_bytes: number;
  smallest_bytes: number;
  seconds: number | null;
  measures: Record<string, unknown>[];
}

export interface Plan {
  accepted: boolean;
  finish_in_s?: number | null;
  cost?: number;
  rows?: number | null;
  work?: { cells: number; rows: number; steps: number; pictures: number };
  memory: Memory | null;
  refused?: Problem;
}

export interface Worker {
  name: string;
  device: string;
  pid: number;
  host: string;
  state: string;
  models: string[];
  problem: string | null;
  last_step_at: number | null;
  seen_at: number;
}

export interface Finding {
  rule: string;
  family: string;
  severity: "serious" | "warning" | "note";
  symptom: string;
  evidence: string;
  cause: string;
  fix: string;
  prevention: string;
  changes: { where: string; name: string; value: unknown }[];
}

export interface Diagnosis {
  job: string;
  model: string;
  serious: boolean;
  findings: Finding[];
  rules: string[];
  skipped: Record<string, string>;
}

export function isFinal(state: State): boolean {
  return state !== "queued" && state !== "running";
}
