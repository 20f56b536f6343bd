/** What the request that is written would need, and when it would be done. */

import { useEffect } from "preact/hooks";
import { ask } from "../api/client";
import type { Memory, Plan } from "../api/types";
import { bytes, seconds } from "../state/clock";
import { bodyOf, form, sizeOf } from "../state/form";
import { choices } from "../state/service";
import { Bar } from "../ui/bars";
import { TaskButton, useTask } from "./task";

export function PlanPanel() {
  const task = useTask<Plan>();
  const [height, width] = sizeOf();
  const look = () => ask<Plan>("/v1/plan", { method: "POST", json: bodyOf() });
  useEffect(() => {
    if (!choices.value) return undefined;
    const timer = setTimeout(() => task.run(look), 300);
    return () => clearTimeout(timer);
  }, [form.value, choices.value]);
  const plan = task.value;
  return (
    <section class="panel" aria-labelledby="plan-title">
      <h2 id="plan-title">Memory plan</h2>
      <p class="hint">For the request as it is written: {width} × {height}, {String(form.value.request.steps ?? 20)} steps, {String(form.value.request.count ?? 1)} at once.</p>
      {plan && (
        <>
          {plan.refused && <p class="notice refused inline" role="alert">{plan.refused.detail}</p>}
          {plan.accepted && <p><strong>It fits.</strong> {plan.finish_in_s != null && `Submitted now, it would be done in about ${seconds(plan.finish_in_s)}.`}</p>}
          {plan.memory && <MemoryBars memory={plan.memory} />}
          {plan.work && <p class="hint">{plan.work.rows} rows for each of {plan.work.steps} steps, {plan.work.cells} cells each.</p>}
        </>
      )}
      {task.refused && <TaskButton task={task} ask={look} text="Try again" busy="Planning …" />}
    </section>
  );
}

function MemoryBars(props: { memory: Memory }) {
  const { memory } = props;
  const most = Math.max(memory.budget_bytes ?? 0, memory.process_bytes);
  return (
    <div class="bars">
      <Bar label="The whole process" value={memory.process_bytes} most={most} text={bytes(memory.process_bytes)} />
      <Bar label="Peak while drawing" value={memory.peak_bytes} most={most} text={bytes(memory.peak_bytes)} />
      <Bar label="Smallest that would do" value={memory.smallest_bytes} most={most} text={bytes(memory.smallest_bytes)} />
      {memory.budget_bytes !== null && <Bar label="Budget of a worker" value={memory.budget_bytes} most={most} text={bytes(memory.budget_bytes)} quiet />}
      {memory.measures.length > 0 && (
        <ul class="plain">{memory.measures.map((one, place) => <li key={place}>{Object.values(one).filter((value) => typeof value === "string").join(": ")}</li>)}</ul>
      )}
    </div>
  );
}
