"use client";

import { useEffect, useState } from "react";
import { Pass } from "./pass";

/** Asks for a token once; `again` asks once more. */
export function usePass(room: string, name: string) {
  const [pass, setPass] = useState<Pass | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [attempt, setAttempt] = useState(0);
  useEffect(() => {
    // React's strict mode runs an effect twice: the first request is given up.
    const abort = new AbortController();
    Pass.ask(room, name, abort.signal).then(setPass, (error: Error) => {
      if (!abort.signal.aborted) setProblem(error.message);
    });
    return () => {
      abort.abort();
      setPass(null);
      setProblem(null);
    };
  }, [room, name, attempt]);
  return { pass, problem, again: () => setAttempt((n) => n + 1) };
}
