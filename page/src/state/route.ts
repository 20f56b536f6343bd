/** Which view is shown, by the part of the address behind #. */

import { signal } from "@preact/signals";

export const VIEWS = ["draw", "queue", "history", "inspect", "metrics"] as const;
export type View = (typeof VIEWS)[number];

export const view = signal<View>(current());

addEventListener("hashchange", () => {
  view.value = current();
});

export function show(next: View): void {
  location.hash = next;
}

function current(): View {
  const named = location.hash.slice(1).split("/")[0] as View;
  return VIEWS.includes(named) ? named : "draw";
}
