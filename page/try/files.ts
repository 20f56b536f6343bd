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

/** The bytes of `name.js`. A `fetch` of a data URL takes ten times as long. */
export async function bytesOf(name: string): Promise<ArrayBuffer> {
  await script(`${name}.js`);
  const found = window.undertow!.bytes;
  const text = found[name]!;
  delete found[name];
  const { fromBase64 } = Uint8Array as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };
  return (fromBase64 ? fromBase64.call(Uint8Array, text) : decoded(text)).buffer;
}

/** For browsers before 2025. */
function decoded(text: string): Uint8Array<ArrayBuffer> {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

/** What gzip packed. */
export async function unpacked(packed: ArrayBuffer): Promise<ArrayBuffer> {
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export async function readModel(): Promise<Model> {
  await script("model.js");
  return window.undertow!.model!;
}
