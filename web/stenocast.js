// A small client of stenocast's live transcripts, without dependencies.
//
//   import { Stenocast } from "./stenocast.js";
//   const captions = new Stenocast({ session: "demo", token: jwt });
//   captions.addEventListener("final", ({ detail }) => console.log(detail.text));
//   captions.connect();
//
// Events (each with `detail`):
//   hello    where the server stands: { epoch, seq, recovered, status }
//   interim  a transcript that may still change; empty text takes it back
//   final    a transcript that will not change
//   translation  a final in another language: { of, language, text }
//   gap      audio that never became text: { startMs, endMs, reason }
//   status   { status, reason }
//   lost     entries were missed that the server no longer has
//   state    the connection: { state: "connecting" | "open" | "reconnecting" | "closed" | "refused", … }
//
// Each durable entry comes once and in order, over reconnects: the client resumes after the last sequence number it has
// seen. A connection on which nothing comes for twice the server's ping interval is given up and made anew. Where a proxy
// lets no WebSocket through, the same feed is read as server-sent events (speakers cannot be reported then).
//
// With `renew` a token is replaced before it ends, on the connection that stands. In a LiveKit call,
// `captions.followLiveKit(room)` says who speaks, so that lines have names. Types are in stenocast.d.ts.

const FIRST_DELAY_MS = 1000;
const MOST_DELAY_MS = 15_000;
// A connection that has lived so long counts as good: the next drop begins with a short delay again.
const GOOD_AFTER_MS = 5_000;
// From the attempt to the open connection, and the same for the answer to a plain request.
const CONNECT_TIMEOUT_MS = 10_000;
const RENEW_TIMEOUT_MS = 30_000;
// Until a hello has said the server's.
const DEFAULT_PING_MS = 15_000;
const SILENT_PINGS = 2;
const LEAST_SILENCE_MS = 1000;
// How soon a connection must answer after a sleep.
const PROBE_TIMEOUT_MS = 5_000;
// Events of the browser that come in a burst count once.
const WAKE_SPACING_MS = 1000;
// Upgrades that fail although the server is there, before the feed is read as server-sent events.
const UPGRADES_TO_TRY = 2;
const RENEWALS_IN_A_ROW = 3;
// Of a token's life so much is left when it is renewed, at most so long before its end.
const RENEW_LEFT = 0.2;
const RENEW_AHEAD_MS = 120_000;
// Less is not worth a timer: the server says when the token has ended.
const LEAST_RENEWAL_MS = 1000;
// A longer timer of a browser fires at once.
const LONGEST_TIMER_MS = 2 ** 31 - 1;
// The server believes a report of speakers for twice as long.
const REPORT_AGAIN_MS = 1000;
const MAX_NAME_BYTES = 256;
// Of livekit-client's `RoomEvent`.
const LIVEKIT_EVENTS = ["activeSpeakersChanged", "connectionStateChanged", "trackMuted", "trackUnmuted"];
const TOKEN_EXPIRED = 4001;
// What the server itself refuses for good.
const REFUSALS = [400, 401, 403];

export class Stenocast extends EventTarget {
  #options;
  #base;
  #link = null; // the connection, open or not: { send, close, token, openedAt, isKnock }
  #retry = null;
  #attempt = 0;
  #attemptAt = 0;
  #upgradesFailed = 0;
  #renewals = 0;
  #renewal = null;
  #unfollow = null;
  #viaQuery = false;
  #epoch = null;
  #seq = 0;
  #pingMs = DEFAULT_PING_MS;
  #watch = null;
  #heardAt = 0;
  #probedAt = 0;
  #isProbed = false; // and has not answered yet
  #behind = null;
  #askedFor = null;
  #stopped = true;
  #wake = (event) => this.#woken(event);

  /**
   * @param {object} options
   * @param {string} options.session the room
   * @param {string} options.token a LiveKit access token for it
   * @param {string} [options.url] the server with its base path, by default where this module came from
   * @param {() => Promise<string | null>} [options.renew] gives a newer token before this one ends, or when the server
   *   refuses it; null when there is none any more. One that fails is asked again later.
   * @param {string} [options.epoch] resume from here …
   * @param {number} [options.after] … after this sequence number
   */
  constructor(options) {
    super();
    this.#options = { ...options, token: bare(options.token) };
    this.#base = baseOf(options.url);
    // At the page's own origin the header belongs to the page's login (HTTP Basic): a browser would ask for it again.
    this.#viaQuery = this.#base.origin === globalThis.location?.origin;
    this.#epoch = options.epoch ?? null;
    this.#seq = options.after ?? 0;
  }

