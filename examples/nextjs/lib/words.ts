// The panel's own words.

import type { GapReason, Status } from "stenocast-client";

export const STATUS_TEXT: Record<Status, string> = {
  connecting: "Connecting",
  live: "Live",
  waiting: "Nobody is on air",
  reconnecting: "The recogniser is being reached again",
  catching_up: "Catching up",
  stalled: "The recogniser says nothing",
  degraded: "Degraded",
  suspended: "Paused",
  ended: "Ended",
};

export const GAP_TEXT: Record<GapReason, string> = {
  stt_unavailable: "the recogniser was out of reach",
  window_overflow: "the recogniser was away for too long",
  process_restart: "the server was restarted",
  decode_error: "the sound could not be decoded",
  publisher_lost: "the sound was interrupted",
};

export function duration(ms: number): string {
  if (ms < 950) return `${Math.max(1, Math.round(ms / 100)) / 10} s`;
  const seconds = Math.round(ms / 1000);
  return seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

export function clock(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  const parts = [Math.floor(seconds / 60) % 60, seconds % 60].map((part) => String(part).padStart(2, "0"));
  return [Math.floor(seconds / 3600), ...parts].join(":");
}
