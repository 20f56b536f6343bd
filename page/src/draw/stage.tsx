/** The picture that is drawn, or was: live, with the time when it will be done. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Job } from "../api/types";
import { isFinal } from "../api/types";
import { now, finishes, seconds } from "../state/clock";
import { restore, set } from "../state/form";
import { DRAFT, aside, done, look, previews, shown } from "../state/jobs";
import { choices } from "../state/service";
import { Button } from "../ui/controls";
import { Shown } from "../ui/picture";
import { PictureActions } from "../history/actions";
import { draw } from "./prompt";

export const EXAMPLES = ["red apple on white background", "owl on pink background", "octopus on blue background"];

/** Which picture of the job on the stage is large. */
export const chosen = signal(0);

export function Stage() {
  const job = shown.value;
  const before = useRef<{ job: Job; index: number } | null>(null);
  const same = useRef<string | null>(null);
  if (job && same.current !== job.id) {
    same.current = job.id;
    chosen.value = 0;
  }
  useEffect(() => {
    if (job?.pictures.length) before.current = { job, index: 0 };
  }, [job]);
  return (
    <section class="stage" aria-label="Picture">
      {job ? <Large job={job} before={before.current} /> : <First />}
      {job && <Standing job={job} />}
      <Film />
    </section>
  );
}

function First() {
  return (
    <div class="canvas first">
      <h2>What shall it be?</h2>
      <p>Write a prompt and press Draw, or begin with one of these.</p>
      <ul class="examples">
        {EXAMPLES.map((text) => (
          <li key={text}>
            <Button disabled={!choices.value} onClick={() => {
              set("prompt", text);
              void draw();
            }}>{text}</Button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Large(props: { job: Job; before: { job: Job; index: number } | null }) {
  const { job, before } = props;
  const picture = job.pictures[chosen.value] ?? job.pictures[0];
  const preview = previews.value.get(job.id);
  const [height, width] = job.request.size ?? [1, 1];
  const frame = { aspectRatio: `${picture?.width ?? width} / ${picture?.height ?? height}` };
  if (picture) {
    return (
      <div class="canvas">
        <div class="frame" style={frame}><Shown path={picture.url} alt={`${job.request.prompt || "A picture without a prompt"}, seed ${picture.seed}`} /></div>
      </div>
    );
  }
  if (job.failure) {
    return (
      <div class="canvas failed" role="alert">
        <h2>{job.state === "expired" ? "It was not done in time" : "It could not be drawn"}</h2>
        <p>{job.failure.detail}</p>
        <p class="hint">What helps: {job.failure.remedy}.{job.failure.origin && ` It happened in ${job.failure.origin}.`}</p>
      </div>
    );
  }
  if (job.state === "canceled") {
    return (
      <div class="canvas">
        {preview ? <div class="frame dim" style={frame}><img class="picture" src={preview} alt="How far it was" /></div> : <p class="hint">It was canceled before anything was drawn.</p>}
      </div>
    );
  }
  const former = before && before.job.pictures[before.index];
  return (
    <div class="canvas">
      <div class={`frame ${preview ? "" : "dim"}`} style={frame}>
        {preview
          ? <img class="picture preview" src={preview} alt="How it looks now" />
          : former ? <Shown path={former.url} alt="The picture before" /> : <span class="picture-wait" role="img" aria-label="Nothing to see yet" />}
      </div>
    </div>
  );
}

function Standing(props: { job: Job }) {
  const { job } = props;
  if (!isFinal(job.state)) {
    const { step, steps, stage } = job.progress;
    return (
      <div class="standing">
        <progress value={steps ? step : undefined} max={steps || 1} aria-label="Steps that are done" />
        <p>
          <strong>{job.cancel_requested ? "Stopping" : STAGES[job.state === "queued" ? "waiting" : stage] ?? stage}</strong>
          {job.state === "running" && steps > 0 && ` step ${step} of ${steps}`}
          {!job.cancel_requested && <>, {finishes(job.finish_at, now.value)}</>}
        </p>
      </div>
    );
  }
  const took = job.started_at && job.finished_at ? job.finished_at - job.started_at : null;
  return (
    <div class="standing">
      {job.pictures.length > 1 && (
        <div class="choices" role="group" aria-label="Pictures of this job">
          {job.pictures.map((picture, index) => (
            <button key={picture.sha256 + index} type="button" class="thumb" aria-pressed={index === chosen.value} onClick={() => (chosen.value = index)}>
              <Shown path={picture.url} alt={`Picture ${index + 1}, seed ${picture.seed}`} />
            </button>
          ))}
        </div>
      )}
      <p>
        <strong>{ENDS[job.state]}</strong>
        {job.state === "succeeded" && (job.reused ? ": it had been drawn before" : took !== null && ` in ${seconds(took)}`)}
        {job.pictures.length > 0 && <>, seed {job.pictures[chosen.value]?.seed ?? job.request.seed}</>}
        {job.label === DRAFT && ", drawn while typing"}
      </p>
      {job.pictures.length > 0
        ? <PictureActions job={job} index={chosen.value} />
        : <div class="actions"><Button onClick={() => restore(job)}>Restore its settings</Button></div>}
    </div>
  );
}

/** The newest pictures, to go back to. */
function Film() {
  const recent = done.value.filter((job) => job.pictures.length > 0 && !aside(job)).slice(0, 12);
  if (!recent.length) return null;
  return (
    <ul class="film" aria-label="Newest pictures">
      {recent.map((job) => (
        <li key={job.id}>
          <button type="button" class="thumb" aria-pressed={shown.value?.id === job.id} onClick={() => look(job)}>
            <Shown path={job.pictures[0]?.url} alt={job.request.prompt} lazy />
          </button>
        </li>
      ))}
    </ul>
  );
}

const STAGES: Record<string, string> = { waiting: "Waiting", encoding: "Reading the prompt,", denoising: "Drawing,", decoding: "Finishing,", done: "Done" };
const ENDS: Record<string, string> = { succeeded: "Drawn", failed: "Failed", canceled: "Canceled", expired: "Too late" };
