/** What to draw: the prompt, the button, and drawing while the prompt is being written. */

import { effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { away } from "../api/client";
import type { Job } from "../api/types";
import { isFinal } from "../api/types";
import { form, get, set } from "../state/form";
import { DRAFT, cancel, look, shown, submit } from "../state/jobs";
import { choices } from "../state/service";
import { Button, Check, Select } from "../ui/controls";

const PAUSE_MS = 350;

export const typing = signal(localStorage.getItem("undertow-typing") === "yes");
export const sending = signal(false);

effect(() => localStorage.setItem("undertow-typing", typing.value ? "yes" : "no"));

let draft: Job | null = null;

/** Submits what is written, and shows it. */
export async function draw(): Promise<void> {
  if (!choices.value || sending.value) return;
  sending.value = true;
  try {
    const job = await submit();
    if (job) look(job);
  } finally {
    sending.value = false;
  }
}

/** The same request in place of the one that was drawn a moment ago. */
async function drawDraft(): Promise<void> {
  if (!form.value.request.prompt.trim() || away.value) return;
  const former = draft;
  if (former && !isFinal(former.state)) void cancel(former);
  const job = await submit({ label: DRAFT, mode: "fast", priority: 10 });
  if (!job) return;
  draft = job;
  look(job);
}

function useDrafts(): void {
  const first = useRef(true);
  const request = form.value.request;
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    if (!typing.value) return;
    const timer = setTimeout(() => void drawDraft(), PAUSE_MS);
    return () => clearTimeout(timer);
  }, [request, typing.value]);
}

export function Prompt() {
  useDrafts();
  const busy = shown.value !== null && !isFinal(shown.value.state);
  return (
    <section class="panel prompt" aria-label="Prompt">
      <label for="prompt">Prompt</label>
      <textarea
        id="prompt" rows={3} value={form.value.request.prompt} placeholder="What to draw" spellcheck={true}
        onInput={(event) => set("prompt", event.currentTarget.value)}
      />
      <details class="more">
        <summary>Negative prompt and dialect</summary>
        <label for="negative">Negative prompt</label>
        <textarea
          id="negative" rows={2} value={get("negative_prompt", "")} placeholder="What not to draw"
          onInput={(event) => set("negative_prompt", event.currentTarget.value)}
        />
        <Select
          label="Dialect of weights" value={get("dialect", "a1111")} change={(value) => set("dialect", value)}
          options={(choices.value?.dialects ?? ["a1111"]).map((name) => ({ value: name, text: DIALECTS[name] ?? name }))}
        />
      </details>
      <div class="actions">
        <Button tone="main" onClick={() => void draw()} disabled={!choices.value || sending.value} aria-keyshortcuts="Control+Enter">
          {sending.value && away.value ? "Waits for the service" : "Draw"}
        </Button>
        {busy && shown.value && (
          <Button tone="danger" onClick={() => shown.value && void cancel(shown.value)} aria-keyshortcuts="Escape">Cancel</Button>
        )}
      </div>
      <Check label="Draw while typing" value={typing.value} change={(value) => (typing.value = value)} />
    </section>
  );
}

const DIALECTS: Record<string, string> = {
  plain: "plain: no weights",
  a1111: "A1111: (word:1.2)",
  comfy: "ComfyUI: (word:1.2)",
  compel: "compel: word++",
};
