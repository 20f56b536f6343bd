/** What to draw: the prompt, the button, and drawing while the prompt is being written. */

import { signal } from "@preact/signals";
import { away } from "../api/client";
import { isFinal } from "../api/types";
import { form, get, set } from "../state/form";
import { cancel, look, shown, submit } from "../state/jobs";
import { choices } from "../state/service";
import { Button, Check, Select } from "../ui/controls";
import { quicker, supersede, take, typing, useDrafts } from "./drafts";

export const sending = signal(false);

/** Submits what is written, and shows it. */
export async function draw(): Promise<void> {
  if (!choices.value || sending.value) return;
  sending.value = true;
  try {
    const job = await submit();
    supersede();
    if (job) look(job);
  } finally {
    sending.value = false;
  }
}

export function Prompt() {
  useDrafts();
  const quick = typing.value ? quicker() : undefined;
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
      {quick && <Button onClick={() => take(quick)}>{`Use ${quick.id}: ${quick.suggested["steps"]} steps`}</Button>}
    </section>
  );
}

const DIALECTS: Record<string, string> = {
  plain: "plain: no weights",
  a1111: "A1111: (word:1.2)",
  comfy: "ComfyUI: (word:1.2)",
  compel: "compel: word++",
};
