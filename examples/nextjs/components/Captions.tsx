import { memo } from "react";
import type { Interim } from "stenocast-client";
import type { Line as LineOf, View } from "@/lib/transcript";
import { useEnd } from "@/lib/useEnd";
import { clock, STATUS_TEXT } from "@/lib/words";

/** The captions panel. */
export function Captions({ view }: { view: View }) {
  const { status, connection, lines, interims, news } = view;
  const { ref, isAtEnd, onScroll, toEnd } = useEnd(view);
  const isOpen = connection === "open";
  return (
    <section className="captions" aria-label="Captions">
      <p className="status" role="status" data-status={isOpen ? status : connection}>
        {isOpen ? STATUS_TEXT[status] : CONNECTION_TEXT[connection]}
      </p>
      {/* Scrolled by keyboard, too. */}
      <div className="lines" ref={ref} onScroll={onScroll} tabIndex={0} role="group" aria-label="Lines">
        {lines.map((line) => <Line key={line.key} line={line} />)}
        <div aria-hidden="true">
          {interims.map((interim) => <Guess key={interim.id} interim={interim} />)}
        </div>
      </div>
      {!isAtEnd && <button type="button" className="to-end" onClick={toEnd}>To the newest line</button>}
      {/* Read out: new lines, and not the history. */}
      <div className="unseen" role="log" aria-live="polite" aria-relevant="additions" aria-label="New lines">
        {news.map(({ key, text, language }) => <p key={key} dir="auto" lang={language}>{text}</p>)}
      </div>
    </section>
  );
}

const CONNECTION_TEXT: Record<Exclude<View["connection"], "open">, string> = {
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  refused: "Closed",
  closed: "Closed",
};

/** Drawn once: entries do not change. */
const Line = memo(function Line({ line }: { line: LineOf }) {
  if (line.kind !== "words") return <p className={line.kind} data-seq={line.seq}>{line.text}</p>;
  const { speaker, isTurn } = line;
  return (
    <p className="line" dir="auto" lang={line.language} data-seq={line.seq}>
      {isTurn && (
        <span className="turn">
          {speaker && <bdi className="name">{speaker.name || speaker.identity}</bdi>} <time>{clock(line.startMs)}</time>
        </span>
      )}
      <span className="text">{line.text}</span>
    </p>
  );
});

function Guess({ interim }: { interim: Interim }) {
  const { speaker, language, text } = interim;
  return (
    <p className="line interim" dir="auto" lang={language ?? undefined}>
      {speaker && <span className="turn"><bdi className="name">{speaker.name || speaker.identity}</bdi></span>}
      <span className="text">{text}</span>
    </p>
  );
}
