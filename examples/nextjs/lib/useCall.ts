"use client";

import { useEffect, useReducer, useState } from "react";
import type { Room } from "livekit-client";
import { newRoom } from "./call";
import type { Pass } from "./pass";

/** The LiveKit call of a room. Captions do not depend on it: what goes wrong here is a `problem` to show. */
export function useCall(pass: Pass | null) {
  const [room, setRoom] = useState<Room | null>(null);
  const [problem, setProblem] = useState<string | null>(null);
  const [attempt, setAttempt] = useState(0);
  const [, redraw] = useReducer((n: number) => n + 1, 0);

  useEffect(() => {
    const url = pass?.place.livekitUrl;
    if (!pass || !url) return;
    let isOver = false;
    const fail = (why: string) => isOver || setProblem(why);
    // A room for each run of this effect: strict mode runs it twice, and a room that is left while it is entered stays left.
    const entered = newRoom({ changed: redraw, lost: fail });
    const enter = async () => {
      const call = await entered;
      if (isOver) return;
      setRoom(call);
      await call.connect(url, attempt === 0 ? pass.token : ((await pass.renew()) ?? pass.token));
    };
    enter().catch((error: unknown) => fail(`The call at ${url} cannot be reached: ${messageOf(error)}.`));
    return () => {
      isOver = true;
      entered.then((call) => call.disconnect(), () => {});
      setRoom(null);
      setProblem(null);
    };
  }, [pass, attempt]);

  const toggleMicrophone = async () => {
    const me = room?.localParticipant;
    try {
      await me?.setMicrophoneEnabled(!me.isMicrophoneEnabled);
      setProblem(null);
    } catch (error) {
      setProblem(`The microphone cannot be used: ${messageOf(error)}.`);
    }
  };
  return { room, problem, toggleMicrophone, again: () => setAttempt((n) => n + 1) };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
