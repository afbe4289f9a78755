// Mints access tokens as a customer's backend does; one line of JSON out.
import { AccessToken } from "livekit-server-sdk";

const [key, secret, room] = process.argv.slice(2);
const mint = async (options, grant) => {
  const token = new AccessToken(key, secret, options);
  token.addGrant(grant);
  return token.toJwt();
};

const join = { roomJoin: true, room, canPublish: true, canSubscribe: true, canPublishData: true };
const full = { identity: "user-42", name: "Anna Ivanova", metadata: '{"role":"host"}', attributes: { lang: "ru" } };
console.log(JSON.stringify({
  viewer: await mint(full, join),
  plain: await mint({ identity: "bob" }, { roomJoin: true, room }),
  admin: await mint({ identity: "boss", ttl: "10m" }, { roomAdmin: true, room }),
  deaf: await mint({ identity: "bob" }, { roomJoin: true, room, canSubscribe: false }),
  elsewhere: await mint({ identity: "bob" }, { roomJoin: true, room: `${room}-2` }),
  lister: await mint({ identity: "bob" }, { roomList: true }),
}));
