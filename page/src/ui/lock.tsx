/** A service with keys: says why it takes nobody, and asks for one, which this tab keeps. */

import { useState } from "preact/hooks";
import { key, locked, setKey } from "../api/client";
import { Button } from "./controls";

export function Lock() {
  const [secret, setSecret] = useState("");
  if (locked.value === null) return null;
  return (
    <section class="page lock" aria-labelledby="lock-title">
      <form class="panel" onSubmit={(event) => {
        event.preventDefault();
        setKey(secret.trim());
        setSecret("");
      }}>
        <h1 id="lock-title">{key.value ? "This key is not taken" : "A key is needed"}</h1>
        <p>{key.value ? "It is unknown to this service, or was revoked." : "This service draws for those who have a key."} Whoever runs it makes one with <code>undertow keys add NAME</code>.</p>
        <label for="key">Key</label>
        <input id="key" type="password" autocomplete="current-password" value={secret} onInput={(event) => setSecret(event.currentTarget.value)} />
        <p class="hint">It is kept until this tab is closed, and sent to this service alone.</p>
        <Button tone="main" type="submit" disabled={!secret.trim()}>Use this key</Button>
      </form>
    </section>
  );
}
