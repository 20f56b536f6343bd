/** Something that is asked of the service by a button, and takes a while. */

import { useState } from "preact/hooks";
import { sentence } from "../api/client";
import { Button } from "../ui/controls";

export interface Task<T> {
  value: T | null;
  running: boolean;
  refused: string | null;
  run: (ask: () => Promise<T>) => void;
}

export function useTask<T>(): Task<T> {
  const [value, setValue] = useState<T | null>(null);
  const [running, setRunning] = useState(false);
  const [refused, setRefused] = useState<string | null>(null);
  const run = (ask: () => Promise<T>) => {
    setRunning(true);
    setRefused(null);
    ask().then(setValue, (error) => setRefused(sentence(error))).finally(() => setRunning(false));
  };
  return { value, running, refused, run };
}

export function TaskButton<T>(props: { task: Task<T>; ask: () => Promise<T>; text: string; busy: string; disabled?: boolean }) {
  const { task, ask, text, busy } = props;
  return (
    <div class="actions" aria-live="polite">
      <Button tone="main" disabled={task.running || props.disabled} onClick={() => task.run(ask)}>{task.running ? busy : text}</Button>
      {task.refused && <p class="notice refused inline" role="alert">{task.refused}</p>}
    </div>
  );
}
