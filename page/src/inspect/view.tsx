/** Looking inside: what a request needs, what may be wrong with it, where its words went, which layers take the time. */

import { restore } from "../state/form";
import { may } from "../state/service";
import { show } from "../state/route";
import { Button } from "../ui/controls";
import { Shown } from "../ui/picture";
import { DoctorPanel } from "./doctor";
import { LayersPanel } from "./layers";
import { PlanPanel } from "./plan";
import { inspected } from "./subject";
import { WordsPanel } from "./words";

export function InspectView() {
  const job = inspected.value;
  return (
    <section class="page" aria-labelledby="inspect-title">
      <header class="page-head">
        <h1 id="inspect-title">Inspect</h1>
        {job
          ? (
            <>
              <Shown path={job.pictures[0]?.url} alt="The picture that is looked into" class="tiny" />
              <p>{job.request.prompt || "no prompt"}</p>
              <Button onClick={() => {
                restore(job);
                show("draw");
              }}>Restore settings</Button>
              <Button onClick={() => (inspected.value = null)}>Another</Button>
            </>
          )
          : <Button onClick={() => show("history")}>Choose a picture</Button>}
      </header>
      <div class="panels">
        {job && may("inspect") && <WordsPanel />}
        <PlanPanel />
        {may("inspect")
          ? (
            <>
              <DoctorPanel />
              {!job && <WordsPanel />}
              <LayersPanel />
            </>
          )
          : <section class="panel"><h2>More</h2><p>The doctor, heat maps and layers need a key with the scope inspect: <code>undertow keys add NAME --scope inspect</code>.</p></section>}
      </div>
    </section>
  );
}
