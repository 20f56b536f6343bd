/** Statistics of every layer's features over the steps of a picture. */

import { bytesOf } from "../api/pictures";
import { drawnAgain, inspected } from "../inspect/subject";
import { TaskButton, useTask } from "../inspect/task";
import { done } from "../state/jobs";
import { Line } from "../ui/bars";
import { Empty } from "../ui/controls";

interface Activations {
  layers: Record<string, { std: (number | null)[]; largest: (number | null)[] }>;
}

const SHOWN = 10;

export function StatisticsPanel() {
  const task = useTask<Activations>();
  const job = inspected.value ?? done.value.find((one) => one.pictures.length > 0);
  const look = async () => {
    const ended = await drawnAgain(job!, { inspect: { activations: true } }, { count: 1 });
    const file = ended.inspection?.find((one) => one.kind === "activations" && one.media_type === "application/json");
    if (!file) throw new Error("This service gives no statistics.");
    return JSON.parse(await (await bytesOf(file.url)).text()) as Activations;
  };
  const layers = Object.entries(task.value?.layers ?? {}).sort(([, one], [, other]) => peak(other.largest) - peak(one.largest)).slice(0, SHOWN);
  return (
    <section class="panel" aria-labelledby="statistics-title">
      <h2 id="statistics-title">Statistics of features</h2>
      {job ? <TaskButton task={task} ask={look} text="Measure" busy="Drawing and looking …" /> : <Empty title="There is no picture yet to draw again." />}
      {layers.length > 0 && (
        <>
          <p class="hint">Standard deviation over the steps, and the largest value, of the layers with the largest.</p>
          <div class="bars">
            {layers.map(([name, one]) => (
              <div key={name} class="bar-row">
                <span class="bar-label">{name}</span>
                <Line label={`Standard deviation of ${name} over the steps`} values={one.std} />
                <span class="bar-text">largest {peak(one.largest).toPrecision(3)}</span>
              </div>
            ))}
          </div>
        </>
      )}
    </section>
  );
}

function peak(values: (number | null)[]): number {
  return Math.max(...values.map((value) => value ?? 0));
}
