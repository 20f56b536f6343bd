/** The four groups of metrics: performance, quality, resources, adapters. */

import { useEffect, useState } from "preact/hooks";
import { away, send } from "../api/client";
import type { Job } from "../api/types";
import { ask } from "../api/client";
import type { Worker } from "../api/types";
import { LayersPanel } from "../inspect/layers";
import { bytes, seconds } from "../state/clock";
import { aside, done } from "../state/jobs";
import { may } from "../state/service";
import { Bar, Parts } from "../ui/bars";
import { AdapterEffects } from "./adapters";
import { Samples } from "./exposition";
import { keptOf } from "./promises";
import { StatisticsPanel } from "./statistics";
import { TrainingPanel } from "./training";

const AGAIN_MS = 3000;
const JOBS = 8;
/** A worker that said nothing for longer belongs to a service that was stopped. */
const GONE_S = 120;

export function MetricsView() {
  const [samples, setSamples] = useState<Samples | null>(null);
  const [workers, setWorkers] = useState<Worker[]>([]);
  const drawn = done.value.filter((job) => job.state === "succeeded" && job.kind === "pictures" && !job.reused && !aside(job));
  useEffect(() => {
    const look = async () => {
      if (away.value || document.hidden) return;
      setSamples(Samples.parse(await (await send("/metrics")).text()));
      if (may("admin")) setWorkers((await ask<{ workers: Worker[] }>("/v1/workers")).workers);
    };
    const quietly = () => void look().catch(() => undefined);
    quietly();
    const timer = setInterval(quietly, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  return (
    <section class="page" aria-labelledby="metrics-title">
      <header class="page-head"><h1 id="metrics-title">Metrics</h1><p>What was measured since the service started, and of its newest pictures.</p></header>
      <div class="panels">
        <Performance samples={samples} drawn={drawn} />
        <Quality samples={samples} />
        <Resources samples={samples} drawn={drawn} workers={workers} />
        <AdaptersGroup samples={samples} drawn={drawn} />
        {may("inspect") && <LayersPanel />}
        {may("inspect") && <StatisticsPanel />}
        <TrainingPanel />
      </div>
    </section>
  );
}

function Performance(props: { samples: Samples | null; drawn: Job[] }) {
  const { samples, drawn } = props;
  const promised = keptOf(drawn);
  const kept = promised.filter((one) => one.kept).length;
  const steps = (samples?.named("step_seconds_count") ?? []).map((count) => {
    const sum = samples!.named("step_seconds_sum").find((one) => JSON.stringify(one.labels) === JSON.stringify(count.labels));
    return { labels: count.labels, mean: (sum?.value ?? 0) / count.value };
  }).filter((one) => Number.isFinite(one.mean));
  return (
    <section class="panel" aria-labelledby="performance-title">
      <h2 id="performance-title">Performance</h2>
      <dl class="figures">
        <Figure name="Row steps" value={String(samples?.sum("row_steps_total") ?? "–")} about="through the network" />
        <Figure name="Waited in the queue" value={time(samples?.mean("queue_wait_seconds"))} about="mean" />
        <Figure name="To the first step" value={time(samples?.mean("time_to_first_step_seconds"))} about="mean" />
        <Figure name="Promises kept" value={promised.length ? `${kept} of ${promised.length}` : "–"} about="within 10 % or a second" />
      </dl>
      {drawn.length > 0 && <h3>By stage</h3>}
      <div class="bars">
        {drawn.slice(0, JOBS).map((job) => (
          <Parts key={job.id} label={job.request.prompt || "no prompt"} parts={Object.entries(job.report.seconds ?? {}).map(([name, value]) => ({ name, value, text: seconds(value) }))} />
        ))}
      </div>
      {steps.length > 0 && (
        <>
          <h3>One step, by rows of a forward</h3>
          <div class="bars">
            {steps.sort((one, other) => Number(one.labels["rows"]) - Number(other.labels["rows"])).map((one) => (
              <Bar key={JSON.stringify(one.labels)} label={`${one.labels["model"]}, ${one.labels["rows"]} ${one.labels["rows"] === "1" ? "row" : "rows"} of ${one.labels["bucket"]} cells`} value={one.mean}
                most={Math.max(...steps.map((other) => other.mean))} text={seconds(one.mean)} />
            ))}
          </div>
        </>
      )}
      {promised.length > 0 && (
        <details class="more">
          <summary>Promised and kept</summary>
          <div class="scroll"><table class="facts">
            <thead><tr><th scope="col">Job</th><th scope="col">Promised</th><th scope="col">Took</th></tr></thead>
            <tbody>{promised.map((one) => <tr key={one.job.id}><th scope="row">{one.job.request.prompt}</th><td>{seconds(one.promised_s)}</td><td>{seconds(one.took_s)}</td></tr>)}</tbody>
          </table></div>
        </details>
      )}
    </section>
  );
}

function Quality(props: { samples: Samples | null }) {
  const { samples } = props;
  const ended = done.value.filter((job) => !aside(job));
  return (
    <section class="panel" aria-labelledby="quality-title">
      <h2 id="quality-title">Quality</h2>
      <dl class="figures">
        <Figure name="Not finite" value={String(samples?.sum("not_finite_total") ?? "–")} about="rows with NaN or infinity" />
        <Figure name="Failed" value={String(ended.filter((job) => job.state === "failed").length)} about={`of the newest ${ended.length} jobs`} />
        <Figure name="Replayed steps" value={String(samples?.sum("replayed_steps_total") ?? "–")} about="taken from logs, equal to the bit" />
      </dl>
      <p class="hint">
        Statistics of features are measured below, on a picture; loss and gradient norms are read from the log of a training.
        Errors of predictions need pictures to compare with: <code>service.metrics</code> in Python has them.
      </p>
    </section>
  );
}

function Resources(props: { samples: Samples | null; drawn: Job[]; workers: Worker[] }) {
  const { samples, drawn, workers } = props;
  const measured = drawn.filter((job) => job.report.memory?.peak_bytes && job.report.memory.forecast_bytes).slice(0, JOBS);
  const most = Math.max(...measured.map((job) => Math.max(job.report.memory!.peak_bytes!, job.report.memory!.forecast_bytes!)), 1);
  return (
    <section class="panel" aria-labelledby="resources-title">
      <h2 id="resources-title">Resources</h2>
      <dl class="figures">
        <Figure name="Memory of the workers" value={samples ? bytes(samples.named("memory_bytes").filter((one) => one.labels["kind"] === "resident").reduce((sum, one) => sum + one.value, 0)) : "–"} about="now" />
        <Figure name="Parameters" value={samples ? (samples.sum("parameters") / 1e6).toFixed(1) + " M" : "–"} about="of loaded networks" />
        <Figure name="Rows that fill up" value={samples ? String(samples.sum("padding_rows_total")) : "–"} about="the price of reproducible forwards" />
      </dl>
      {measured.length > 0 && <h3>Memory: forecast and measured</h3>}
      <div class="bars">
        {measured.map((job) => (
          <div key={job.id}>
            <Bar label={job.request.prompt || "no prompt"} value={job.report.memory!.peak_bytes!} most={most}
              text={`${bytes(job.report.memory!.peak_bytes!)} of ${bytes(job.report.memory!.forecast_bytes!)} forecast`} />
          </div>
        ))}
      </div>
      {workers.length > 0 && (
        <>
          <h3>Workers</h3>
          <ul class="plain">{workers.filter((one) => one.seen_at > Date.now() / 1000 - GONE_S).map((one) => <li key={one.name}><strong>{one.device}</strong> on {one.host}: {one.problem ?? one.state}, {one.models.join(", ") || "no model loaded"}</li>)}</ul>
        </>
      )}
    </section>
  );
}

function AdaptersGroup(props: { samples: Samples | null; drawn: Job[] }) {
  const counts = new Map<string, number>();
  for (const job of props.drawn) for (const one of Array.isArray(job.request.adapters) ? job.request.adapters : []) counts.set(one.source, (counts.get(one.source) ?? 0) + 1);
  const distinct = props.samples?.mean("batch_distinct_adapters");
  const most = Math.max(...counts.values(), 1);
  return (
    <section class="panel" aria-labelledby="adapters-title">
      <h2 id="adapters-title">Adapters</h2>
      <dl class="figures">
        <Figure name="In a forward" value={distinct == null ? "–" : distinct.toFixed(2)} about="distinct sets of adapters, mean" />
        <Figure name="Used" value={String(counts.size)} about="by the newest pictures" />
      </dl>
      <div class="bars">{[...counts].map(([name, count]) => <Bar key={name} label={name} value={count} most={most} text={`${count} ${count === 1 ? "picture" : "pictures"}`} />)}</div>
      <h3>Overhead, impact and conflicts</h3>
      <AdapterEffects />
    </section>
  );
}

function Figure(props: { name: string; value: string; about: string }) {
  return <div class="figure"><dt>{props.name}</dt><dd>{props.value}</dd><dd class="hint">{props.about}</dd></div>;
}

function time(value: number | null | undefined): string {
  return value == null ? "–" : seconds(value);
}
