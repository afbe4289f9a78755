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
//   gap      audio that never became text: { startMs, endMs, reason }
//   status   { status, reason }
//   lost     entries were missed that the server no longer has
//   state    the connection: { state: "connecting" | "open" | "reconnecting" | "closed" | "refused", … }
//
// Each durable entry (final, gap, status) comes once and in order, over reconnects: the client resumes after the last
// sequence number it has seen.

const FIRST_DELAY_MS = 500;
const MOST_DELAY_MS = 15_000;
// A connection that has lived so long counts as good: the next drop begins with a short delay again.
const GOOD_AFTER_MS = 5_000;
const TOKEN_EXPIRED = 4001;

export class Stenocast extends EventTarget {
  #options;
  #socket = null;
  #timer = null;
  #attempt = 0;
  #epoch = null;
  #seq = 0;
  #hopeless = false;
  #wake = () => this.#retryNow();

  /**
   * @param {object} options
   * @param {string} options.session the room
   * @param {string} options.token a LiveKit access token for it
   * @param {string} [options.url] the server, by default the page's own
   * @param {() => Promise<string>} [options.renew] gives a newer token when the server refuses this one
   * @param {string} [options.epoch] resume from here …
   * @param {number} [options.after] … after this sequence number
   */
  constructor(options) {
    super();
    this.#options = { url: globalThis.location?.href, ...options };
    this.#epoch = options.epoch ?? null;
    this.#seq = options.after ?? 0;
  }

  /** Where a later client can resume: { epoch, after }. */
  get position() {
    return { epoch: this.#epoch, after: this.#seq };
  }

  connect() {
    globalThis.addEventListener?.("online", this.#wake);
    this.#hopeless = false;
    this.#open();
  }

  /** Leaves for good. */
  close() {
    globalThis.removeEventListener?.("online", this.#wake);
    this.#hopeless = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
    this.#socket = null;
    this.#say("state", { state: "closed" });
  }

  /** Replaces the token, also of the open connection. */
  setToken(token) {
    this.#options.token = token;
    this.#send({ type: "auth", token });
  }

  /** Tells the server who is speaking now: [{ identity, level, name? }], the full list each time. */
  reportSpeakers(speakers) {
    this.#send({ type: "active_speakers", at: Date.now(), speakers });
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #address(path) {
    return new URL(path, this.#options.url);
  }

  #open() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const url = this.#address("/api/realtime/transcribe");
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("session", this.#options.session);
    if (this.#epoch) {
      url.searchParams.set("epoch", this.#epoch);
      url.searchParams.set("after", this.#seq);
    }
    this.#say("state", { state: "connecting", attempt: this.#attempt });
    // The token travels in a header, so that it stays out of logs.
    let socket;
    try {
      socket = new WebSocket(url, ["stenocast.v1", `bearer.${this.#options.token}`]);
    } catch {
      // A JWT always makes a valid protocol name.
      this.#hopeless = true;
      return this.#say("state", { state: "refused", status: 401, message: "the token is not a JWT" });
    }
    this.#socket = socket;
    let openedAt = 0;
    socket.onopen = () => {
      openedAt = Date.now();
      this.#say("state", { state: "open" });
    };
    socket.onmessage = ({ data }) => {
      if (socket === this.#socket) this.#take(JSON.parse(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      if (openedAt && Date.now() - openedAt > GOOD_AFTER_MS) this.#attempt = 0;
      if (openedAt && code !== TOKEN_EXPIRED) this.#retryLater({ code, reason });
      else this.#askWhy({ code, reason });
    };
  }

  // A browser does not say why an upgrade was refused; a plain request does.
  async #askWhy(closed) {
    let status = 0;
    let message = "";
    try {
      const path = `/api/sessions/${encodeURIComponent(this.#options.session)}/transcripts?limit=1&after=${Number.MAX_SAFE_INTEGER}`;
      const headers = { authorization: `Bearer ${this.#options.token}` };
      const answer = await fetch(this.#address(path), { headers, cache: "no-store" });
      status = answer.status;
      if (!answer.ok) message = (await answer.json()).error?.message ?? "";
    } catch {
      // Out of reach: the same as no answer.
    }
    if (this.#hopeless) return;
    const refused = [400, 401, 403].includes(status);
    if (refused && this.#options.renew && this.#attempt < 3) {
      try {
        this.#options.token = await this.#options.renew();
        return this.#retryLater(closed);
      } catch {
        // No newer token: what the server said stands.
      }
    }
    if (refused || (closed.code === TOKEN_EXPIRED && !this.#options.renew)) {
      this.#hopeless = true;
      return this.#say("state", { state: "refused", status, message: message || "the token has expired" });
    }
    this.#retryLater({ ...closed, status, message });
  }

  #retryLater(why) {
    if (this.#hopeless) return;
    const most = Math.min(MOST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempt);
    // Random, so that a server that comes back is not met by everybody at once.
    const delayMs = Math.round(most * (0.5 + Math.random() / 2));
    this.#attempt += 1;
    this.#say("state", { state: "reconnecting", delayMs, ...why });
    this.#timer = setTimeout(() => this.#open(), delayMs);
  }

  #retryNow() {
    if (this.#timer && !this.#hopeless) this.#open();
  }

  #take(message) {
    if (message.type === "hello") return this.#greet(message);
    if (message.type === "error") return console.warn("stenocast:", message.code, message.message);
    if (message.seq == null) {
      if (message.type === "transcript") this.#say("interim", message);
      return;
    }
    if (message.epoch === this.#epoch && message.seq <= this.#seq) return;
    this.#epoch = message.epoch;
    this.#seq = message.seq;
    this.#say(message.type === "transcript" ? "final" : message.type, message);
  }

  #greet(hello) {
    const resumed = hello.epoch === this.#epoch && hello.recovered;
    if (!hello.recovered && this.#epoch) this.#say("lost", { epoch: this.#epoch, after: this.#seq });
    if (!resumed) {
      this.#epoch = hello.epoch;
      this.#seq = 0;
    }
    this.#say("hello", hello);
  }

  #say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
