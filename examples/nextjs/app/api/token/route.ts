// Gives out access tokens. One token opens the LiveKit room and stenocast; key and secret never leave this server.
//
// Here stands your login: as it is, whoever can reach this address may join any room under any name.

import { AccessToken, TokenVerifier } from "livekit-server-sdk";
import { isRoom, MAX_NAME_LENGTH, ROOM_RULE } from "@/lib/rooms";

/** A laptop that has slept over the weekend comes back under its old identity. */
const RENEWED_AFTER_ITS_END_S = 3 * 24 * 3600;

interface Guest {
  room: string;
  identity: string;
  name: string;
}

/** With a token as bearer it renews that one; else the body says `{ room, name }`. */
export async function POST(request: Request): Promise<Response> {
  const { LIVEKIT_API_KEY: key, LIVEKIT_API_SECRET: secret } = process.env;
  if (!key || !secret) return refusal(500, "LIVEKIT_API_KEY and LIVEKIT_API_SECRET are not set, see .env.example.");
  const old = request.headers.get("authorization")?.replace(/^bearer /i, "");
  const guest = old ? await known(old, key, secret) : newcomer(await request.json().catch(() => null));
  if (typeof guest === "string") return refusal(old ? 401 : 400, guest);
  return Response.json(
    {
      token: await mint(guest, key, secret),
      livekitUrl: process.env.LIVEKIT_URL || null,
      stenocastUrl: process.env.STENOCAST_URL || "http://localhost:8080",
    },
    { headers: { "cache-control": "no-store" } },
  );
}

/** Who asks for the first time, or what is wrong. */
function newcomer(body: unknown): Guest | string {
  const { room, name } = (body ?? {}) as Record<string, unknown>;
  if (typeof room !== "string" || !isRoom(room)) return `This is no name of a room. ${ROOM_RULE}`;
  const asked = typeof name === "string" ? name.trim() : "";
  if (!asked || [...asked].length > MAX_NAME_LENGTH) return `A name has 1 to ${MAX_NAME_LENGTH} characters.`;
  // Two people of one name, or one person in two tabs, are two participants.
  return { room, name: asked, identity: crypto.randomUUID() };
}

/** Who has had a token of ours before, or what is wrong. */
async function known(token: string, key: string, secret: string): Promise<Guest | string> {
  try {
    const { sub, name, video } = await new TokenVerifier(key, secret).verify(token, RENEWED_AFTER_ITS_END_S);
    if (sub && video?.room) return { room: video.room, identity: sub, name: name ?? sub };
  } catch {
    // Its reason is for whoever has made the token.
  }
  return "This token cannot be renewed. Please join again.";
}

function mint({ room, identity, name }: Guest, key: string, secret: string): Promise<string> {
  const ttl = Number(process.env.TOKEN_TTL_S) || 3600;
  const token = new AccessToken(key, secret, { identity, name, ttl });
  token.addGrant({ roomJoin: true, room, canPublish: true, canSubscribe: true });
  return token.toJwt();
}

function refusal(status: number, error: string): Response {
  return Response.json({ error }, { status });
}
