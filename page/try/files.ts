/** The files beside the page. Each is a script that hands over its bytes, so that a page opened from a disk, which may
 * fetch nothing, has them too. */

import type { Model } from "./model";

declare global {
  interface Window {
    undertow?: { model?: Model; bytes: Record<string, string> };
  }
}

function script(source: string): Promise<void> {
  return new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = source;
    element.onload = () => done();
    element.onerror = () => failed(new Error(`${source} is missing beside this page`));
    document.head.append(element);
  });
}

/** The bytes of `name.js`: base64 of gzip. */
export async function bytesOf(name: string): Promise<ArrayBuffer> {
  await script(`${name}.js`);
  const found = window.undertow!.bytes;
  const packed = await fetch(`data:application/octet-stream;base64,${found[name]}`);
  delete found[name];
  return new Response(packed.body!.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export async function readModel(): Promise<Model> {
  await script("model.js");
  return window.undertow!.model!;
}