  /** Where a later client can resume: { epoch, after }. */
  get position() {
    return { epoch: this.#epoch, after: this.#seq };
  }

  connect() {
    globalThis.addEventListener?.("online", this.#wake);
    globalThis.addEventListener?.("pageshow", this.#wake);
    globalThis.document?.addEventListener("visibilitychange", this.#wake);
    this.#drop();
    this.#stopped = false;
    this.#open();
  }

  /** Leaves for good. */
  close() {
    this.#unfollow?.();
    this.#stop();
    this.#say("state", { state: "closed" });
  }

  /** Replaces the token, also of the open connection. */
  setToken(token) {
    this.#options.token = bare(token);
    const link = this.#link;
    if (this.#send({ type: "auth", token: this.#options.token })) link.token = this.#options.token;
    if (link?.openedAt) this.#renewInTime(link);
  }

  /** Tells the server who is speaking now: [{ identity, level, name? }], the full list each time. */
  reportSpeakers(speakers) {
    this.#send({ type: "active_speakers", at: Date.now(), speakers });
  }

  /**
   * Reports when the own participant of a LiveKit call speaks, until this client is closed. Everybody's client does
   * this for its own participant, with the token that also opened the call: the server believes nobody about others.
   * @param {object} room a `Room` of livekit-client, which may be left and entered again
   * @returns {() => void} ends it
   */
  followLiveKit(room) {
    this.#unfollow?.();
    const me = () => room.localParticipant;
    let timer = null; // while the server is told that the participant speaks
    let stale = null; // the level of when nobody could be heard: until it changes, nothing new is known
    const speaks = () => {
      // livekit-client keeps `isSpeaking` over both.
      const isHeard = room.state === "connected" && !me().getTrackPublication?.("microphone")?.isMuted;
      if (!isHeard) stale = me().audioLevel;
      else if (!me().isSpeaking || me().audioLevel !== stale) stale = null;
      return isHeard && me().isSpeaking && stale === null;
    };
    const tell = (isSpeaking) => {
      clearInterval(timer);
      timer = isSpeaking ? setInterval(look, REPORT_AGAIN_MS, true) : null;
      this.reportSpeakers(isSpeaking ? [activityOf(me())] : []);
    };
    // A change is told at once, and what lasts again and again.
    const look = (isDue) => {
      const isSpeaking = speaks();
      if (isDue ? isSpeaking || timer : isSpeaking !== Boolean(timer)) tell(isSpeaking);
    };
    const changed = () => look(false);
    const opened = ({ detail }) => detail.state === "open" && look(true);
    for (const event of LIVEKIT_EVENTS) room.on(event, changed);
    this.addEventListener("state", opened);
    changed();
    const unfollow = () => {
      if (timer) tell(false);
      for (const event of LIVEKIT_EVENTS) room.off(event, changed);
      this.removeEventListener("state", opened);
      if (this.#unfollow === unfollow) this.#unfollow = null;
    };
    this.#unfollow = unfollow;
    return unfollow;
  }

  /** False when there is nothing that it could go by. */
  #send(message) {
    return Boolean(this.#link?.openedAt && this.#link.send(JSON.stringify(message)));
  }

  #address(path, query) {
    const url = new URL(path, this.#base);
    url.searchParams.set("session", this.#options.session);
    if (this.#epoch) {
      url.searchParams.set("epoch", this.#epoch);
      url.searchParams.set("after", this.#seq);
    }
    for (const [name, value] of Object.entries(query ?? {})) url.searchParams.set(name, value);
    return url;
  }

  // ---- one connection

  #open() {
    this.#drop();
    this.#attemptAt = Date.now();
    this.#say("state", { state: "connecting", attempt: this.#attempt });
    if (!this.#stopped) globalThis.WebSocket ? this.#openSocket() : this.#knock({ code: 0, reason: "no WebSocket" });
  }

  #openSocket() {
    const url = this.#address("api/realtime/transcribe");
    url.protocol = url.protocol.replace("http", "ws");
    let socket;
    try {
      // The token travels in a header, so that it stays out of logs.
      socket = new WebSocket(url, ["stenocast.v1", `bearer.${this.#options.token}`]);
    } catch (error) {
      // A JWT always makes a valid protocol name.
      const message = error.name === "SyntaxError" ? "the token is not a JWT" : String(error);
      return this.#refuse({ status: 401, message });
    }
    const link = this.#begin({
      send(text) {
        const isOpen = socket.readyState === WebSocket.OPEN;
        if (isOpen) socket.send(text);
        return isOpen;
      },
      close: () => socket.close(),
    });
    socket.onopen = () => {
      this.#upgradesFailed = 0;
      this.#opened(link);
    };
    socket.onmessage = ({ data }) => this.#hear(link, data);
    socket.onclose = ({ code, reason }) => this.#closed(link, { code, reason });
    // Not every implementation closes what it has not opened.
    socket.onerror = () => link.openedAt || this.#closed(link, { code: 1006, reason: "" });
  }

  #begin(parts) {
    const link = { ...parts, token: this.#options.token, openedAt: 0 };
    this.#link = link;
    this.#expect(link, CONNECT_TIMEOUT_MS, "no answer in time");
    return link;
  }

  #opened(link) {
    if (link !== this.#link) return link.close();
    link.openedAt = Date.now();
    this.#heard(link);
    this.#renewInTime(link);
    this.#say("state", { state: "open" });
  }

  #hear(link, text) {
    if (link !== this.#link) return;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return console.warn("stenocast: a message that is not JSON");
    }
    this.#take(message);
    this.#heard(link);
  }

  #heard(link) {
    if (link !== this.#link) return;
    this.#heardAt = Date.now();
    this.#isProbed = false;
    this.#expect(link, this.#silenceMs, "nothing came for too long");
  }

  get #silenceMs() {
    return Math.max(LEAST_SILENCE_MS, SILENT_PINGS * this.#pingMs);
  }

  /** Something must come within this time. */
  #expect(link, ms, reason) {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#closed(link, { code: 0, reason }), ms);
  }

  /** Lets go of the connection and of everything that waits. */
  #drop() {
    const link = this.#link;
    this.#link = null;
    clearTimeout(this.#watch);
    clearTimeout(this.#behind);
    clearTimeout(this.#retry);
    clearTimeout(this.#renewal);
    this.#behind = this.#retry = null;
    link?.close();
  }

  #closed(link, why) {
    if (link !== this.#link) return;
    this.#drop();
    if (link.openedAt && Date.now() - link.openedAt > GOOD_AFTER_MS) this.#attempt = this.#renewals = 0;
    if (why.code === TOKEN_EXPIRED && link.token === this.#options.token) {
      return this.#refused({ status: 401, message: "the token has expired" }, why);
    }
    if (link.openedAt || link.isKnock) this.#retryLater(why);
    else this.#knock(why);
  }

  // A browser does not say why an upgrade was refused. The same feed as server-sent events does, or it works.
  async #knock(why) {
    const abort = new AbortController();
    const link = this.#begin({ isKnock: true, send() {}, close: () => abort.abort() });
    const answer = await this.#request(abort.signal).catch(() => null);
    if (link !== this.#link) return;
    if (answer?.stream) {
      this.#upgradesFailed += 1;
      if (globalThis.WebSocket && this.#upgradesFailed < UPGRADES_TO_TRY) {
        this.#drop();
        return this.#retryLater({ ...why, message: "no WebSocket comes through" });
      }
      return this.#follow(link, answer.stream);
    }
    this.#drop();
    if (REFUSALS.includes(answer?.status)) this.#refused(answer, why);
    else this.#retryLater({ ...why, ...answer });
  }

  /** { stream } or { status, message } of the server; { status } of somebody else who answered in its place. */
  async #request(signal) {
    const url = (query) => this.#address("api/realtime/events", query);
    const token = this.#options.token;
    if (!this.#viaQuery) {
      const headers = { authorization: `Bearer ${token}` };
      const answer = await understood(await fetch(url(), { headers, signal, cache: "no-store" }));
      if (answer.isOurs && answer.code !== "token_missing") return answer;
    }
    // The header may be a proxy's, which keeps it to itself.
    const answer = await understood(await fetch(url({ token }), { signal, cache: "no-store" }));
    this.#viaQuery ||= answer.isOurs;
    return answer;
  }

  /** Reads server-sent events to their end. */
  async #follow(link, stream) {
    this.#opened(link);
    let end = { code: 0, reason: "the stream ended" };
    try {
      for await (const { name, data } of eventsOf(stream)) {
        if (link !== this.#link) return;
        if (name === "close") end = JSON.parse(data);
        else this.#hear(link, data);
      }
    } catch (error) {
      end = { code: 0, reason: String(error) };
    }
    // The next time begins with an upgrade again.
    this.#upgradesFailed = UPGRADES_TO_TRY - 1;
    this.#closed(link, end);
  }

  // ---- again, or never

  async #refused(answer, why) {
    if (!this.#options.renew || this.#renewals >= RENEWALS_IN_A_ROW) return this.#refuse(answer);
    const before = this.#attemptAt;
    const isOver = () => this.#stopped || before !== this.#attemptAt;
    let token;
    try {
      token = await this.#newerToken();
    } catch (error) {
      // Who gives tokens is out of reach, as everything is right after a sleep.
      if (!isOver()) this.#retryLater({ ...why, message: `no newer token: ${error?.message ?? error}` });
      return;
    }
    if (isOver()) return;
    // No newer token: what the server said stands.
    if (!token) return this.#refuse(answer);
    this.#renewals += 1;
    this.#options.token = token;
    this.#retryLater(why);
  }

  /** Renews the token before it ends. By a clock that is wrong it may have ended long ago: then the server says when. */
  #renewInTime(link) {
    clearTimeout(this.#renewal);
    const leftMs = endOf(this.#options.token) - Date.now();
    const delayMs = leftMs - Math.min(RENEW_AHEAD_MS, leftMs * RENEW_LEFT);
    if (!this.#options.renew || !(delayMs >= LEAST_RENEWAL_MS)) return;
    this.#renewal = setTimeout(() => this.#renew(link), Math.min(delayMs, LONGEST_TIMER_MS));
  }

  /** Empty when there is none any more. */
  async #newerToken() {
    return bare(await inTime(this.#options.renew(), RENEW_TIMEOUT_MS));
  }

  async #renew(link) {
    const before = this.#options.token;
    const token = await this.#newerToken().catch(() => "");
    if (this.#stopped || before !== this.#options.token) return;
    if (token && token !== before) this.setToken(token);
    else if (link === this.#link) this.#renewInTime(link);
  }

  #refuse({ status, message }) {
    this.#stop();
    this.#say("state", { state: "refused", status, message });
  }

  #stop() {
    globalThis.removeEventListener?.("online", this.#wake);
    globalThis.removeEventListener?.("pageshow", this.#wake);
    globalThis.document?.removeEventListener("visibilitychange", this.#wake);
    this.#stopped = true;
    this.#drop();
  }

  #retryLater(why) {
    if (this.#stopped) return;
    const most = Math.min(MOST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt);
    // Random, so that a server that comes back is not met by everybody at once.
    const delayMs = Math.round(most * (0.25 + 0.75 * Math.random()));
    this.#attempt += 1;
    this.#retry = setTimeout(() => this.#open(), delayMs);
    this.#say("state", { ...why, state: "reconnecting", delayMs });
  }

  /** The network is back, the page is looked at again, or the machine has slept. */
  #woken(event) {
    const isShown = globalThis.document?.visibilityState !== "hidden";
    if (this.#stopped || !isShown || (event.type === "pageshow" && !event.persisted)) return;
    const now = Date.now();
    // An attempt from before the network was back may hang for long.
    const isHanging = event.type === "online" && this.#link?.openedAt === 0;
    if (this.#retry || isHanging) {
      if (now - this.#attemptAt >= WAKE_SPACING_MS) this.#open();
    } else if (this.#link?.openedAt && !this.#isProbed && now - this.#probedAt >= WAKE_SPACING_MS) {
      this.#probedAt = now;
      this.#isProbed = true;
      if (now - this.#heardAt > this.#silenceMs) return this.#closed(this.#link, { code: 0, reason: "it has slept" });
      this.#expect(this.#link, Math.min(PROBE_TIMEOUT_MS, this.#silenceMs), "no answer after a sleep");
      this.#send({ type: "ping" });
    }
  }

  // ---- messages

  #take(message) {
    switch (message?.type) {
      case "hello":
        return this.#greet(message);
      case "ping":
        return this.#compare(message);
      case "error":
        return console.warn("stenocast:", message.code, message.message);
      case "transcript":
        if (message.seq == null) return this.#say("interim", message);
        break;
      case "status":
        // It is not kept: the server's own connection is broken, or there again.
        if (message.seq == null) return this.#say("status", message);
    }
    if (typeof message?.seq !== "number" || message.id == null) return;
    if (message.epoch === this.#epoch && message.seq <= this.#seq) return;
    this.#epoch = message.epoch;
    this.#seq = message.seq;
    this.#say(message.type === "transcript" ? "final" : message.type, message);
  }

  #greet(hello) {
    if (hello.pingMs > 0) this.#pingMs = hello.pingMs;
    const resumed = hello.epoch === this.#epoch && hello.recovered;
    if (!hello.recovered && this.#epoch) this.#say("lost", { epoch: this.#epoch, after: this.#seq });
    if (!resumed) {
      this.#epoch = hello.epoch;
      this.#seq = 0;
    }
    this.#say("hello", hello);
  }

  // Whoever is behind the log for longer than an interval asks again for what is missing; once for each number, because
  // the server may not have it any more.
  #compare(ping) {
    const isBehind = () => ping.epoch && (ping.epoch !== this.#epoch || ping.seq > this.#seq);
    const name = `${ping.epoch}:${ping.seq}`;
    if (!isBehind() || this.#behind || name === this.#askedFor) return;
    const link = this.#link;
    this.#behind = setTimeout(() => {
      this.#behind = null;
      if (!isBehind()) return;
      this.#askedFor = name;
      this.#closed(link, { code: 0, reason: "entries are missing" });
    }, this.#pingMs);
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** People paste what stands in a header. */
function bare(token) {
  return String(token ?? "").trim().replace(/^bearer\s+/i, "");
}

/** When a token ends, in ms since 1970; NaN when it does not say. */
function endOf(token) {
  try {
    const [, claims] = token.split(".");
    return JSON.parse(atob(claims.replace(/-/g, "+").replace(/_/g, "/"))).exp * 1000;
  } catch {
    return NaN;
  }
}

/** A participant of livekit-client as the server takes it: it refuses a longer name, and has the token's, too. */
function activityOf({ identity, name, audioLevel }) {
  const speaker = { identity, level: Math.min(1, Math.max(0, audioLevel || 0)) };
  return name && new TextEncoder().encode(name).length <= MAX_NAME_BYTES ? { ...speaker, name } : speaker;
}

/** Addresses are relative to it: the server may be mounted under a path. */
function baseOf(url) {
  const own = new URL(import.meta.url);
  const origin = globalThis.location?.origin;
  // In a bundle the module's address says nothing; some bundlers give the file's.
  const isServed = own.protocol.startsWith("http") && own.pathname.endsWith("/stenocast.js");
  url ??= isServed || !origin ? new URL(".", own) : origin;
  const base = new URL(url, globalThis.location?.href);
  base.protocol = base.protocol.replace("ws", "http");
  // A browser refuses requests to addresses with a login in them; it knows the login.
  base.search = base.hash = base.username = base.password = "";
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

/** What an answer says, if it is stenocast that speaks: a proxy, a login page or a captive portal may have answered. */
async function understood(response) {
  const { status } = response;
  if (status === 200 && response.headers.get("content-type")?.startsWith("text/event-stream")) {
    return { isOurs: true, stream: response.body };
  }
  const body = status < 400 ? null : await response.json().catch(() => null);
  if (status < 400) await response.body?.cancel();
  const { code, message } = body?.error ?? {};
  const isOurs = typeof code === "string" && typeof message === "string";
  // Only the server's own word counts.
  return isOurs ? { isOurs, status, code, message } : { isOurs, message: `an answer of somebody else: ${status}` };
}

/** The events of a stream, as `{ name, data }`. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n");
      const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2));
      const data = field("data").join("\n");
      if (data) yield { name: field("event")[0] ?? "message", data };
    }
  }
}

function inTime(promise, ms) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("not in time")), ms); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
