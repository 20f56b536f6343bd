/** A mask painted over the image: with a pointer, or with arrow keys and Space. */

import { useEffect, useRef, useState } from "preact/hooks";
import { sentence } from "../api/client";
import { pathOf } from "../api/pictures";
import type { Artifact } from "../api/types";
import { form, set } from "../state/form";
import { say } from "../state/notices";
import { Button, Check, Slider } from "../ui/controls";
import { Dialog } from "../ui/dialog";
import { blank, decoded, keep, pen2d, type Size } from "./images";

interface Stroke {
  points: [number, number][];
  radius: number;
  erase: boolean;
}

const FINE = 4;
/** Pixels of the painted mask for each of a small picture, so that strokes have smooth edges on the screen. */

export function MaskEditor(props: { image: Artifact; size: Size; close: () => void }) {
  const [height, width] = props.size;
  const canvas = useRef<HTMLCanvasElement>(null);
  const [strokes, setStrokes] = useState<Stroke[]>([]);
  const [undone, setUndone] = useState<Stroke[]>([]);
  const [brush, setBrush] = useState(Math.round(Math.min(height, width) / 6));
  const [erase, setErase] = useState(false);
  const [inverted, setInverted] = useState(false);
  const [keeping, setKeeping] = useState(false);
  const [cursor, setCursor] = useState<[number, number]>([width / 2, height / 2]);
  const [picture, setPicture] = useState<HTMLImageElement | null>(null);
  const [former, setFormer] = useState<HTMLImageElement | null>(null);
  const current = useRef<Stroke | null>(null);

  useEffect(() => {
    decoded(pathOf(props.image)).then(setPicture, (error) => say(sentence(error), "refused"));
    const mask = form.value.request.mask;
    if (mask) decoded(pathOf(mask)).then(setFormer, () => undefined);
  }, []);

  const all = current.current ? [...strokes, current.current] : strokes;
  const redraw = () => {
    if (!canvas.current) return;
    const scale = canvas.current.width / width;
    const pen = pen2d(canvas.current);
    pen.clearRect(0, 0, canvas.current.width, canvas.current.height);
    if (picture) pen.drawImage(picture, 0, 0, canvas.current.width, canvas.current.height);
    const tint = painted(all, former, inverted, [height * scale, width * scale], scale);
    const over = pen2d(tint);
    over.globalCompositeOperation = "source-in";
    over.fillStyle = "#e5006d";
    over.fillRect(0, 0, tint.width, tint.height);
    pen.globalAlpha = 0.55;
    pen.drawImage(tint, 0, 0);
    pen.globalAlpha = 1;
    ring(pen, cursor[0] * scale, cursor[1] * scale, (brush / 2) * scale);
  };
  useEffect(redraw, [strokes, brush, inverted, cursor, picture, former]);

  const at = (event: PointerEvent): [number, number] => {
    const box = canvas.current!.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const begin = (point: [number, number]) => {
    current.current = { points: [point], radius: brush / 2, erase };
  };
  const end = () => {
    if (!current.current) return;
    setStrokes([...strokes, current.current]);
    setUndone([]);
    current.current = null;
  };
  const undo = () => {
    const last = strokes.at(-1);
    if (!last) return;
    setStrokes(strokes.slice(0, -1));
    setUndone([...undone, last]);
  };
  const redo = () => {
    const last = undone.at(-1);
    if (!last) return;
    setUndone(undone.slice(0, -1));
    setStrokes([...strokes, last]);
  };
  const clear = () => {
    setStrokes([]);
    setFormer(null);
    setInverted(false);
  };
  const pressed = (event: KeyboardEvent) => {
    const far = event.shiftKey ? 1 : Math.max(1, brush / 4);
    const moves: Record<string, [number, number]> = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    const way = moves[event.key];
    if (way) setCursor(([x, y]) => [clamp(x + way[0], width), clamp(y + way[1], height)]);
    else if (event.key === " ") {
      begin(cursor);
      end();
    } else if (event.key === "[") setBrush((now) => Math.max(1, now - 2));
    else if (event.key === "]") setBrush((now) => Math.min(Math.min(height, width), now + 2));
    else if (event.key === "e") setErase((now) => !now);
    else return;
    event.preventDefault();
  };
  const anyKey = (event: KeyboardEvent) => {
    if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    event.preventDefault();
    if (event.shiftKey) redo();
    else undo();
  };
  const use = async () => {
    setKeeping(true);
    const flat = blank(props.size);
    const pen = pen2d(flat);
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, width, height);
    pen.drawImage(painted(strokes, former, inverted, props.size, 1), 0, 0);
    try {
      set("mask", await keep(flat));
      props.close();
    } catch (error) {
      say(sentence(error), "refused");
      setKeeping(false);
    }
  };

  const fine = Math.max(1, Math.min(FINE * 2, Math.round(512 / width)));
  return (
    <Dialog title="Paint a mask" close={props.close} wide>
      <div class="mask" onKeyDown={anyKey}>
        <canvas
          ref={canvas} class="mask-canvas" width={width * fine} height={height * fine} tabIndex={0} role="img"
          aria-label="The image with the mask over it. Arrow keys move the brush, Space paints, [ and ] change its size, e erases."
          style={{ aspectRatio: `${width} / ${height}` }}
          onPointerDown={(event) => {
            event.currentTarget.setPointerCapture(event.pointerId);
            begin(at(event));
            setCursor(at(event));
          }}
          onPointerMove={(event) => {
            current.current?.points.push(at(event));
            setCursor(at(event));
          }}
          onPointerUp={end} onPointerCancel={end} onKeyDown={pressed}
        />
        <div class="mask-tools">
          <p class="hint">What you paint is drawn anew; the rest is kept.</p>
          <Slider label="Brush size" min={1} max={Math.min(height, width)} step={1} value={brush} change={setBrush} />
          <Check label="Erase" value={erase} change={setErase} />
          <Check label="Invert: keep what is painted" value={inverted} change={setInverted} />
          <div class="actions">
            <Button onClick={undo} disabled={!strokes.length}>Undo</Button>
            <Button onClick={redo} disabled={!undone.length}>Redo</Button>
            <Button onClick={clear} disabled={!strokes.length && !former}>Clear</Button>
          </div>
          <Button tone="main" onClick={() => void use()} disabled={keeping || (!strokes.length && !former && !inverted)}>Use this mask</Button>
        </div>
      </div>
    </Dialog>
  );
}

