/** Time and memory by layer, measured while a picture is drawn again alone. */

import { bytesOf } from "../api/pictures";
import { bytes, seconds } from "../state/clock";
import { done } from "../state/jobs";
import { Bar } from "../ui/bars";
import { Empty } from "../ui/controls";
import { drawnAgain, inspected } from "./subject";
import { TaskButton, useTask } from "./task";

interface Profile {
  forward_s: number;
  forwards: number;
  reached: number | null;
  attention_share: number;
  layers: { name: string; level: string | number; seconds: number; attention_s: number; memory_bytes: number; weight_bytes: number }[];
}

const SHOWN = 14;

/** Of the picture that is looked into, or of the newest. */
export function LayersPanel() {
  const task = useTask<Profile>();
  const job = inspected.value ?? done.value.find((one) => one.pictures.length > 0);
  const look = async () => {
    const ended = await drawnAgain(job!, { inspect: { profile: true }, reuse: false }, { count: 1, steps: Math.min(6, job!.request.steps ?? 6), sigmas: null });
    const file = ended.inspection?.find((one) => one.kind === "profile");
    if (!file) throw new Error("This service gives no profile.");
    return JSON.parse(await (await bytesOf(file.url)).text()) as Profile;
  };
  const found = task.value;
  const layers = found ? [...found.layers].sort((one, other) => other.seconds - one.seconds).slice(0, SHOWN) : [];
  return (
    <section class="panel" aria-labelledby="layers-title">
      <h2 id="layers-title">Time and memory by layer</h2>
      {job ? <TaskButton task={task} ask={look} text="Measure" busy="Drawing alone …" /> : <Empty title="There is no picture yet to draw again." />}
      {found && (
        <>
          <p>
            <strong>{seconds(found.forward_s)}</strong> for one forward, {(found.attention_share * 100).toFixed(0)} % of it attention
            {typeof found.reached === "number" && `, at ${(found.reached * 100).toFixed(0)} % of the speed of a matrix product here`}.
          </p>
          <div class="bars">
            {layers.map((layer) => (
              <Bar key={layer.name} label={layer.name} value={layer.seconds} most={layers[0]?.seconds ?? 1}
                text={`${seconds(layer.seconds)}, ${bytes(layer.memory_bytes)}`} />
            ))}
          </div>
        </>
      )}
    </section>
  );
}
