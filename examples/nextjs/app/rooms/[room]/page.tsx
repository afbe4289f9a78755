import Link from "next/link";
import { RoomPage } from "@/components/RoomPage";
import { isRoom, ROOM_RULE, toRoom } from "@/lib/rooms";

export default async function Page({ params }: PageProps<"/rooms/[room]">) {
  const room = decoded((await params).room);
  if (isRoom(room)) return <RoomPage key={room} room={room} />;
  const nearest = toRoom(room);
  return (
    <div className="card">
      <h1>There is no such room</h1>
      <p>{ROOM_RULE}</p>
      {nearest && <Link href={`/rooms/${nearest}`}>{nearest}</Link>}
    </div>
  );
}

/** The parts of an address come as they stand in it. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
