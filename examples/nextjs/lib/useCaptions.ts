"use client";

import { useEffect, useMemo, useSyncExternalStore } from "react";
import { Stenocast } from "stenocast-client";
import type { Pass } from "./pass";
import { Transcript } from "./transcript";

/** The captions of a room, and the client that they come by. */
export function useCaptions(pass: Pass | null) {
  const { client, transcript } = useMemo(() => open(pass), [pass]);
  // Strict mode does this twice: a client that was closed can be connected again.
  useEffect(() => {
    client?.connect();
    return () => client?.close();
  }, [client]);
  return { client, view: useSyncExternalStore(transcript.subscribe, transcript.view, transcript.view) };
}

/** Connects to nothing yet. */
function open(pass: Pass | null) {
  if (!pass) return { client: null, transcript: new Transcript() };
  const { room: session, token } = pass;
  const client = new Stenocast({ url: pass.place.stenocastUrl, session, token, renew: () => pass.renew() });
  return { client, transcript: new Transcript(client) };
}
