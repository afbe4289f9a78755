// What the captions panel shows, made of what the client module hears. No React in it.

import type { Connection, Final, Gap, Hello, Interim, Speaker, Stenocast, Status } from "stenocast-client";
import { duration, GAP_TEXT } from "./words";

/** Older lines leave the page, however long the meeting. */
const MAX_LINES = 400;
/** People who speak at once are fewer. */
const MAX_INTERIMS = 20;
/** New lines that a screen reader may still have to read out. */
const MAX_NEWS = 5;
/** Changes within this time are shown together; the first one is shown at once. */
const SHOW_EVERY_MS = 50;

export type Line =
  | { kind: "words"; key: string; seq: number; text: string; startMs: number; language?: string; speaker: Speaker | null; isTurn: boolean }
  | { kind: "gap" | "marker"; key: string; seq?: number; text: string };

export interface View {
  status: Status;
  connection: Connection["state"];
  /** The server's word when it lets nobody in with this token. */
  refusal: string | null;
  lines: readonly Line[];
  interims: readonly Interim[];
  /** What was not there at the joining. */
  news: readonly { key: string; text: string; language?: string }[];
}

const EMPTY: View = { status: "waiting", connection: "connecting", refusal: null, lines: [], interims: [], news: [] };

/** For `useSyncExternalStore`. */
export class Transcript {
  #view = EMPTY;
  #shown = EMPTY;
  #shownAt = -Infinity;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #listeners = new Set<() => void>();
  #epoch: string | null = null;
  #knownSeq = 0; // up to here nothing is news
  #marks = 0;

  constructor(client?: Stenocast) {
    client?.addEventListener("hello", ({ detail }) => this.#greet(detail));
    client?.addEventListener("state", ({ detail }) => this.#connection(detail));
    client?.addEventListener("interim", ({ detail }) => this.#interim(detail));
    client?.addEventListener("final", ({ detail }) => this.#final(detail));
    client?.addEventListener("gap", ({ detail }) => this.#gap(detail));
    client?.addEventListener("lost", () => this.#mark("Some lines could not be recovered"));
    client?.addEventListener("status", ({ detail }) => this.#status(detail.status));
  }

  view = (): View => this.#shown;

  subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  #greet({ epoch, seq, recovered, status }: Hello): void {
    if (epoch && this.#epoch && epoch !== this.#epoch) this.#mark("A new session begins");
    // Of what was missed over a drop the newest lines are news; what was there before is not read out.
    this.#knownSeq = this.#epoch && recovered ? seq - MAX_NEWS : seq;
    this.#epoch = epoch ?? this.#epoch;
    // Interims of before the drop come again if they are still open.
    this.#change({ status, interims: [] });
  }

  #connection(change: Connection): void {
    this.#change({ connection: change.state, refusal: change.state === "refused" ? change.message : null });
  }

  #status(status: Status): void {
    this.#change({ status });
    if (status !== "ended") return;
    this.#change({ interims: [] });
    this.#mark("The session has ended");
  }

  #interim(entry: Interim): void {
    const others = this.#view.interims.filter(({ id }) => id !== entry.id);
    const interims = entry.text ? [...others, entry].toSorted((a, b) => a.startMs - b.startMs) : others;
    this.#change({ interims: interims.slice(-MAX_INTERIMS) });
  }

  #final({ id, epoch, seq, text, startMs, language, speaker }: Final): void {
    // Utterances that were over before this one began, and have no final, will not get one.
    const interims = this.#view.interims.filter((open) => open.id !== id && open.endMs > startMs);
    this.#change({ interims });
    if (!text) return;
    const last = this.#view.lines.at(-1);
    const isTurn = last?.kind !== "words" || last.speaker?.identity !== speaker?.identity;
    const line = { kind: "words" as const, key: `${epoch}:${id}`, seq, text, startMs, language: language ?? undefined, speaker, isTurn };
    const who = isTurn && speaker ? `${speaker.name || speaker.identity}: ` : "";
    this.#append(line, who + text);
  }

  #gap({ id, epoch, seq, startMs, endMs, reason }: Gap): void {
    const text = `${duration(endMs - startMs)} without text: ${GAP_TEXT[reason] ?? "it could not be recognised"}`;
    this.#append({ kind: "gap", key: `${epoch}:${id}`, seq, text }, text);
  }

  #mark(text: string): void {
    this.#append({ kind: "marker", key: `mark-${(this.#marks += 1)}`, text }, "");
  }

  #append(line: Line, spoken: string): void {
    // The server may not know what was shown before, and send it again.
    if (this.#view.lines.some(({ key }) => key === line.key)) return;
    const lines = [...this.#view.lines.slice(1 - MAX_LINES), line];
    this.#change({ lines });
    if (line.seq === undefined || line.seq <= this.#knownSeq) return;
    const language = line.kind === "words" ? line.language : undefined;
    this.#change({ news: [...this.#view.news.slice(1 - MAX_NEWS), { key: line.key, text: spoken, language }] });
  }

  #change(change: Partial<View>): void {
    this.#view = { ...this.#view, ...change };
    if (this.#timer !== undefined) return;
    const waitMs = Math.max(0, this.#shownAt + SHOW_EVERY_MS - performance.now());
    // Not at the next frame: a page that nobody looks at has none.
    this.#timer = setTimeout(() => this.#show(), waitMs);
  }

  #show(): void {
    this.#timer = undefined;
    this.#shownAt = performance.now();
    this.#shown = this.#view;
    for (const listener of this.#listeners) listener();
  }
}
