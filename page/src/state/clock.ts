/** The service's time, as finish times count it, and words for times. */

import { signal } from "@preact/signals";
import { away } from "../api/client";

/** Seconds since 1970, four times a second while something is being drawn or waits. */
export const now = signal(Date.now() / 1000);

setInterval(() => {
  if (!document.hidden) now.value = Date.now() / 1000;
}, 250);

export function seconds(value: number): string {
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.995) return `${(value * 1e3).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(value % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

export function clockTime(at: number): string {
  return new Date(at * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function dayAndTime(at: number): string {
  return new Date(at * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** When a job will be done, for people; nobody knows while the service is away. */
export function finishes(at: number | null, now_: number): string {
  if (away.value) return "its finish time is known again when the service is back";
  if (at === null) return "finish time not known yet";
  const left = at - now_;
  return left > 0.5 ? `done in about ${seconds(Math.max(1, Math.round(left)))}, at ${clockTime(at)}` : "done any moment";
}
