// A participant of LiveKit's own: joins a room and prints, a JSON object a line, what reaches its handlers.
import { Room, RoomEvent, dispose } from "@livekit/rtc-node";

const [url, token] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const room = new Room();
room.on(RoomEvent.DataReceived, (payload, participant, kind, topic) => {
  say({ event: "data", topic, kind, from: participant?.identity ?? null, text: new TextDecoder().decode(payload) });
});
room.on(RoomEvent.Disconnected, (reason) => say({ event: "disconnected", reason }));
room.registerTextStreamHandler("lk.transcription", async (reader, info) => {
  const text = await reader.readAll();
  say({ event: "text", from: info.identity, attributes: reader.info.attributes, text });
});
await room.connect(url, token, { autoSubscribe: false, dynacast: false });
say({ event: "joined", identity: room.localParticipant.identity });

process.stdin.resume();
process.stdin.on("end", async () => {
  await room.disconnect();
  await dispose();
  process.exit(0);
});
