/** "What changed" between two pictures: settings that differ, one picture over the other, and their difference. */

import { useEffect, useRef, useState } from "preact/hooks";
import { sentence } from "../api/client";
import { blank, decoded, pen2d } from "../draw/images";
import { Slider } from "../ui/controls";
import { Dialog } from "../ui/dialog";
import { Shown } from "../ui/picture";
import { changes, settingsOf, subtract, type PixelChange } from "./differences";
import type { Drawn } from "./view";

export function Compare(props: { one: Drawn; other: Drawn; close: () => void }) {
  const { one, other } = props;
  const [part, setPart] = useState(50);
  const differing = changes(settingsOf(one.job, one.index), settingsOf(other.job, other.index));
  return (
    <Dialog title="What changed" close={props.close} wide>
      <div class="compare">
        <div>
          <div class="frame over" style={{ aspectRatio: `${one.picture.width} / ${one.picture.height}` }}>
            <Shown path={other.picture.url} alt={`Second: ${other.job.request.prompt}`} />
            <div class="over-part" style={{ clipPath: `inset(0 ${100 - part}% 0 0)` }}>
              <Shown path={one.picture.url} alt={`First: ${one.job.request.prompt}`} />
            </div>
            <div class="over-edge" style={{ left: `${part}%` }} />
          </div>
          <Slider label="First left of the line, second right of it" min={0} max={100} step={1} value={part} change={setPart} />
        </div>
        <Difference one={one} other={other} />
        <div class="compare-settings">
          <h3>{differing.length === 0 ? "No setting differs" : `${differing.length} ${differing.length === 1 ? "setting differs" : "settings differ"}`}</h3>
          {differing.length > 0 && (
            <table class="facts">
              <thead><tr><th scope="col">Setting</th><th scope="col">First</th><th scope="col">Second</th></tr></thead>
              <tbody>
                {differing.map(([name, before, after]) => (
                  <tr key={name}><th scope="row">{name}</th><td>{before || "–"}</td><td>{after || "–"}</td></tr>
                ))}
              </tbody>
            </table>
          )}
        </div>
      </div>
    </Dialog>
  );
}

function Difference(props: { one: Drawn; other: Drawn }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [gain, setGain] = useState(4);
  const [pixels, setPixels] = useState<[ImageData, ImageData] | null>(null);
  const [found, setFound] = useState<PixelChange | string | null>(null);
  const { width, height } = props.one.picture;
  const sameSize = width === props.other.picture.width && height === props.other.picture.height;

  useEffect(() => {
    if (!sameSize) return setFound("The pictures have different sizes; their pixels cannot be subtracted.");
    const read = async (path: string) => {
      const pen = pen2d(blank([height, width]));
      pen.drawImage(await decoded(path), 0, 0);
      return pen.getImageData(0, 0, width, height);
    };
    Promise.all([read(props.one.picture.url), read(props.other.picture.url)]).then(setPixels, (error) => setFound(sentence(error)));
    return undefined;
  }, []);
  useEffect(() => {
    if (!pixels || !canvas.current) return;
    const pen = pen2d(canvas.current);
    const target = pen.createImageData(width, height);
    setFound(subtract(pixels[0], pixels[1], target, gain));
    pen.putImageData(target, 0, 0);
  }, [pixels, gain]);

  return (
    <div>
      <canvas ref={canvas} class="frame" width={width} height={height} role="img" aria-label="Difference of both pictures" style={{ aspectRatio: `${width} / ${height}` }} />
      <Slider label="Difference, times" min={1} max={32} step={1} value={gain} change={setGain} />
      <p class="hint">
        {typeof found === "string" && found}
        {found !== null && typeof found === "object" && (found.largest === 0
          ? "Every pixel is the same."
          : `${(found.share * 100).toFixed(1)} % of pixels differ; a channel by ${found.mean.toFixed(1)} of 255 on average, by ${found.largest} at most.`)}
      </p>
    </div>
  );
}
