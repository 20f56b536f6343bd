/** Controls that every view uses. Each has a visible name. */

import type { ComponentChildren, JSX } from "preact";
import { useId, useLayoutEffect, useRef } from "preact/hooks";

interface Named {
  label: string;
  hint?: string;
}

export function Field(props: Named & { for: string; children: ComponentChildren; value?: string }) {
  return (
    <div class="field">
      <div class="field-head">
        <label for={props.for}>{props.label}</label>
        {props.value !== undefined && <output for={props.for}>{props.value}</output>}
      </div>
      {props.children}
      {props.hint && <p class="hint" id={`${props.for}-hint`}>{props.hint}</p>}
    </div>
  );
}

interface SliderProps extends Named {
  value: number;
  min: number;
  max: number;
  step: number;
  change: (value: number) => void;
  disabled?: boolean;
}

export function Slider(props: SliderProps) {
  const id = useId();
  const places = props.step < 0.1 ? 2 : props.step < 1 ? 1 : 0;
  return (
    <Field label={props.label} hint={props.hint} for={id} value={props.value.toFixed(places)}>
      <input
        id={id} type="range" min={props.min} max={props.max} step={props.step} value={props.value}
        disabled={props.disabled} onInput={(event) => props.change(Number(event.currentTarget.value))}
      />
    </Field>
  );
}

interface NumberProps extends Named {
  value: number | "";
  min?: number;
  max?: number;
  step?: number;
  placeholder?: string;
  change: (value: number | null) => void;
}

export function NumberField(props: NumberProps) {
  const id = useId();
  return (
    <Field label={props.label} hint={props.hint} for={id}>
      <input
        id={id} type="number" inputMode="numeric" min={props.min} max={props.max} step={props.step ?? 1}
        value={props.value} placeholder={props.placeholder}
        onInput={(event) => {
          const text = event.currentTarget.value;
          props.change(text === "" ? null : Number(text));
        }}
      />
    </Field>
  );
}

interface SelectProps extends Named {
  value: string;
  options: { value: string; text: string }[];
  change: (value: string) => void;
}

export function Select(props: SelectProps) {
  const id = useId();
  return (
    <Field label={props.label} hint={props.hint} for={id}>
      <select id={id} value={props.value} onChange={(event) => props.change(event.currentTarget.value)}>
        {props.options.map((one) => (
          <option key={one.value} value={one.value} selected={one.value === props.value}>{one.text}</option>
        ))}
      </select>
    </Field>
  );
}

export function Check(props: Named & { value: boolean; change: (value: boolean) => void }) {
  const id = useId();
  return (
    <div class="check">
      <input id={id} type="checkbox" checked={props.value} onChange={(event) => props.change(event.currentTarget.checked)} />
      <label for={id}>{props.label}</label>
      {props.hint && <p class="hint">{props.hint}</p>}
    </div>
  );
}

/** A part that can be closed. open: opens it when it becomes true; only people close it. */
export function Section(props: { title: string; summary?: string; open?: boolean; children: ComponentChildren }) {
  const place = useRef<HTMLDetailsElement>(null);
  useLayoutEffect(() => {
    if (props.open && place.current) place.current.open = true;
  }, [props.open]);
  return (
    <details class="section" ref={place}>
      <summary>
        <span class="section-title">{props.title}</span>
        {props.summary && <span class="section-summary">{props.summary}</span>}
      </summary>
      <div class="section-body">{props.children}</div>
    </details>
  );
}

export function Button(props: JSX.IntrinsicElements["button"] & { tone?: "main" | "quiet" | "danger" }) {
  const { tone = "quiet", class: more, ...rest } = props;
  return <button type="button" class={`button ${tone} ${more ?? ""}`} {...rest} />;
}

/** A part of a page that is not there yet, or could not be had. */
export function Empty(props: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{props.title}</p>
      {props.children}
    </div>
  );
}
