/** Every picture that is kept, with all that it was drawn with. */

import { signal } from "@preact/signals";
import type { Job, Picture } from "../api/types";
import { dayAndTime, seconds } from "../state/clock";
import { aside, done, loadMore, more } from "../state/jobs";
import { show } from "../state/route";
import { Button, Check, Empty } from "../ui/controls";
import { Dialog } from "../ui/dialog";
import { Shown } from "../ui/picture";
import { PictureActions } from "./actions";
import { Compare } from "./compare";
import { settingsOf } from "./differences";

export interface Drawn {
  job: Job;
  index: number;
  picture: Picture;
}

const opened = signal<Drawn | null>(null);
const picked = signal<Drawn[]>([]);
const comparing = signal(false);
const words = signal("");
const failures = signal(false);

export function HistoryView() {
  const wanted = words.value.trim().toLowerCase();
  const fits = (job: Job) => !aside(job) && JSON.stringify([job.request.prompt, job.request.seed, job.model]).toLowerCase().includes(wanted);
  const drawn = done.value.filter(fits).flatMap((job) => job.pictures.map((picture, index) => ({ job, index, picture })));
  const failed = failures.value ? done.value.filter((job) => fits(job) && job.kind === "pictures" && job.state !== "succeeded") : [];
  return (
    <section class="page" aria-labelledby="history-title">
      <header class="page-head">
        <h1 id="history-title">History</h1>
        <label class="visually-hidden" for="history-words">Search prompts</label>
        <input id="history-words" type="search" placeholder="Search prompts, seeds, models" value={words.value} onInput={(event) => (words.value = event.currentTarget.value)} />
        <Check label="Failed and canceled too" value={failures.value} change={(value) => (failures.value = value)} />
        <Button tone="main" disabled={picked.value.length !== 2} onClick={() => (comparing.value = true)} aria-keyshortcuts="c">
          What changed{picked.value.length === 1 ? ": pick one more" : ""}
        </Button>
      </header>
      {drawn.length === 0 && (
        <Empty title={wanted ? "No picture like that." : "No pictures yet."}>
          {!wanted && <Button tone="main" onClick={() => show("draw")}>Draw the first</Button>}
        </Empty>
      )}
      <ul class="grid">
        {drawn.map((one) => (
          <li key={`${one.job.id}-${one.index}`} class="card">
            <button type="button" class="card-open" onClick={() => (opened.value = one)}>
              <Shown path={one.picture.url} alt={`${one.job.request.prompt || "no prompt"}, seed ${one.picture.seed}`} lazy />
            </button>
            <div class="card-foot">
              <p title={one.job.request.prompt}>{one.job.request.prompt || "no prompt"}</p>
              <Check label="Compare" value={isPicked(one)} change={() => pick(one)} />
            </div>
          </li>
        ))}
      </ul>
      {failed.length > 0 && (
        <ul class="plain failures">
          {failed.map((job) => <li key={job.id}><strong>{job.state}</strong> {job.request.prompt}: {job.failure?.detail ?? "canceled"}</li>)}
        </ul>
      )}
      {more.value && <div class="actions"><Button onClick={() => void loadMore()}>Show older ones</Button></div>}
      {opened.value && <Details drawn={opened.value} close={() => (opened.value = null)} />}
      {comparing.value && picked.value.length === 2 && (
        <Compare one={picked.value[0]!} other={picked.value[1]!} close={() => (comparing.value = false)} />
      )}
    </section>
  );
}

/** For the shortcut. */
export function compare(): void {
  if (picked.value.length === 2) comparing.value = true;
}

function isPicked(one: Drawn): boolean {
  return picked.value.some((other) => other.job.id === one.job.id && other.index === one.index);
}

function pick(one: Drawn): void {
  picked.value = isPicked(one)
    ? picked.value.filter((other) => other.job.id !== one.job.id || other.index !== one.index)
    : [...picked.value.slice(-1), one];
}

function Details(props: { drawn: Drawn; close: () => void }) {
  const { job, index, picture } = props.drawn;
  const took = Object.entries(job.report.seconds ?? {}).map(([name, value]) => `${name} ${seconds(value)}`).join(", ");
  return (
    <Dialog title={job.request.prompt || "No prompt"} close={props.close} wide>
      <div class="details">
        <div class="frame" style={{ aspectRatio: `${picture.width} / ${picture.height}` }}><Shown path={picture.url} alt={job.request.prompt || "no prompt"} /></div>
        <div>
          <PictureActions job={job} index={index} closed={props.close} />
          <table class="facts">
            <tbody>
              <tr><th scope="row">Drawn</th><td>{dayAndTime(job.finished_at ?? job.submitted_at)}{took && `: ${took}`}</td></tr>
              {Object.entries(settingsOf(job, index)).map(([name, value]) => (
                <tr key={name}><th scope="row">{name}</th><td>{value}</td></tr>
              ))}
            </tbody>
          </table>
        </div>
      </div>
    </Dialog>
  );
}
