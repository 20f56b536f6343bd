/** A job's server-sent events, read with fetch, since EventSource sends no key; goes on after the last event seen. */

import { Away, Refusal, present, send } from "./client";

export interface Event {
  kind: string;
  data: Record<string, unknown>;
}

const FINAL = new Set(["succeeded", "failed", "canceled", "expired"]);
const AGAIN_MS = 500;

/** Calls `heard` for every event until the job is final or `signal` aborts, across restarts of the service. */
export async function follow(job: string, heard: (event: Event) => void, signal: AbortSignal): Promise<void> {
  let last = "";
  while (!signal.aborted) {
    try {
      const headers: Record<string, string> = last ? { "Last-Event-ID": last } : {};
      const answer = await send(`/v1/jobs/${job}/events?previews=inline`, { headers, signal });
      for await (const [id, event] of read(answer)) {
        last = id || last;
        heard(event);
        if (FINAL.has(event.kind)) return;
      }
      return await pause(); // the log had ended before, or the service stops
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal) return await pause();
      if (!(error instanceof Away)) await pause();
      await present();
    }
  }
}

/** So that whoever asks again at once does not do so without end. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
}

async function* read(answer: Response): AsyncGenerator<[string, Event]> {
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest = (rest + value).replace(/\r\n/g, "\n");
    let end: number;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const block = rest.slice(0, end);
      rest = rest.slice(end + 2);
      const found = parse(block);
      if (found) yield found;
    }
  }
}

function parse(block: string): [string, Event] | null {
  const fields: Record<string, string> = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (!fields["event"] || !fields["data"]) return null;
  return [fields["id"] ?? "", { kind: fields["event"], data: JSON.parse(fields["data"]) as Record<string, unknown> }];
}
