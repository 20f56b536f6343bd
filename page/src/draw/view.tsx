/** The view to draw in. */

import { Adapters } from "./adapters";
import { Inputs } from "./inputs";
import { Prompt } from "./prompt";
import { Regions } from "./regions";
import { Settings } from "./settings";
import { Stage } from "./stage";

export function DrawView() {
  return (
    <div class="draw">
      <h1 class="visually-hidden">Draw</h1>
      <Prompt />
      <Stage />
      <section class="panel settings" aria-label="Settings">
        <Inputs />
        <Adapters />
        <Regions />
        <Settings />
      </section>
    </div>
  );
}
