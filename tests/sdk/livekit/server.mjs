// LiveKit's own server SDK, against a server at the first argument; one line of JSON out for each line of orders in.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import {
  AccessToken, EgressClient, RoomServiceClient, StreamOutput, StreamProtocol, WebhookReceiver,
} from "livekit-server-sdk";

const [url, key, secret] = process.argv.slice(2);
const rooms = new RoomServiceClient(url, key, secret);
const egress = new EgressClient(url, key, secret);
const receiver = new WebhookReceiver(key, secret);

const orders = {
  createRoom: async ({ name }) => (await rooms.createRoom({ name })).sid,
  deleteRoom: async ({ name }) => void (await rooms.deleteRoom(name)),
  listRooms: async () => (await rooms.listRooms()).map((room) => room.name),
  listParticipants: async ({ room }) => (await rooms.listParticipants(room)).map((one) => [one.identity, one.name]),
  startEgress: async ({ room, url }) => {
    const stream = new StreamOutput({ protocol: StreamProtocol.RTMP, urls: [url] });
    return (await egress.startRoomCompositeEgress(room, { stream }, { audioOnly: true })).egressId;
  },
  listEgress: async ({ room }) =>
    (await egress.listEgress({ roomName: room })).map((one) => [one.egressId, Number(one.status)]),
  stopEgress: async ({ id }) => Number((await egress.stopEgress(id)).status),
  receiveWebhook: async ({ body, authorization }) => {
    const event = await receiver.receive(body, authorization);
    return [event.event, event.room?.name ?? event.egressInfo?.roomName ?? null];
  },
  signWebhook: async ({ body }) => {
    const token = new AccessToken(key, secret, { ttl: "5m" });
    token.sha256 = createHash("sha256").update(body).digest("base64");
    return token.toJwt();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { order, ...given } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ answer: (await orders[order](given)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.status ?? ""} ${error.code ?? ""} ${error.message}` }));
  }
}
