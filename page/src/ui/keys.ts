/** Keyboard shortcuts: each is declared once, acts, and is listed under `?`. */

export interface Shortcut {
  keys: string;
  about: string;
  act: () => void;
  /** Also while a text is being written. */
  always?: boolean;
}

let shortcuts: Shortcut[] = [];

export function declare(all: Shortcut[]): void {
  shortcuts = all;
}

export function listed(): readonly Shortcut[] {
  return shortcuts;
}

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  const pressed = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.key}`;
  const target = event.target as HTMLElement;
  const writing = target.matches("textarea, select, input:not([type=range], [type=checkbox], [type=file])");
  const found = shortcuts.find((one) => one.keys.toLowerCase() === pressed.toLowerCase());
  if (!found || (writing && !found.always)) return;
  event.preventDefault();
  found.act();
});
