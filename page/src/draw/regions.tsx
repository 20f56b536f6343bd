/** Prompts for parts of the picture: boxes that are drawn, moved by keys, and named. */

import { useRef, useState } from "preact/hooks";
import type { Region } from "../api/types";
import { form, get, set, sizeOf } from "../state/form";
import { Button, Section, Select, Slider } from "../ui/controls";

type Box = Region["box"];
const LEAST = 0.05;

function regions(): Region[] {
  return form.value.request.regions ?? [];
}

function change(place: number, more: Partial<Region>): void {
  set("regions", regions().map((one, index) => (index === place ? { ...one, ...more } : one)));
}

export function Regions() {
  const count = regions().length;
  return (
    <Section title="Regions" summary={count ? `${count} ${count === 1 ? "box" : "boxes"}` : "none"} open={count > 0}>
      <Board />
      <ol class="stack">
        {regions().map((region, place) => (
          <li key={place} class="adapter">
            <div class="adapter-head">
              <strong>Box {place + 1}</strong>
              <small>{spans(region.box)}</small>
              <Button onClick={() => set("regions", regions().filter((_, index) => index !== place))} aria-label={`Remove box ${place + 1}`}>✕</Button>
            </div>
            <label class="visually-hidden" for={`region-${place}`}>Prompt of box {place + 1}</label>
            <input id={`region-${place}`} type="text" placeholder="What to draw there" value={region.prompt}
              onInput={(event) => change(place, { prompt: event.currentTarget.value })} />
            <Slider label={`Weight of box ${place + 1}`} min={0.1} max={3} step={0.1} value={region.weight ?? 1} change={(weight) => change(place, { weight })} />
          </li>
        ))}
      </ol>
      <div class="actions">
        <Button onClick={() => set("regions", [...regions(), { prompt: "", box: nextBox() }])}>Add a box</Button>
      </div>
      {count > 0 && (
        <Select label="How boxes are drawn" value={get("regions_by", "estimates")} change={(value) => set("regions_by", value)}
          options={[{ value: "estimates", text: "each by itself, then joined" }, { value: "attention", text: "together, by attention" }]} />
      )}
    </Section>
  );
}

/** The picture's outline, in which boxes are drawn with a pointer; a box that has the focus moves by arrow keys. */
function Board() {
  const place = useRef<HTMLDivElement>(null);
  const [draft, setDraft] = useState<Box | null>(null);
  const start = useRef<[number, number] | null>(null);
  const [height, width] = sizeOf();

  const at = (event: PointerEvent): [number, number] => {
    const box = place.current!.getBoundingClientRect();
    return [unit((event.clientX - box.left) / box.width), unit((event.clientY - box.top) / box.height)];
  };
  const spanned = (point: [number, number]): Box => {
    const [x, y] = start.current!;
    return [Math.min(x, point[0]), Math.min(y, point[1]), Math.max(x, point[0]), Math.max(y, point[1])];
  };
  return (
    <div
      ref={place} class="board" style={{ aspectRatio: `${width} / ${height}` }}
      onPointerDown={(event) => {
        if (event.target !== place.current) return;
        place.current?.setPointerCapture(event.pointerId);
        start.current = at(event);
      }}
      onPointerMove={(event) => start.current && setDraft(spanned(at(event)))}
      onPointerUp={(event) => {
        if (!start.current) return;
        const box = spanned(at(event));
        start.current = null;
        setDraft(null);
        if (box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST) set("regions", [...regions(), { prompt: "", box }]);
      }}
    >
      <p class="board-hint">{regions().length || draft ? "" : "Draw a box here for each part that has a prompt of its own."}</p>
      {regions().map((region, index) => (
        <button key={index} type="button" class="box" style={placed(region.box)} onKeyDown={(event) => byKey(event, index, region.box)}
          aria-label={`Box ${index + 1}: ${region.prompt || "no prompt yet"}. Arrow keys move it, with Shift they change its size.`}>
          {index + 1} {region.prompt}
        </button>
      ))}
      {draft && <div class="box draft" style={placed(draft)} />}
    </div>
  );
}

function byKey(event: KeyboardEvent, place: number, box: Box): void {
  const ways: Record<string, [number, number]> = { ArrowLeft: [-0.05, 0], ArrowRight: [0.05, 0], ArrowUp: [0, -0.05], ArrowDown: [0, 0.05] };
  const way = ways[event.key];
  if (event.key === "Delete") set("regions", regions().filter((_, index) => index !== place));
  if (!way) return;
  event.preventDefault();
  const [left, top, right, bottom] = box;
  if (event.shiftKey) {
    change(place, { box: [left, top, round(Math.max(left + LEAST, unit(right + way[0]))), round(Math.max(top + LEAST, unit(bottom + way[1])))] });
    return;
  }
  const [x, y] = [Math.max(-left, Math.min(1 - right, way[0])), Math.max(-top, Math.min(1 - bottom, way[1]))];
  change(place, { box: [round(left + x), round(top + y), round(right + x), round(bottom + y)] });
}

/** Halves from the left, as most regions are. */
function nextBox(): Box {
  return regions().length === 0 ? [0, 0, 0.5, 1] : [0.5, 0, 1, 1];
}

function placed([left, top, right, bottom]: Box) {
  return { left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` };
}

function spans([left, top, right, bottom]: Box): string {
  const percent = (edge: number) => Math.round(edge * 100);
  return `${percent(left)} to ${percent(right)} % across, ${percent(top)} to ${percent(bottom)} % down`;
}

function unit(value: number): number {
  return round(Math.max(0, Math.min(1, value)));
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
