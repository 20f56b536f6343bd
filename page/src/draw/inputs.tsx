/** What the picture starts from: an image, and a mask of what is drawn anew. */

import { signal } from "@preact/signals";
import { sentence } from "../api/client";
import { bytesOf, pathOf } from "../api/pictures";
import type { Job } from "../api/types";
import { form, get, set, sizeOf } from "../state/form";
import { say } from "../state/notices";
import { Button, Section, Slider } from "../ui/controls";
import { Drop } from "../ui/drop";
import { Shown } from "../ui/picture";
import { cut, keep, opened, type Size } from "./images";
import { MaskEditor } from "./mask";

/** The picture as it was given, to be cut again when the size changes. */
let source: ImageBitmap | null = null;
export const painting = signal(false);

/** Takes a file as the image to start from. */
export async function takeImage(file: Blob): Promise<void> {
  try {
    source = await opened(file);
    await useSource(sizeOf());
  } catch (error) {
    say(sentence(error), "refused");
  }
}

/** Starts from a picture that was drawn. */
export async function startFrom(job: Job, index: number): Promise<void> {
  const picture = job.pictures[index];
  if (!picture) return;
  await takeImage(await bytesOf(picture.url));
}

/** Changes the size of what is drawn; an image is cut again, and loses its mask. */
export async function resize(size: Size | null): Promise<void> {
  set("size", size);
  if (!form.value.request.image) return;
  try {
    source ??= await opened(await bytesOf(pathOf(form.value.request.image)));
    await useSource(sizeOf());
  } catch (error) {
    say(sentence(error), "refused");
  }
}

async function useSource(size: Size): Promise<void> {
  if (!source) return;
  const had = form.value.request.mask;
  set("image", await keep(cut(source, size)));
  set("mask", null);
  if (had) say("The mask was removed, because the image was cut to another size.");
}

export function removeImage(): void {
  source = null;
  set("image", null);
  set("mask", null);
}

export function Inputs() {
  const { image, mask } = form.value.request;
  return (
    <Section title="Start from an image" summary={image ? (mask ? "image and mask" : "image") : "none"} open={!!image}>
      {!image && (
        <Drop label="Choose an image" accept="image/*" take={(file) => void takeImage(file)}>
          <strong>Choose an image</strong>, drop one here, or paste it anywhere on the page.
        </Drop>
      )}
      {image && (
        <>
          <div class="input-pictures">
            <figure>
              <Shown path={pathOf(image)} alt="The image to start from" />
              <figcaption>Image, cut to the size</figcaption>
            </figure>
            {mask && (
              <figure>
                <Shown path={pathOf(mask)} alt="The mask: white is drawn anew" />
                <figcaption>Mask: white is drawn anew</figcaption>
              </figure>
            )}
          </div>
          <Slider label="Strength" hint="How much of the image may change." min={0.05} max={1} step={0.05}
            value={get("strength", 0.8)} change={(value) => set("strength", value)} />
          <div class="actions">
            <Button onClick={() => (painting.value = true)}>{mask ? "Paint the mask again" : "Paint a mask"}</Button>
            {mask && <Button onClick={() => set("mask", null)}>Remove the mask</Button>}
            <Button onClick={removeImage}>Remove the image</Button>
          </div>
        </>
      )}
      {painting.value && image && <MaskEditor image={image} size={sizeOf()} close={() => (painting.value = false)} />}
    </Section>
  );
}
