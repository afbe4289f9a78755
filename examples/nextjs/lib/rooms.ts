// What a room may be called: stenocast's rule, since the name stands in the address that LiveKit publishes to.

export const ROOM_RULE = "Letters without accents, digits and . _ ~ - are allowed, 128 at most.";
/** For an input's `pattern`. */
export const ROOM_PATTERN = "[A-Za-z0-9._~\\-]{1,128}";
export const MAX_NAME_LENGTH = 60;

export function isRoom(name: string): boolean {
  return new RegExp(`^${ROOM_PATTERN}$`).test(name) && name !== "." && name !== "..";
}

/** The nearest allowed name, or an empty one. */
export function toRoom(name: string): string {
  const plain = name.normalize("NFKD").replace(/\p{Mark}/gu, "");
  const room = plain.replace(/[^A-Za-z0-9._~-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 128);
  return isRoom(room) ? room : "";
}
