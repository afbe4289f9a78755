// A LiveKit call. No React in it.

import type { RemoteTrack, Room } from "livekit-client";

export interface Listeners {
  /** Something that is shown is different now. */
  changed: () => void;
  /** The call is over, and nobody here has left it. */
  lost: (why: string) => void;
}

const ENDS: Record<string, string> = {
  DUPLICATE_IDENTITY: "You have joined from elsewhere with the same token.",
  SERVER_SHUTDOWN: "The LiveKit server is restarting.",
  PARTICIPANT_REMOVED: "You were removed from the call.",
  ROOM_DELETED: "The call was closed.",
  ROOM_CLOSED: "The call was closed.",
};

/** A room that is not entered yet. Loads half a megabyte that a page without a call does not need. */
export async function newRoom({ changed, lost }: Listeners): Promise<Room> {
  const { Room, RoomEvent, DisconnectReason } = await import("livekit-client");
  const room = new Room();
  const changes = [
    RoomEvent.ConnectionStateChanged, RoomEvent.ActiveSpeakersChanged, RoomEvent.AudioPlaybackStatusChanged,
    RoomEvent.ParticipantConnected, RoomEvent.ParticipantDisconnected, RoomEvent.ParticipantNameChanged,
    RoomEvent.TrackPublished, RoomEvent.TrackUnpublished, RoomEvent.TrackMuted, RoomEvent.TrackUnmuted,
    RoomEvent.LocalTrackPublished, RoomEvent.LocalTrackUnpublished,
  ];
  for (const change of changes) room.on(change, changed);
  room.on(RoomEvent.TrackSubscribed, play).on(RoomEvent.TrackUnsubscribed, stop);
  room.on(RoomEvent.Disconnected, (reason) => {
    if (reason === DisconnectReason.CLIENT_INITIATED) return;
    lost(ENDS[DisconnectReason[reason ?? 0] ?? ""] ?? "The connection to the call was lost.");
  });
  return room;
}

function play(track: RemoteTrack): void {
  if (track.kind === "audio") document.body.append(track.attach());
}

function stop(track: RemoteTrack): void {
  for (const element of track.detach()) element.remove();
}
