/** How to draw: model, size, steps, sampler, guidance, seed. */

import { againstModel, clearForm, form, get, hiddenFields, set, setOption, setSeed, sizeOf, unset } from "../state/form";
import { choices, modelNamed, models } from "../state/service";
import { shown } from "../state/jobs";
import { Button, NumberField, Section, Select, Slider } from "../ui/controls";
import { resize } from "./inputs";

export function Settings() {
  const limits = choices.value?.limits ?? {};
  return (
    <>
      <Section title="Model and size" open summary={`${modelNamed(form.value.options.model)?.id ?? ""} · ${[...sizeOf()].reverse().join(" × ")}`}>
        <ModelAndSize />
      </Section>
      <Section title="Sampling" open summary={`${get("steps", 20)} steps · ${samplerText(get("sampler", "model"))}`}>
        <Slider label="Steps" min={1} max={Math.min(60, limits["max_steps"] ?? 60)} step={1} value={get("steps", 20)} change={(value) => set("steps", value)} />
        <Slider label="Guidance scale" hint="How closely to follow the prompt; 1 turns guidance off." min={1} max={15} step={0.5}
          value={get("guidance_scale", 5)} change={(value) => set("guidance_scale", value)} />
        <Suggested />
        <div class="pair">
          <Select label="Sampler" value={get("sampler", "model")} change={(value) => set("sampler", value)}
            options={[{ value: "model", text: samplerText("model") }, ...(choices.value?.samplers ?? []).map((one) => ({ value: one.name, text: one.name }))]} />
          <Select label="Schedule" value={get<string | null>("schedule", null) ?? ""} change={(value) => set("schedule", value || null)}
            options={[{ value: "", text: "the sampler's own" }, ...(choices.value?.schedules ?? []).map((name) => ({ value: name, text: name }))]} />
        </div>
        <Seed />
        <Slider label="Pictures" min={1} max={Math.min(8, limits["max_count"] ?? 8)} step={1} value={get("count", 1)} change={(value) => set("count", value)} />
      </Section>
      <Section title="More" summary={moreText()}>
        <Select label="Guidance method" value={get("guidance_method", "cfg")} change={(value) => set("guidance_method", value)}
          options={methods().map((name) => ({ value: name, text: name }))} />
        <Select label="Seamless edges" value={get("seamless", "none")} change={(value) => set("seamless", value)}
          options={["none", "x", "y", "both"].map((value) => ({ value, text: SEAMLESS[value] ?? value }))} />
        <Select label="Mode" value={form.value.options.mode ?? ""} change={(value) => setOption("mode", value || undefined)}
          hint="Reproducible pictures are equal to the byte, whatever else is drawn; fast ones come sooner."
          options={[{ value: "", text: `the service's own (${choices.value?.mode ?? ""})` }, ...(choices.value?.modes ?? []).map((value) => ({ value, text: value }))]} />
        <Select label="File format" value={form.value.options.format ?? "png"} change={(value) => setOption("format", value)}
          options={(choices.value?.formats ?? ["png"]).map((value) => ({ value, text: value.toUpperCase() }))} />
        <Hidden />
        <Button onClick={clearForm}>Start over with all settings</Button>
      </Section>
    </>
  );
}

/** A way back to what suits the model. */
function Suggested() {
  const against = againstModel();
  const model = modelNamed(form.value.options.model);
  if (!against.length || !model) return null;
  const { steps, guidance_scale: guidance } = model.suggested;
  const said = [`${steps} steps`, ...(guidance === undefined ? [] : [`guidance ${guidance}`])].join(", ");
  return <Button onClick={() => unset(...against)}>{`Use what suits ${model.id}: ${said}`}</Button>;
}

function ModelAndSize() {
  const [height, width] = sizeOf();
  const own = modelNamed(form.value.options.model)?.size ?? 512;
  const set_ = (height: number, width: number) => void resize([height, width]);
  const most = own * 2;
  return (
    <>
      <Select label="Model" value={modelNamed(form.value.options.model)?.id ?? ""} change={(value) => setOption("model", value)}
        options={models.value.map((one) => ({ value: one.id, text: `${one.id} (${one.family})` }))} />
      <div class="pair">
        <Slider label="Width" min={Math.max(8, own / 2)} max={most} step={8} value={width} change={(value) => set_(height, value)} />
        <Slider label="Height" min={Math.max(8, own / 2)} max={most} step={8} value={height} change={(value) => set_(value, width)} />
      </div>
      {(height !== own || width !== own) && (
        <Button onClick={() => void resize(null)}>{`Use the model's own size, ${own} × ${own}`}</Button>
      )}
    </>
  );
}

export function newSeed(): void {
  setSeed(Math.floor(Math.random() * 2 ** 32));
}

function Seed() {
  const last = shown.value?.request.seed;
  return (
    <div class="seed">
      <NumberField label="Seed" placeholder="any" min={0} value={form.value.keepSeed ? (form.value.request.seed ?? "") : ""}
        change={(value) => setSeed(value)} />
      <div class="seed-actions">
        <Button onClick={newSeed} aria-keyshortcuts="n">New</Button>
        <Button onClick={() => setSeed(null)} disabled={!form.value.keepSeed}>Any</Button>
        <Button onClick={() => last !== undefined && setSeed(last)} disabled={last === undefined || (form.value.keepSeed && last === form.value.request.seed)}>
          Keep last
        </Button>
      </div>
    </div>
  );
}

function Hidden() {
  const hidden = hiddenFields();
  if (!hidden.length) return null;
  return (
    <div>
      <p class="hint" id="hidden-fields">Also set, by what was restored:</p>
      <ul class="chips" aria-labelledby="hidden-fields">
        {hidden.map((name) => (
          <li key={name}><Button onClick={() => unset(name)} aria-label={`Leave out ${name}`}>{name} ✕</Button></li>
        ))}
      </ul>
    </div>
  );
}

/** Without those that add to others, which alone draw without guidance. */
function methods(): string[] {
  const usual = ["cfg", "none", "cfg+pag", "cfg+rescale", "cfg+free_u", "apg", "apg+rescale", "zero_star", "tangential"];
  const now = get("guidance_method", "cfg");
  return usual.includes(now) ? usual : [now, ...usual];
}

function samplerText(name: string): string {
  return name === "model" ? "the model's own" : name;
}

function moreText(): string {
  const hidden = hiddenFields().length;
  return hidden ? `${hidden} more set` : "";
}

const SEAMLESS: Record<string, string> = { none: "no", x: "left and right", y: "top and bottom", both: "all four" };
