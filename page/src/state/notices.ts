/** What the page has to say: refusals stay until they are read, notes go by themselves. */

import { signal } from "@preact/signals";

export interface Notice {
  id: number;
  text: string;
  kind: "refused" | "note";
}

const NOTE_MS = 6000;
let last = 0;

export const notices = signal<Notice[]>([]);

export function say(text: string, kind: Notice["kind"] = "note"): void {
  if (notices.value.some((one) => one.text === text)) return;
  const id = ++last;
  notices.value = [...notices.value.slice(-2), { id, text, kind }];
  if (kind === "note") setTimeout(() => dismiss(id), NOTE_MS);
}

export function dismiss(id: number): void {
  notices.value = notices.value.filter((one) => one.id !== id);
}
