/** A labelled bar: the number is always there as text. */

export function Bar(props: { label: string; value: number; most: number; text: string; quiet?: boolean }) {
  const share = props.most > 0 ? Math.min(1, props.value / props.most) : 0;
  return (
    <div class="bar-row">
      <span class="bar-label">{props.label}</span>
      <span class={`bar ${props.quiet ? "quiet" : ""}`} aria-hidden="true"><span style={{ width: `${share * 100}%` }} /></span>
      <span class="bar-text">{props.text}</span>
    </div>
  );
}

/** Parts of a whole beside each other. */
export function Parts(props: { label: string; parts: { name: string; value: number; text: string }[] }) {
  const whole = props.parts.reduce((sum, one) => sum + one.value, 0) || 1;
  return (
    <div class="parts-row">
      <span class="bar-label">{props.label}</span>
      <span class="parts" aria-hidden="true">
        {props.parts.map((one, place) => <span key={one.name} class={`part part-${place}`} style={{ width: `${(one.value / whole) * 100}%` }} />)}
      </span>
      <span class="bar-text">{props.parts.map((one) => `${one.name} ${one.text}`).join(", ")}</span>
    </div>
  );
}

/** A line over steps; its numbers are in the label. */
export function Line(props: { label: string; values: (number | null)[] }) {
  const numbers = props.values.filter((value): value is number => value !== null);
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const points = props.values
    .map((value, place) => (value === null ? null : `${(place / Math.max(1, props.values.length - 1)) * 100},${28 - ((value - low) / (high - low || 1)) * 26}`))
    .filter(Boolean)
    .join(" ");
  return (
    <svg class="line" viewBox="0 0 100 30" preserveAspectRatio="none" role="img" aria-label={`${props.label}: from ${low.toPrecision(3)} to ${high.toPrecision(3)}`}>
      <polyline points={points} fill="none" stroke="currentColor" stroke-width="1.5" vector-effect="non-scaling-stroke" />
    </svg>
  );
}
