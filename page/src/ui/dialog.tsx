/** A modal dialog: the browser keeps the focus in it, and Escape closes it. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { Button } from "./controls";

export function Dialog(props: { title: string; close: () => void; wide?: boolean; children: ComponentChildren }) {
  const place = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    place.current?.showModal();
    return () => before?.focus();
  }, []);
  return (
    <dialog ref={place} class={props.wide ? "wide" : ""} aria-labelledby={id} onClose={props.close}>
      <header class="dialog-head">
        <h2 id={id}>{props.title}</h2>
        <Button onClick={() => place.current?.close()} aria-label="Close">✕</Button>
      </header>
      <div class="dialog-body">{props.children}</div>
    </dialog>
  );
}