/** White where it is painted, and nothing elsewhere. */
function painted(strokes: Stroke[], former: HTMLImageElement | null, inverted: boolean, size: Size, scale: number): HTMLCanvasElement {
  const canvas = blank(size);
  const pen = pen2d(canvas);
  if (former) whiteOf(pen, former, canvas.width, canvas.height);
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = pen.fillStyle = "#fff";
  for (const stroke of strokes) {
    pen.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    pen.lineWidth = stroke.radius * 2 * scale;
    pen.beginPath();
    for (const [x, y] of stroke.points) pen.lineTo(x * scale, y * scale);
    const [first] = stroke.points;
    if (stroke.points.length === 1 && first) pen.lineTo(first[0] * scale + 0.01, first[1] * scale);
    pen.stroke();
  }
  if (inverted) {
    pen.globalCompositeOperation = "xor";
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
  return canvas;
}

/** A mask file as white with its brightness as opacity. */
function whiteOf(pen: CanvasRenderingContext2D, mask: HTMLImageElement, width: number, height: number): void {
  pen.drawImage(mask, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  for (let k = 0; k < pixels.data.length; k += 4) {
    pixels.data[k + 3] = pixels.data[k]!;
    pixels.data[k] = pixels.data[k + 1] = pixels.data[k + 2] = 255;
  }
  pen.putImageData(pixels, 0, 0);
}

function ring(pen: CanvasRenderingContext2D, x: number, y: number, radius: number): void {
  for (const [color, wide] of [["#000", 3], ["#fff", 1.5]] as const) {
    pen.strokeStyle = color;
    pen.lineWidth = wide;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function clamp(value: number, most: number): number {
  return Math.max(0, Math.min(most, value));
}
