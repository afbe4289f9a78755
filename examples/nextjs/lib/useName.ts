"use client";

import { useSyncExternalStore } from "react";

const KEY = "stenocast-example.name";
const listeners = new Set<() => void>();
// Storage may be forbidden (private windows, embedded pages): then this page alone remembers.
let remembered: string | null = null;

function read(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return remembered;
  }
}

export function setName(name: string): void {
  remembered = name;
  try {
    sessionStorage.setItem(KEY, name);
  } catch {
    // Not beyond this page.
  }
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The reader's own name in this tab; undefined on the server, which does not know it. */
export function useName(): string | null | undefined {
  return useSyncExternalStore<string | null | undefined>(subscribe, read, () => undefined);
}
