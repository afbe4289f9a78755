// Types of stenocast.js, which says in its head what the events mean.

export type Status =
  | "connecting" | "live" | "waiting" | "reconnecting" | "catching_up" | "stalled" | "degraded" | "suspended" | "ended";

export type GapReason = "stt_unavailable" | "window_overflow" | "process_restart" | "decode_error" | "publisher_lost";

export interface Speaker {
  identity: string;
  name: string | null;
}

export interface Word {
  word: string;
  startMs: number;
  endMs: number;
  confidence: number | null;
}

/** Of every entry that the server keeps: numbered from 1 within its epoch, which is one life of the room's session. */
export interface Numbered {
  session: string;
  epoch: string;
  seq: number;
  id: string;
  /** Only when it could be stored nowhere. */
  durable?: false;
}

export interface Line {
  type: "transcript";
  session: string;
  epoch: string;
  /** The same for all interims of an utterance and its final. */
  id: string;
  revision: number;
  text: string;
  /** Since the session's start. */
  startMs: number;
  endMs: number;
  language: string | null;
  confidence: number | null;
  speaker: Speaker | null;
  words: Word[] | null;
  timestamp: string;
  latency: { decodeMs: number | null; sttMs: number | null; serverMs: number | null };
}

export interface Final extends Line, Omit<Numbered, "session" | "epoch" | "id"> {
  isFinal: true;
}

/** An empty text takes the utterance back. */
export interface Interim extends Line {
  isFinal: false;
  seq: null;
}

export interface Gap extends Numbered {
  type: "gap";
  startMs: number;
  endMs: number;
  reason: GapReason;
}

export interface Translation extends Numbered {
  type: "translation";
  /** The id of the final. */
  of: string;
  language: string;
  text: string;
  startMs: number;
  endMs: number;
}

/** One without a number is not kept: it is about the server's own connection. */
export interface StatusChange extends Omit<Numbered, "seq"> {
  type: "status";
  seq: number | null;
  status: Status;
  reason: string | null;
}

export interface Hello {
  type: "hello";
  session: string;
  /** Null while nothing is published. */
  epoch: string | null;
  seq: number;
  /** False: older entries are not to be had any more. */
  recovered: boolean;
  status: Status;
  protocol: number;
  pingMs: number;
}

export type Connection =
  | { state: "connecting"; attempt: number }
  | { state: "open" }
  | { state: "reconnecting"; delayMs: number; code?: number; reason?: string; status?: number; message?: string }
  | { state: "refused"; status: number; message: string }
  | { state: "closed" };

export interface StenocastEvents {
  hello: Hello;
  interim: Interim;
  final: Final;
  translation: Translation;
  gap: Gap;
  status: StatusChange;
  lost: { epoch: string; after: number };
  state: Connection;
}

export interface StenocastOptions {
  /** The room. */
  session: string;
  /** A LiveKit access token for it. */
  token: string;
  /** The server with its base path; by default where the module came from. */
  url?: string | URL;
  /**
   * Gives a newer token before this one ends, or when the server refuses it; null when there is none any more. One that
   * fails is asked again later.
   */
  renew?: () => Promise<string | null>;
  /** Resume from here … */
  epoch?: string;
  /** … after this sequence number. */
  after?: number;
}

type LiveKitEvent = "activeSpeakersChanged" | "connectionStateChanged" | "trackMuted" | "trackUnmuted";

/** What is used of a `Room` of livekit-client. */
export interface LiveKitRoom {
  readonly state: string;
  readonly localParticipant: {
    readonly identity: string;
    readonly name?: string;
    readonly isSpeaking: boolean;
    readonly audioLevel: number;
    getTrackPublication?(source: string): { readonly isMuted: boolean } | undefined;
  };
  on(event: LiveKitEvent, listener: () => void): unknown;
  off(event: LiveKitEvent, listener: () => void): unknown;
}

export class Stenocast extends EventTarget {
  constructor(options: StenocastOptions);
  /** Where a later client can resume. */
  readonly position: { epoch: string | null; after: number };
  connect(): void;
  /** Leaves for good. */
  close(): void;
  /** Replaces the token, also of the open connection. */
  setToken(token: string): void;
  /** Tells the server who is speaking now: the full list each time. */
  reportSpeakers(speakers: { identity: string; level: number; name?: string }[]): void;
  /** Reports when the own participant of a LiveKit call speaks, until this client is closed; what is returned ends it. */
  followLiveKit(room: LiveKitRoom): () => void;
  addEventListener<K extends keyof StenocastEvents>(
    type: K,
    listener: (event: CustomEvent<StenocastEvents[K]>) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof StenocastEvents>(
    type: K,
    listener: (event: CustomEvent<StenocastEvents[K]>) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
