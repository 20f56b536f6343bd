/** The page around every view: where one is, how the service stands, what keys do. */

import { useEffect } from "preact/hooks";
import { away, locked, returns, key, setKey } from "./api/client";
import { takeAdapter } from "./draw/adapters";
import { takeImage } from "./draw/inputs";
import { draw } from "./draw/prompt";
import { newSeed } from "./draw/settings";
import { DrawView } from "./draw/view";
import { HistoryView, compare } from "./history/view";
import { InspectView } from "./inspect/view";
import { MetricsView } from "./metrics/view";
import { QueueView } from "./queue/view";
import { isFinal } from "./api/types";
import { active, begin, cancel, keepPolling, shown } from "./state/jobs";
import { VIEWS, show, view, type View } from "./state/route";
import { choices, loadService } from "./state/service";
import { nextTheme, theme } from "./state/theme";
import { Button } from "./ui/controls";
import { Help, helping } from "./ui/help";
import { declare } from "./ui/keys";
import { Lock } from "./ui/lock";
import { Notices } from "./ui/notices";

const TITLES: Record<View, string> = { draw: "Draw", queue: "Queue", history: "History", inspect: "Inspect", metrics: "Metrics" };
const SHOWN = { draw: DrawView, queue: QueueView, history: HistoryView, inspect: InspectView, metrics: MetricsView };

declare([
  { keys: "Ctrl+Enter", about: "Draw", act: () => void draw(), always: true },
  { keys: "Escape", about: "Cancel the job on the stage", act: () => shown.value && !isFinal(shown.value.state) && void cancel(shown.value), always: true },
  { keys: "/", about: "Go to the prompt", act: () => toPrompt() },
  { keys: "n", about: "A new seed", act: newSeed },
  { keys: "c", about: "What changed between the two picked pictures", act: compare },
  ...VIEWS.map((name, place) => ({ keys: String(place + 1), about: TITLES[name], act: () => show(name) })),
  { keys: "t", about: "Light, dark, or as the system says", act: nextTheme },
  { keys: "?", about: "This list", act: () => (helping.value = true) },
]);

function toPrompt(): void {
  show("draw");
  requestAnimationFrame(() => document.getElementById("prompt")?.focus());
}

async function start(): Promise<void> {
  await loadService();
  await begin();
}

export function App() {
  useEffect(() => {
    void start().catch(() => undefined);
    keepPolling();
    addEventListener("paste", pasted);
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", dropped);
  }, []);
  useEffect(() => {
    if (returns.value > 0) void start().catch(() => undefined);
  }, [returns.value]);
  useEffect(() => {
    document.title = `${TITLES[view.value]} · undertow studio`;
  }, [view.value]);
  const Current = SHOWN[view.value];
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => {
        event.preventDefault();
        document.getElementById("main")?.focus();
      }}>To the content</a>
      <header class="top">
        <p class="brand"><span class="brand-mark" aria-hidden="true">≋</span> undertow</p>
        <nav aria-label="Views">
          <ul>
            {VIEWS.map((name) => (
              <li key={name}>
                <a href={`#${name}`} aria-current={view.value === name ? "page" : undefined}>
                  {TITLES[name]}{name === "queue" && active.value.length > 0 && <span class="count">{active.value.length}</span>}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        <div class="top-end">
          {key.value && locked.value === null && <Button onClick={forget}>Forget the key</Button>}
          <Button onClick={nextTheme} aria-label={`Theme: ${theme.value}`} title={`Theme: ${theme.value}`}>{{ system: "◐", light: "☀", dark: "☾" }[theme.value]}</Button>
          <Button onClick={() => (helping.value = true)} aria-label="Keys" aria-keyshortcuts="?">?</Button>
        </div>
      </header>
      {away.value && (
        <p class="away" role="alert">
          <strong>The service is away.</strong> What it has accepted is kept; this page goes on when it is back.
        </p>
      )}
      <main id="main" tabIndex={-1}>
        {locked.value !== null ? <Lock /> : <Current />}
      </main>
      <footer class="foot"><p>{choices.value ? `undertow ${choices.value.version}` : "undertow"} · <a href="/docs">API</a></p></footer>
      <Notices />
      <Help />
    </>
  );
}

/** Nothing that the key showed stays in the tab. */
function forget(): void {
  setKey("");
  sessionStorage.clear();
  location.reload();
}

function pasted(event: ClipboardEvent): void {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file || locked.value !== null) return;
  event.preventDefault();
  show("draw");
  void takeImage(file);
}

/** A file that is dropped anywhere goes where it belongs. */
function dropped(event: DragEvent): void {
  event.preventDefault();
  const file = event.dataTransfer?.files[0];
  if (!file || locked.value !== null) return;
  show("draw");
  if (file.type.startsWith("image/")) void takeImage(file);
  else void takeAdapter(file);
}
