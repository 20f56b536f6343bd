/** Every job that waits or runs: when it will be done, how it looks, its place. */

import { away } from "../api/client";
import type { Job } from "../api/types";
import { clockTime, finishes, now } from "../state/clock";
import { active, cancel, look, move, previews, queue } from "../state/jobs";
import { show } from "../state/route";
import { Button, Empty } from "../ui/controls";

export function QueueView() {
  const waiting = queue.value.filter((job) => job.state === "queued");
  const last = Math.max(0, ...active.value.map((job) => job.finish_at ?? 0));
  return (
    <section class="page" aria-labelledby="queue-title">
      <header class="page-head">
        <h1 id="queue-title">Queue</h1>
        {active.value.length > 0 && (
          <p>
            {active.value.length - waiting.length} drawn now, {waiting.length} waiting
            {last > now.value && !away.value && `, all done at about ${clockTime(last)}`}
          </p>
        )}
        {waiting.length > 1 && <Button tone="danger" onClick={() => waiting.forEach((job) => void cancel(job))}>Cancel all that wait</Button>}
      </header>
      {queue.value.length === 0
        ? (
          <Empty title={away.value ? "The service is away." : "Nothing is being drawn."}>
            <p>Jobs that you submit are listed here until they are done, also when this page was closed meanwhile.</p>
            <Button tone="main" onClick={() => show("draw")}>Draw something</Button>
          </Empty>
        )
        : <ol class="queue">{queue.value.map((job) => <Waiting key={job.id} job={job} place={waiting.indexOf(job)} last={waiting.length - 1} />)}</ol>}
    </section>
  );
}

function Waiting(props: { job: Job; place: number; last: number }) {
  const { job, place, last } = props;
  const preview = previews.value.get(job.id);
  const name = job.kind === "pictures" ? job.request.prompt || "no prompt" : job.kind;
  return (
    <li class={`job ${job.state}`}>
      <div class="job-picture">{preview ? <img class="picture" src={preview} alt="How it looks now" /> : <span>{job.state === "running" ? "…" : place + 1}</span>}</div>
      <div class="job-about">
        <h2>{name}</h2>
        {job.state === "running" && job.progress.steps > 0 && <progress value={job.progress.step} max={job.progress.steps} aria-label={`Steps of ${name}`} />}
        <p>
          {job.cancel_requested ? "stopping at its next step" : finishes(job.finish_at, now.value)}
          {job.attempt > 0 && `, taken up again after a worker was lost`}
        </p>
        <p class="hint">
          {job.model}
          {job.request.steps !== undefined && `, ${job.request.steps} steps, seed ${job.request.seed}`}
          {(job.request.count ?? 1) > 1 && `, ${job.request.count} pictures`}
          {job.priority !== 0 && `, priority ${job.priority}`}
        </p>
      </div>
      <div class="job-actions">
        {place >= 0 && (
          <>
            <Button onClick={() => void move(job, 0)} disabled={place === 0} aria-label={`Draw ${name} next`}>First</Button>
            <Button onClick={() => void move(job, place - 1)} disabled={place === 0} aria-label={`Draw ${name} earlier`}>↑</Button>
            <Button onClick={() => void move(job, place + 1)} disabled={place === last} aria-label={`Draw ${name} later`}>↓</Button>
          </>
        )}
        {place < 0 && <Button onClick={() => {
          look(job);
          show("draw");
        }} aria-label={`Watch ${name}`}>Watch</Button>}
        <Button tone="danger" onClick={() => void cancel(job)} disabled={job.cancel_requested} aria-label={`Cancel ${name}`}>Cancel</Button>
      </div>
    </li>
  );
}
