/** What can be done with a picture. */

import { sentence } from "../api/client";
import { bytesOf } from "../api/pictures";
import type { Job } from "../api/types";
import { startFrom } from "../draw/inputs";
import { restore } from "../state/form";
import { look } from "../state/jobs";
import { say } from "../state/notices";
import { show } from "../state/route";
import { inspected } from "../inspect/subject";
import { Button } from "../ui/controls";

export function PictureActions(props: { job: Job; index: number; closed?: () => void }) {
  const { job, index } = props;
  const then = (act: () => void) => () => {
    act();
    props.closed?.();
  };
  return (
    <div class="actions">
      <Button onClick={then(() => {
        restore(job, index);
        look(job);
        show("draw");
        say("All its settings are restored, the seed too.");
      })}>Restore settings</Button>
      <Button onClick={then(() => {
        void startFrom(job, index);
        show("draw");
      })}>Start from it</Button>
      <Button onClick={then(() => {
        inspected.value = job;
        show("inspect");
      })}>Look inside</Button>
      <Button onClick={() => void save(job, index)}>Save</Button>
    </div>
  );
}

async function save(job: Job, index: number): Promise<void> {
  const picture = job.pictures[index];
  if (!picture) return;
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await bytesOf(picture.url));
    const name = job.request.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "picture";
    link.download = `${name}-${picture.seed}.${picture.media_type.replace("image/", "")}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  } catch (error) {
    say(sentence(error), "refused");
  }
}
