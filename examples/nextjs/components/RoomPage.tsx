"use client";

import Link from "next/link";
import { useEffect } from "react";
import { useCall } from "@/lib/useCall";
import { useCaptions } from "@/lib/useCaptions";
import { useName } from "@/lib/useName";
import { usePass } from "@/lib/usePass";
import { Call } from "./Call";
import { Captions } from "./Captions";
import { JoinForm } from "./JoinForm";
import { Problem } from "./Problem";

export function RoomPage({ room }: { room: string }) {
  const name = useName();
  if (name === undefined) return null;
  return name ? <Joined key={name} room={room} name={name} /> : <JoinForm room={room} />;
}

function Joined({ room, name }: { room: string; name: string }) {
  const { pass, problem, again } = usePass(room, name);
  const { view, client } = useCaptions(pass);
  const call = useCall(pass);
  // Lines get their speakers' names from what each participant's own browser says of it.
  useEffect(() => {
    if (client && call.room) return client.followLiveKit(call.room);
  }, [client, call.room]);
  return (
    <div className="room">
      <header>
        <h1><bdi>{room}</bdi></h1>
        <Link href="/">Leave</Link>
      </header>
      {problem && <Problem text={problem} again={again} />}
      {view.refusal && <Problem text={`The captions are closed: ${view.refusal}.`} again={again} />}
      {pass && <Call call={call} isThere={pass.place.livekitUrl !== null} />}
      <Captions view={view} />
    </div>
  );
}
