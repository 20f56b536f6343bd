/** Pictures of the service as URLs for <img>: with a key their bytes are fetched, since <img> sends none. */

import { useEffect, useState } from "preact/hooks";
import { key, send } from "./client";
import type { Artifact, Picture } from "./types";

const MOST = 300;
const fetched = new Map<string, Promise<string>>();

/** A URL that <img> can load. */
export function loadable(path: string): Promise<string> {
  if (!key.value) return Promise.resolve(path);
  let known = fetched.get(path);
  if (!known) {
    known = send(path).then(async (answer) => URL.createObjectURL(await answer.blob()));
    fetched.set(path, known);
    known.catch(() => fetched.delete(path));
    forgetOldest();
  }
  return known;
}

/** The same as a hook; undefined until it is there. */
export function useLoadable(path: string | null | undefined): string | undefined {
  const direct = key.value ? undefined : (path ?? undefined);
  const [url, setUrl] = useState<string | undefined>(direct);
  useEffect(() => {
    let current = true;
    if (!path) setUrl(undefined);
    else loadable(path).then((found) => current && setUrl(found), () => current && setUrl(undefined));
    return () => {
      current = false;
    };
  }, [path, key.value]);
  return direct ?? url;
}

/** The bytes of a file. */
export async function bytesOf(path: string): Promise<Blob> {
  return (await send(path)).blob();
}

/** Keeps a picture on the service, so that requests can name it. */
export async function upload(content: Blob): Promise<Picture> {
  const headers = { "Content-Type": content.type };
  return (await (await send("/v1/artifacts", { method: "POST", body: content, headers })).json()) as Picture;
}

export function pathOf(artifact: Artifact): string {
  return `/v1/artifacts/${artifact.artifact}`;
}

function forgetOldest(): void {
  if (fetched.size <= MOST) return;
  const [path, url] = fetched.entries().next().value as [string, Promise<string>];
  fetched.delete(path);
  void url.then((found) => URL.revokeObjectURL(found), () => undefined);
}
