// A participant of a LiveKit call in Node, with livekit-client's own Room, which no server has to be there for: what would
// come over its signalling is said on stdin, one JSON line each. Arguments: the client module, livekit-client, the options.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [, , module, livekit, options] = process.argv;
const { Stenocast } = await import(pathToFileURL(module));
const { Room, setLogLevel } = await import(pathToFileURL(livekit));
setLogLevel("silent");

const room = new Room();
const me = { sid: "PA_me", identity: "anna", name: "", metadata: "", attributes: {}, tracks: [], state: 2 };
const captions = new Stenocast(JSON.parse(options));
const say = (event, detail) => console.log(JSON.stringify({ event, ...detail }));
captions.addEventListener("state", ({ detail }) => say("state", detail));
captions.followLiveKit(room);

const commands = {
  connect: () => captions.connect(),
  close: () => captions.close(),
  name: ({ name }) => room.localParticipant.updateInfo({ ...me, name }),
  call: ({ state }) => room.setAndEmitConnectionState(state),
  speak: ({ level }) => room.handleSpeakersChanged([{ sid: me.sid, level, active: level > 0 }]),
  report: ({ level }) => captions.reportSpeakers([{ identity: me.identity, level }]),
  listeners: () => say("listeners", { count: room.listenerCount("activeSpeakersChanged") }),
};
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  commands[command](options);
}
