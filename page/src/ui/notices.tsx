/** Refusals and notes, read out as they come. */

import { dismiss, notices } from "../state/notices";
import { Button } from "./controls";

export function Notices() {
  return (
    <div class="notices" role="status" aria-live="polite">
      {notices.value.map((one) => (
        <div key={one.id} class={`notice ${one.kind}`}>
          <p>{one.text}</p>
          <Button onClick={() => dismiss(one.id)} aria-label="Dismiss">✕</Button>
        </div>
      ))}
    </div>
  );
}
