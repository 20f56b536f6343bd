/** Drawing while the prompt is being written: after each pause, or at every key where the model keeps up. */

import { effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { away } from "../api/client";
import type { Job, Model } from "../api/types";
import { isFinal } from "../api/types";
import { form, get, setOption, unset, type Form } from "../state/form";
import { DRAFT, cancel, look, submit } from "../state/jobs";
import { modelNamed, models } from "../state/service";

const PAUSE_MS = 350;
/** As many steps of a model that was made for few take about as long as a key press. */
const FEW = 8;
/** Of a model that keeps up: they share forwards, and one is encoded or decoded while others are denoised. */
const AT_ONCE = 3;
const WAIT_S = 10;

export const typing = signal(localStorage.getItem("undertow-typing") === "yes");

effect(() => localStorage.setItem("undertow-typing", typing.value ? "yes" : "no"));

/** All drafts have it, so that a picture changes by what is written alone. */
const seed = Math.floor(Math.random() * 2 ** 32);

let draft: Job | null = null;
let underway = 0;
let isBehind = false;
let submitted = 0;
let newest = 0;
/** Was drawn last at a key; keys that come faster than frames tell of one form twice. */
let drawn: Form | null = null;

/** Whether a picture is there before the next key is pressed. */
function keepsUp(): boolean {
  return modelNamed(form.value.options.model)?.suggested["steps"] !== undefined && get("steps", FEW + 1) <= FEW;
}

/** The model that would keep up, where this one does not. */
export function quicker(): Model | undefined {
  const own = modelNamed(form.value.options.model);
  return models.value.find((one) => one.id === own?.quicker);
}

/** Draws with a model as it suggests. */
export function take(model: Model): void {
  setOption("model", model.id);
  unset(...Object.keys(model.suggested));
}

/** Drafts that are still drawn come too late for the stage. */
export function supersede(): void {
  newest = ++submitted;
  isBehind = false;
}

export function useDrafts(): void {
  const first = useRef(true);
  const { request, options } = form.value;
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    if (!typing.value) {
      drawn = null;
      return;
    }
    if (keepsUp()) {
      void keepUp();
      return;
    }
    const timer = setTimeout(() => void replaceDraft(), PAUSE_MS);
    return () => clearTimeout(timer);
  }, [request, options.model, typing.value]);
}

/** The same request in place of the one that was drawn a moment ago. */
async function replaceDraft(): Promise<void> {
  if (!isWritten()) return;
  cancelFormer();
  const mine = ++submitted;
  const job = await submit(asDraft());
  if (job) show(job, mine);
}

/** The newest request, as soon as there is room for it; what was written in between is not drawn. */
async function keepUp(): Promise<void> {
  isBehind = underway >= AT_ONCE;
  if (isBehind || !isWritten() || form.value === drawn) return;
  drawn = form.value;
  cancelFormer();
  const mine = ++submitted;
  underway += 1;
  const job = await submit(asDraft(), WAIT_S).finally(() => (underway -= 1));
  if (job) show(job, mine);
  else drawn = null;
  if (isBehind) void keepUp();
}

function isWritten(): boolean {
  return form.value.request.prompt.trim() !== "" && !away.value;
}

function asDraft() {
  return { label: DRAFT, mode: "fast", priority: 10, ...(form.value.keepSeed ? {} : { seed }) };
}

function cancelFormer(): void {
  if (draft && !isFinal(draft.state)) void cancel(draft);
  draft = null;
}

/** mine: its place among all; one that was overtaken is not shown. */
function show(job: Job, mine: number): void {
  if (mine < newest) return;
  newest = mine;
  draft = job;
  look(job);
}
