/** Light, dark, or as the system says. */

import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const KEPT = "undertow-theme";
const ORDER: Theme[] = ["system", "light", "dark"];

export const theme = signal<Theme>((localStorage.getItem(KEPT) as Theme | null) ?? "system");

effect(() => {
  localStorage.setItem(KEPT, theme.value);
  if (theme.value === "system") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
});

export function nextTheme(): void {
  theme.value = ORDER[(ORDER.indexOf(theme.value) + 1) % ORDER.length] ?? "system";
}
