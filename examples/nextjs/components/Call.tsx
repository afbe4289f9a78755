import type { Participant } from "livekit-client";
import type { useCall } from "@/lib/useCall";
import { Problem } from "./Problem";

/** The participants of the call, and what one can do in it. */
export function Call({ call, isThere }: { call: ReturnType<typeof useCall>; isThere: boolean }) {
  const { room, problem } = call;
  if (!isThere) return <p className="note">There are captions only: LIVEKIT_URL is not set.</p>;
  const isIn = room && room.state !== "disconnected" && room.state !== "connecting";
  if (!isIn && problem) return <Problem text={`${problem} The captions go on.`} again={call.again} />;
  if (!isIn) return <p className="note" role="status">Joining the call…</p>;
  const me = room.localParticipant;
  return (
    <section className="call" aria-label="Call">
      <ul>
        {[me, ...room.remoteParticipants.values()].map((who) => <Person key={who.identity} who={who} isMe={who === me} />)}
      </ul>
      <button type="button" aria-pressed={me.isMicrophoneEnabled} onClick={call.toggleMicrophone}>Microphone</button>
      {/* A browser plays nothing before it was touched; iOS is strict about it. */}
      {!room.canPlaybackAudio && <button type="button" onClick={() => room.startAudio()}>Turn the sound on</button>}
      {room.state !== "connected" && <span role="status">Reconnecting…</span>}
      {problem && <span className="problem" role="alert">{problem}</span>}
    </section>
  );
}

function Person({ who, isMe }: { who: Participant; isMe: boolean }) {
  return (
    <li data-speaking={who.isSpeaking}>
      <bdi>{who.name || who.identity}</bdi>
      {isMe && " (you)"}
      {!who.isMicrophoneEnabled && <span className="quiet"> muted</span>}
    </li>
  );
}
