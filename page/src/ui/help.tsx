/** Everything that keys do. */

import { signal } from "@preact/signals";
import { Dialog } from "./dialog";
import { listed } from "./keys";

export const helping = signal(false);

export function Help() {
  if (!helping.value) return null;
  return (
    <Dialog title="Keys" close={() => (helping.value = false)}>
      <table class="facts keys">
        <tbody>
          {listed().map((one) => <tr key={one.keys}><th scope="row"><kbd>{one.keys}</kbd></th><td>{one.about}</td></tr>)}
          <tr><th scope="row"><kbd>Tab</kbd></th><td>From control to control; in a mask or a region, arrow keys and Space</td></tr>
        </tbody>
      </table>
      <p class="hint">The same things can be asked of the API: <a href="/docs">its paths</a>.</p>
    </Dialog>
  );
}
