/** The stack of adapters: chosen from those that fit, or dropped as files; each with its strength and its picture. */

import { signal } from "@preact/signals";
import { sentence, send } from "../api/client";
import { pathOf } from "../api/pictures";
import type { AdapterEntry, AdapterUse, Artifact } from "../api/types";
import { form, set, sizeOf } from "../state/form";
import { say } from "../state/notices";
import { adapters, loadAdapters, may, modelNamed, skipped } from "../state/service";
import { Button, Section, Slider } from "../ui/controls";
import { Drop } from "../ui/drop";
import { Shown } from "../ui/picture";
import { cut, keep, opened } from "./images";

const EMBEDDING = "textual inversion";

/** A file that is being added, or why it was refused. */
const incoming = signal<{ name: string; refused?: string } | null>(null);

/** Gives a file to the service, which keeps it if a model can use it. */
export async function takeAdapter(file: File): Promise<void> {
  if (!file.name.endsWith(".safetensors")) {
    incoming.value = { name: file.name, refused: `${file.name} is no safetensors file; other files can run code when they are read.` };
    return;
  }
  incoming.value = { name: file.name };
  try {
    const model = modelNamed(form.value.options.model)?.id ?? "";
    const path = `/v1/adapters/${encodeURIComponent(file.name)}?model=${encodeURIComponent(model)}`;
    const headers = { "Content-Type": "application/octet-stream" };
    const entry = (await (await send(path, { method: "PUT", body: file, headers })).json()) as AdapterEntry;
    await loadAdapters();
    incoming.value = null;
    if (entry.kind === EMBEDDING) say(`${entry.name} is there; prompts use it as ${entry.words.join(", ")}.`);
    else add(entry);
  } catch (error) {
    incoming.value = { name: file.name, refused: sentence(error) };
  }
}

function used(): AdapterUse[] {
  const given = form.value.request.adapters;
  return Array.isArray(given) ? given : [];
}

function add(entry: AdapterEntry): void {
  if (entry.kind === EMBEDDING) {
    const known = (form.value.request["embeddings"] as string[] | undefined) ?? [];
    if (!known.includes(entry.name)) set("embeddings", [...known, entry.name]);
    return;
  }
  if (!used().some((one) => one.source === entry.name)) set("adapters", [...used(), { source: entry.name, scale: 1 }]);
}

function change(place: number, more: Partial<AdapterUse>): void {
  set("adapters", used().map((one, index) => (index === place ? { ...one, ...more } : one)));
}

export function Adapters() {
  const model = modelNamed(form.value.options.model)?.id;
  const fitting = adapters.value.filter((one) => one.model === null || one.model === model);
  const free = fitting.filter((one) => !used().some((other) => other.source === one.name));
  const count = used().length;
  return (
    <Section title="Adapters" summary={count ? used().map((one) => one.source).join(", ") : `${fitting.length} available`} open={count > 0 || incoming.value !== null}>
      {count > 0 && (
        <ol class="stack">
          {used().map((one, place) => <Used key={one.source} use={one} place={place} entry={fitting.find((entry) => entry.name === one.source)} />)}
        </ol>
      )}
      {free.length > 0 && (
        <ul class="chips" aria-label="Adapters to add">
          {free.map((one) => (
            <li key={one.name}><Button onClick={() => add(one)} title={one.kind}>+ {one.name} <small>{one.kind}</small></Button></li>
          ))}
        </ul>
      )}
      {may("admin") && (
        <Drop label="Add a LoRA file" accept=".safetensors" take={(file) => void takeAdapter(file)}>
          <strong>Choose an adapter file</strong> or drop one here: a LoRA, ControlNet, IP-Adapter or textual inversion.
        </Drop>
      )}
      {incoming.value && !incoming.value.refused && <p role="status">Looking at {incoming.value.name} …</p>}
      {incoming.value?.refused && (
        <div class="notice refused inline" role="alert">
          <p><strong>{incoming.value.name} was not taken.</strong> {incoming.value.refused}</p>
          <Button onClick={() => (incoming.value = null)} aria-label="Dismiss">✕</Button>
        </div>
      )}
      {skipped.value.length > 0 && (
        <details class="more">
          <summary>{skipped.value.length} not offered</summary>
          <ul class="plain">{skipped.value.map((one) => <li key={one.name}><strong>{one.name}</strong>: {one.reason}</li>)}</ul>
        </details>
      )}
    </Section>
  );
}

function Used(props: { use: AdapterUse; place: number; entry: AdapterEntry | undefined }) {
  const { use, place, entry } = props;
  const scale = typeof use.scale === "number" || use.scale === undefined ? (use.scale ?? 1) : null;
  const reads = entry !== undefined && entry.kind !== "LoRA";
  const picture = (Array.isArray(use.image) ? use.image[0] : use.image) ?? null;
  return (
    <li class="adapter">
      <div class="adapter-head">
        <strong>{use.source}</strong> <small>{entry?.kind ?? "not offered for this model"}</small>
        <Button onClick={() => set("adapters", used().filter((_, index) => index !== place))} aria-label={`Remove ${use.source}`}>✕</Button>
      </div>
      {scale !== null
        ? <Slider label={`Strength of ${use.source}`} min={-1} max={2} step={0.05} value={scale} change={(value) => change(place, { scale: value })} />
        : <p class="hint">Its strength changes over the steps: {(use.scale as number[]).join(", ")}.</p>}
      {reads && (
        <>
          {picture && <Shown path={pathOf(picture)} alt={`${entry.kind === "IP-Adapter" ? "Reference" : "Control map"} of ${use.source}`} class="small" />}
          <Drop label="Choose its picture" accept="image/*" take={(file) => void takePicture(place, file)}>
            <strong>{entry.kind === "IP-Adapter" ? "Choose a reference picture" : "Choose a control map"}</strong> or drop it here.
          </Drop>
        </>
      )}
      <details class="more">
        <summary>When it acts</summary>
        <Slider label="From this share of the steps" min={0} max={0.95} step={0.05} value={use.start ?? 0}
          change={(value) => change(place, { start: Math.min(value, (use.end ?? 1) - 0.05) })} />
        <Slider label="To this share of the steps" min={0.05} max={1} step={0.05} value={use.end ?? 1}
          change={(value) => change(place, { end: Math.max(value, (use.start ?? 0) + 0.05) })} />
      </details>
    </li>
  );
}

async function takePicture(place: number, file: File): Promise<void> {
  try {
    const image: Artifact = await keep(cut(await opened(file), sizeOf()));
    change(place, { image });
  } catch (error) {
    say(sentence(error), "refused");
  }
}
