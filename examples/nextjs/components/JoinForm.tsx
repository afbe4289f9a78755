"use client";

import { useRouter } from "next/navigation";
import { useState, type FormEvent } from "react";
import { isRoom, MAX_NAME_LENGTH, ROOM_RULE, toRoom } from "@/lib/rooms";
import { setName } from "@/lib/useName";

/** Asks for a name, and for a room where the address does not say it. */
export function JoinForm({ room }: { room?: string }) {
  const router = useRouter();
  const [problem, setProblem] = useState("");
  function join(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const asked = room ?? String(form.get("room")).trim();
    const name = String(form.get("name")).trim();
    const nearest = toRoom(asked);
    if (!isRoom(asked)) return setProblem(`${ROOM_RULE}${nearest && ` Try “${nearest}”.`}`);
    if (!name) return setProblem("A name is needed.");
    setName(name);
    if (!room) router.push(`/rooms/${asked}`);
  }
  return (
    <form className="card" onSubmit={join} noValidate>
      <h1>{room ? <bdi>{room}</bdi> : "Join a room"}</h1>
      {!room && (
        <label>
          Room
          <input name="room" required maxLength={200} autoCapitalize="none" spellCheck={false} placeholder="demo" aria-describedby="rule" />
        </label>
      )}
      <label>
        Your name
        <input name="name" required maxLength={MAX_NAME_LENGTH} autoComplete="name" dir="auto" />
      </label>
      <p id="rule" className="problem" role="alert">{problem}</p>
      <button type="submit">Join</button>
    </form>
  );
}
