/** Where each word of the prompt went: heat over the picture, of the attention while it was drawn. */

import { useEffect, useRef, useState } from "preact/hooks";
import { bytesOf } from "../api/pictures";
import type { Job } from "../api/types";
import { blank, decoded, pen2d } from "../draw/images";
import { Empty } from "../ui/controls";
import { drawnAgain, inspected } from "./subject";
import { TaskButton, useTask } from "./task";

interface Maps {
  prompt: string;
  words: Record<string, { mean: number; max: number; heat: number[][] }>;
}

export function WordsPanel() {
  const task = useTask<{ job: Job; maps: Maps }>();
  const job = inspected.value;
  const look = async () => {
    if (!job) throw new Error("Choose a picture first.");
    const ended = await drawnAgain(job, { inspect: { attention_maps: true } }, { count: 1 });
    const file = ended.inspection?.find((one) => one.kind === "attention_maps" && one.media_type === "application/json");
    if (!file) throw new Error("This service gives no maps.");
    return { job: ended, maps: JSON.parse(await (await bytesOf(file.url)).text()) as Maps };
  };
  return (
    <section class="panel" aria-labelledby="words-title">
      <h2 id="words-title">Heat maps of words</h2>
      {job
        ? <TaskButton task={task} ask={look} text="Draw it again and look" busy="Drawing and looking …" />
        : <Empty title="Choose a picture in the history first, with “Look inside”." />}
      {task.value && task.value.job.request.prompt === job?.request.prompt && <Heat job={task.value.job} maps={task.value.maps} />}
    </section>
  );
}

function Heat(props: { job: Job; maps: Maps }) {
  const { job, maps } = props;
  const words = Object.keys(maps.words);
  const [word, setWord] = useState(words[0] ?? "");
  const canvas = useRef<HTMLCanvasElement>(null);
  const picture = job.pictures[0];
  useEffect(() => {
    if (!picture || !canvas.current || !maps.words[word]) return;
    const { heat } = maps.words[word];
    const pen = pen2d(canvas.current);
    void decoded(picture.url).then((image) => {
      pen.globalAlpha = 1;
      pen.imageSmoothingEnabled = true;
      pen.drawImage(image, 0, 0, canvas.current!.width, canvas.current!.height);
      pen.globalAlpha = 0.62;
      pen.drawImage(painted(heat), 0, 0, canvas.current!.width, canvas.current!.height);
    });
  }, [word, maps]);
  if (!picture) return null;
  const found = maps.words[word];
  const fine = Math.max(1, Math.round(384 / picture.width));
  return (
    <div class="heat">
      <canvas ref={canvas} class="frame" width={picture.width * fine} height={picture.height * fine} role="img" aria-label={`Where “${word}” went`}
        style={{ aspectRatio: `${picture.width} / ${picture.height}` }} />
      <div>
        <div class="chips" role="group" aria-label="Words">
          {words.map((one) => <button key={one} type="button" class="button quiet" aria-pressed={one === word} onClick={() => setWord(one)}>{one}</button>)}
        </div>
        {found && <p class="hint">“{word}” has {(found.mean * 100).toFixed(1)} % of the attention on average, {(found.max * 100).toFixed(1)} % where it is hottest.</p>}
      </div>
    </div>
  );
}

/** Heat from deep blue to yellow, each word by its own largest. */
function painted(heat: number[][]): HTMLCanvasElement {
  const [rows, columns] = [heat.length, heat[0]?.length ?? 0];
  const canvas = blank([rows, columns]);
  const pen = pen2d(canvas);
  const pixels = pen.createImageData(columns, rows);
  const most = Math.max(...heat.flat()) || 1;
  heat.flat().forEach((value, place) => {
    const share = value / most;
    pixels.data.set([255 * Math.min(1, share * 1.6), 255 * Math.max(0, share * 1.7 - 0.7), 120 * (1 - share), 255], place * 4);
  });
  pen.putImageData(pixels, 0, 0);
  return canvas;
}
