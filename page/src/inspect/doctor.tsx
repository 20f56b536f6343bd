/** What may be wrong with a request, by measured rules, and what would mend it. */

import { ask } from "../api/client";
import type { Diagnosis, Finding, Job } from "../api/types";
import { bytesOf } from "../api/pictures";
import { bodyOf, set } from "../state/form";
import { say } from "../state/notices";
import { Button } from "../ui/controls";
import { finished, inspected } from "./subject";
import { TaskButton, useTask } from "./task";

export function DoctorPanel() {
  const task = useTask<Diagnosis>();
  const job = inspected.value;
  const look = async () => {
    const path = job ? `/v1/jobs/${job.id}/diagnosis` : "/v1/diagnose";
    const answer = await ask<Diagnosis | Job>(path, { method: "POST", json: job ? {} : bodyOf(), headers: { Prefer: "wait=30" } });
    if ("findings" in answer) return answer;
    const ended = await finished(answer);
    const file = ended.files[0];
    if (!file) throw new Error("The diagnosis has no file.");
    return JSON.parse(await (await bytesOf(file.url)).text()) as Diagnosis;
  };
  const found = task.value;
  return (
    <section class="panel" aria-labelledby="doctor-title">
      <h2 id="doctor-title">Doctor</h2>
      <p class="hint">Measures what may be wrong with {job ? "this picture's request" : "the request as it is written"}; it takes about as long as ten steps.</p>
      <TaskButton task={task} ask={look} text="Diagnose" busy="Measuring …" />
      {found && (
        <>
          <p><strong>{found.findings.length === 0 ? "Nothing is wrong." : `${found.findings.length} found.`}</strong> {found.rules.length - Object.keys(found.skipped).length} rules looked.</p>
          <ul class="findings">{found.findings.map((one) => <One key={one.rule} finding={one} />)}</ul>
          {Object.keys(found.skipped).length > 0 && (
            <details class="more">
              <summary>{Object.keys(found.skipped).length} rules did not apply</summary>
              <ul class="plain">{Object.entries(found.skipped).map(([rule, why]) => <li key={rule}><strong>{rule}</strong>: {why}</li>)}</ul>
            </details>
          )}
        </>
      )}
    </section>
  );
}

function One(props: { finding: Finding }) {
  const { finding } = props;
  const changes = finding.changes.filter((one) => one.where === "request");
  const apply = () => {
    for (const one of changes) set(one.name, one.value);
    say(`${changes.map((one) => one.name).join(", ")} changed as the doctor says.`);
  };
  return (
    <li class={`finding ${finding.severity}`}>
      <p><span class="badge">{finding.severity}</span> <strong>{finding.symptom}</strong></p>
      <p>{finding.evidence} {finding.cause}</p>
      <p class="hint">{finding.fix}</p>
      {changes.length > 0 && <Button onClick={apply}>Use {changes.map((one) => `${one.name} ${String(one.value)}`).join(", ")}</Button>}
    </li>
  );
}
