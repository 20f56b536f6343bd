/** Pictures in the browser: opened, cut to a size, compared, written as PNG. */

import { loadable, upload } from "../api/pictures";
import type { Artifact } from "../api/types";

export type Size = [height: number, width: number];

/** The picture of a file. Throws a sentence for what is none. */
export async function opened(file: Blob): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(file);
  } catch {
    const name = file instanceof File ? file.name : "The file";
    throw new Error(`${name} is no picture that a browser reads; PNG, JPEG and WebP are.`);
  }
}

/** The middle of a picture, filling a size. */
export function cut(picture: CanvasImageSource & { width: number; height: number }, [height, width]: Size): HTMLCanvasElement {
  const canvas = blank([height, width]);
  const factor = Math.max(width / picture.width, height / picture.height);
  const [wide, high] = [picture.width * factor, picture.height * factor];
  const pen = pen2d(canvas);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
  return canvas;
}

export function blank([height, width]: Size): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

export function pen2d(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  if (!pen) throw new Error("This browser cannot draw on a canvas.");
  return pen;
}

export function png(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) => {
    canvas.toBlob((found) => (found ? resolve(found) : reject(new Error("The picture could not be written as PNG."))), "image/png");
  });
}

/** Keeps what a canvas shows on the service. */
export async function keep(canvas: HTMLCanvasElement): Promise<Artifact> {
  const kept = await upload(await png(canvas));
  return { artifact: kept.sha256 };
}

/** A picture of the service, decoded. */
export async function decoded(path: string): Promise<HTMLImageElement> {
  const image = new Image();
  image.src = await loadable(path);
  await image.decode();
  return image;
}
