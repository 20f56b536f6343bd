/** What the adapters of the request that is written do: time, change of the picture, and whether they pull apart. */

import type { AdapterUse, Job } from "../api/types";
import { isFinal } from "../api/types";
import { blank, decoded, pen2d } from "../draw/images";
import { ask } from "../api/client";
import { TaskButton, useTask } from "../inspect/task";
import { finished } from "../inspect/subject";
import { LOOK } from "../state/jobs";
import { bodyOf, form } from "../state/form";
import { Bar } from "../ui/bars";

interface Effect {
  name: string;
  /** Mean change of a channel, of 255. */
  change: number;
  /** Seconds in the network, over those without. */
  overhead: number | null;
}

interface Found {
  effects: Effect[];
  /** Of each pair, the cosine of their changes: -1 against each other, 0 apart, 1 the same. */
  pairs: { names: string; cosine: number }[];
}

const STEPS = 8;

export function AdapterEffects() {
  const task = useTask<Found>();
  const given = form.value.request.adapters;
  const used = Array.isArray(given) ? given : [];
  return (
    <>
      <TaskButton task={task} ask={() => measured(used)} text="Measure what they do" busy="Drawing with and without …" disabled={used.length === 0} />
      {used.length === 0 && <p class="hint">Add adapters to the request in Draw; it is then drawn with and without each.</p>}
      {task.value && (
        <div class="bars">
          {task.value.effects.map((one) => (
            <Bar key={one.name} label={one.name} value={one.change} most={Math.max(...task.value!.effects.map((other) => other.change))}
              text={`changes a channel by ${one.change.toFixed(1)} of 255${one.overhead === null ? "" : `, ${one.overhead >= 1 ? "+" : ""}${((one.overhead - 1) * 100).toFixed(0)} % time`}`} />
          ))}
          {task.value.pairs.map((one) => <p key={one.names}><strong>{one.names}</strong>: {verdict(one.cosine)} ({one.cosine.toFixed(2)}).</p>)}
        </div>
      )}
    </>
  );
}

/** Draws the request without adapters, with each alone, and with all, with the same seed. */
async function measured(used: AdapterUse[]): Promise<Found> {
  const base = { ...bodyOf({ mode: "fast", label: LOOK }), seed: form.value.request.seed ?? 1, count: 1, steps: STEPS, reuse: false };
  const stacks: [string, AdapterUse[]][] = [["none", []], ...used.map((one): [string, AdapterUse[]] => [one.source, [one]])];
  if (used.length > 1) stacks.push(["all together", used]);
  const drawn: { name: string; job: Job; pixels: Float32Array }[] = [];
  for (const [name, adapters] of stacks) {
    const submitted = await ask<Job>("/v1/jobs", { method: "POST", json: { ...base, adapters } });
    const job = isFinal(submitted.state) ? submitted : await finished(submitted);
    drawn.push({ name, job, pixels: await pixelsOf(job) });
  }
  const [without, ...others] = drawn as [(typeof drawn)[0], ...typeof drawn];
  const deltas = others.map((one) => one.pixels.map((value, k) => value - without.pixels[k]!));
  const effects = others.map((one, place) => ({
    name: one.name,
    change: deltas[place]!.reduce((sum, value) => sum + Math.abs(value), 0) / without.pixels.length,
    overhead: ratio(one.job.report.seconds?.["unet"], without.job.report.seconds?.["unet"]),
  }));
  const pairs = used.flatMap((one, i) => used.slice(i + 1).map((other, k) => ({
    names: `${one.source} and ${other.source}`,
    cosine: cosine(deltas[i]!, deltas[i + 1 + k]!),
  })));
  return { effects, pairs };
}

async function pixelsOf(job: Job): Promise<Float32Array> {
  const picture = job.pictures[0]!;
  const pen = pen2d(blank([picture.height, picture.width]));
  pen.drawImage(await decoded(picture.url), 0, 0);
  const { data } = pen.getImageData(0, 0, picture.width, picture.height);
  return Float32Array.from(data.filter((_, k) => k % 4 !== 3));
}

function cosine(one: Float32Array, other: Float32Array): number {
  const dot = one.reduce((sum, value, k) => sum + value * other[k]!, 0);
  const long = Math.hypot(...norms(one)) * Math.hypot(...norms(other));
  return long > 0 ? dot / long : 0;
}

/** The root of the sum of squares, without spreading a million arguments. */
function norms(values: Float32Array): [number] {
  return [Math.sqrt(values.reduce((sum, value) => sum + value * value, 0))];
}

function ratio(one: number | undefined, other: number | undefined): number | null {
  return one !== undefined && other ? one / other : null;
}

function verdict(value: number): string {
  if (value < -0.2) return "they pull the picture in opposite directions, a conflict";
  if (value > 0.6) return "they change the same things in the same direction";
  return "they change different things";
}
