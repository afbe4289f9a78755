// The captions page: shows what the client module hears.

import { Stenocast } from "./stenocast.js";

const MAX_NEWS = 5; // lines that a screen reader may still have to read out
const HEALTH_TIMEOUT_MS = 10_000;
const MAX_BLOCKS = 400; // older ones leave the page
const NEAR_END_PX = 64;
const SIZES = [0.75, 0.85, 1, 1.2, 1.45, 1.75, 2.1];
const VOICES = 8;

const STATUS_TEXT = {
  connecting: "Connecting",
  live: "Live",
  waiting: "Waiting",
  reconnecting: "Reconnecting",
  catching_up: "Catching up",
  stalled: "Stalled",
  degraded: "Degraded",
  suspended: "Paused",
  ended: "Ended",
  refused: "Refused",
};

const STATUS_HINT = {
  connecting: ["Connecting…", ""],
  live: ["Listening", "The first words will appear here."],
  waiting: ["Nobody is on air yet", "The captions begin by themselves."],
  ended: ["The session has ended", "The captions go on here if it begins again."],
};

const GAP_TEXT = {
  stt_unavailable: "the recogniser was out of reach",
  window_overflow: "the recogniser was away for too long",
  process_restart: "the server was restarted",
  decode_error: "the sound could not be decoded",
  publisher_lost: "the sound was interrupted",
};

const $ = (id) => document.getElementById(id);
const ui = Object.fromEntries(
  ["room", "badge", "badge-text", "captions", "empty", "empty-title", "empty-text", "finals", "interims", "news", "jump", "unread",
    "door", "enter", "session", "token", "refusal", "note", "theme", "smaller", "larger", "leave", "language"].map((id) => [id, $(id)]),
);

let client = null;
let following = true;
let unread = 0;
let lastVoice = null;
let lastEpoch = null;
let status = "waiting";
let connected = false;
let heardSeq = 0; // what the log had at the hello, to this number, is not read out
const shown = new Set(); // ids of finals on the page
const voices = new Map(); // speaker to colour
const translations = new Map(); // key of a final to its texts by language
let language = ""; // of the translations that are shown; empty for none

// Storage may be forbidden (private windows, embedded pages): then nothing is remembered.
const memory = {
  get(store, key) {
    try { return store().getItem(`stenocast.${key}`); } catch { return null; }
  },
  set(store, key, value) {
    try {
      if (value == null) store().removeItem(`stenocast.${key}`);
      else store().setItem(`stenocast.${key}`, value);
    } catch { /* not remembered */ }
  },
};
const tab = () => sessionStorage;
const always = () => localStorage;

// ---- appearance

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const chosen = memory.get(always, "theme");
  document.documentElement.dataset.theme = chosen ?? (prefersDark.matches ? "dark" : "light");
}

function toggleTheme() {
  const now = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  // What the system prefers anyway is not pinned: the page follows it again.
  memory.set(always, "theme", (now === "dark") === prefersDark.matches ? null : now);
  document.documentElement.dataset.theme = now;
}

function resize(steps) {
  const stored = Number.parseInt(memory.get(always, "size") ?? "", 10);
  const now = Number.isInteger(stored) && stored in SIZES ? stored : SIZES.indexOf(1);
  const next = Math.min(SIZES.length - 1, Math.max(0, now + steps));
  memory.set(always, "size", String(next));
  document.documentElement.style.setProperty("--size", SIZES[next]);
  ui.smaller.disabled = next === 0;
  ui.larger.disabled = next === SIZES.length - 1;
  follow();
}

// ---- scrolling

function atEnd() {
  const { scrollHeight, scrollTop, clientHeight } = ui.captions;
  return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
}

function follow() {
  if (following) ui.captions.scrollTop = ui.captions.scrollHeight;
}

function setFollowing(value) {
  following = value;
  if (value) unread = 0;
  ui.jump.hidden = value;
  ui.unread.textContent = unread > 0 ? String(Math.min(unread, 999)) : "";
}

function jumpToLive() {
  setFollowing(true);
  follow();
  ui.captions.focus({ preventScroll: true });
}

// ---- lines

function el(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text != null) node.textContent = text;
  return node;
}

/** A colour per speaker: the same on every screen, unless somebody else in the room has it already. */
function voiceOf(identity) {
  if (voices.has(identity)) return voices.get(identity);
  let hash = 2166136261;
  for (const byte of new TextEncoder().encode(identity)) hash = Math.imul(hash ^ byte, 16777619);
  let voice = (hash >>> 0) % VOICES;
  if (voices.size < VOICES) {
    const taken = new Set(voices.values());
    while (taken.has(voice)) voice = (voice + 1) % VOICES;
  }
  voices.set(identity, voice);
  return voice;
}

function clock(ms) {
  const seconds = Math.floor(ms / 1000);
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

function duration(ms) {
  if (ms < 950) return `${Math.max(1, Math.round(ms / 100)) / 10} s`;
  const seconds = Math.round(ms / 1000);
  return seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

function line(entry, turn) {
  const node = el("p", "line fresh");
  // By its text: names and times have a direction of their own.
  node.dir = "auto";
  if (turn) {
    node.classList.add("turn");
    const who = el("span", "who");
    if (entry.speaker) {
      const name = el("span", "name", entry.speaker.name || entry.speaker.identity);
      name.dir = "auto";
      who.append(name);
    }
    who.append(el("span", "time", clock(entry.startMs)));
    node.append(who);
  }
  if (entry.speaker) node.dataset.voice = voiceOf(entry.speaker.identity);
  if (entry.language) node.lang = entry.language;
  node.append(el("span", "text", entry.text));
  return node;
}

function append(node) {
  ui.empty.hidden = true;
  ui.finals.append(node);
  if (!following) {
    unread += 1;
    setFollowing(false);
  }
  // A reader who has scrolled up keeps what is being read, within reason.
  const most = following ? MAX_BLOCKS : 4 * MAX_BLOCKS;
  while (ui.finals.childElementCount > most) {
    const oldest = ui.finals.firstElementChild;
    shown.delete(oldest.dataset.key);
    translations.delete(oldest.dataset.key);
    oldest.remove();
  }
  follow();
}

function marker(text, kind = "") {
  append(el("div", `marker ${kind}`, text));
  lastVoice = null;
}

function interimNode(id) {
  return [...ui.interims.children].find((node) => node.dataset.id === id);
}

function showInterim(entry) {
  const old = interimNode(entry.id);
  if (!entry.text) {
    old?.remove();
    return;
  }
  ui.empty.hidden = true;
  if (old) {
    old.querySelector(".text").textContent = entry.text;
    old.dataset.endMs = entry.endMs;
  } else {
    const node = line(entry, false);
    node.classList.add("interim");
    node.dataset.id = entry.id;
    node.dataset.endMs = entry.endMs;
    ui.interims.append(node);
  }
  follow();
}

/** To screen readers: once, and only what was not there before. */
function announce(entry, text) {
  if (entry.seq <= heardSeq) return;
  const node = el("p", "", text);
  node.dir = "auto";
  if (entry.language) node.lang = entry.language;
  ui.news.append(node);
  while (ui.news.childElementCount > MAX_NEWS) ui.news.firstElementChild.remove();
}

/** Utterances that were over before this moment and have no final will not get one. */
function dropInterims(beforeMs = Infinity) {
  for (const node of [...ui.interims.children]) if (Number(node.dataset.endMs) <= beforeMs) node.remove();
}

function showFinal(entry) {
  interimNode(entry.id)?.remove();
  dropInterims(entry.startMs);
  const key = `${entry.epoch}:${entry.id}`;
  if (shown.has(key) || !entry.text) return;
  shown.add(key);
  const voice = entry.speaker?.identity ?? "";
  const node = line(entry, voice !== lastVoice);
  node.dataset.key = key;
  node.dataset.seq = entry.seq;
  append(node);
  announce(entry, voice !== lastVoice && entry.speaker ? `${entry.speaker.name || voice}: ${entry.text}` : entry.text);
  lastVoice = voice;
}

// ---- translations

/** The name of a language in the reader's own, as far as the browser knows it. */
function languageName(code) {
  try {
    return new Intl.DisplayNames(undefined, { type: "language" }).of(code) ?? code;
  } catch {
    return code;
  }
}

function offerLanguage(code) {
  if ([...ui.language.options].some((option) => option.value === code)) return;
  const option = el("option", "", languageName(code));
  option.value = code;
  ui.language.append(option);
  ui.language.hidden = false;
  // What the reader chose before comes back with the first line in it.
  if (memory.get(always, "language") === code) chooseLanguage(code);
}

function chooseLanguage(code) {
  language = code;
  ui.language.value = code;
  for (const node of ui.finals.querySelectorAll(".line")) translateLine(node);
  follow();
}

/** Puts the translation that was chosen under its line, or takes it away. */
function translateLine(node) {
  const text = language && translations.get(node.dataset.key)?.get(language);
  const old = node.querySelector(".translation");
  if (!text) return old?.remove();
  const under = old ?? el("span", "translation");
  under.lang = language;
  under.dir = "auto";
  under.textContent = text;
  if (!old) node.append(under);
}

function showTranslation(entry) {
  const key = `${entry.epoch}:${entry.of}`;
  // A translation follows its final; one whose final has left the page, or never was on it, goes nowhere.
  if (!shown.has(key)) return;
  if (!translations.has(key)) translations.set(key, new Map());
  translations.get(key).set(entry.language, entry.text);
  offerLanguage(entry.language);
  const lines = [...ui.finals.querySelectorAll(".line")];
  const node = lines.findLast((line) => line.dataset.key === key);
  if (node) translateLine(node);
  follow();
}

function forgetTranslations() {
  translations.clear();
  language = "";
  ui.language.replaceChildren(ui.language.options[0]);
  ui.language.value = "";
  ui.language.hidden = true;
}

function showGap(entry) {
  const key = `${entry.epoch}:${entry.id}`;
  if (shown.has(key)) return;
  shown.add(key);
  const why = GAP_TEXT[entry.reason] ?? "it could not be recognised";
  const text = `${duration(entry.endMs - entry.startMs)} without text: ${why}`;
  marker(text, "gap");
  announce(entry, text);
  ui.finals.lastElementChild.dataset.key = key;
}

// ---- status

function showStatus() {
  const now = connected || status === "refused" ? status : client ? "reconnecting" : "waiting";
  ui.badge.dataset.status = now;
  ui["badge-text"].textContent = STATUS_TEXT[now] ?? now;
  const [title, text] = STATUS_HINT[now] ?? [STATUS_TEXT[now] ?? now, ""];
  ui["empty-title"].textContent = title;
  ui["empty-text"].textContent = text;
  document.title = `${now === "live" ? "● " : ""}${client ? `${ui.room.textContent} · ` : ""}Live captions`;
}

function greet(hello) {
  connected = true;
  status = hello.status;
  // Interims of before the drop come again if they are still open.
  ui.interims.replaceChildren();
  if (hello.epoch && lastEpoch && hello.epoch !== lastEpoch) marker("A new session begins");
  // Of what was missed over a drop, the newest lines are news.
  const isBack = lastEpoch && hello.recovered;
  heardSeq = isBack ? hello.seq - MAX_NEWS : hello.seq;
  lastEpoch = hello.epoch ?? lastEpoch;
  showStatus();
}

function connectionChanged({ state, message }) {
  if (state === "refused") return openDoor(message || "The server refused this token.");
  if (state === "open") return;
  if (state === "connecting" && !lastEpoch && !connected) {
    ui.badge.dataset.status = "connecting";
    ui["badge-text"].textContent = STATUS_TEXT.connecting;
    return;
  }
  connected = false;
  if (client) showStatus();
}

// ---- entering and leaving

function openDoor(refusal) {
  leave();
  ui.door.hidden = false;
  ui.captions.hidden = true;
  ui.jump.hidden = true;
  ui.leave.hidden = true;
  ui.refusal.hidden = !refusal;
  if (refusal) ui.refusal.textContent = sentence(refusal);
  ui.session.value = memory.get(tab, "session") ?? "";
  status = refusal ? "refused" : "waiting";
  ui.badge.hidden = !refusal;
  showStatus();
  (ui.session.value ? ui.token : ui.session).focus();
}

function sentence(text) {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}

function leave() {
  const old = client;
  client = null;
  old?.close();
  connected = false;
  memory.set(tab, "token", null);
}

function enter(session, token) {
  client?.close();
  memory.set(tab, "session", session);
  memory.set(tab, "token", token);
  ui.door.hidden = true;
  ui.captions.hidden = false;
  ui.leave.hidden = false;
  ui.badge.hidden = false;
  ui.room.textContent = session;
  ui.finals.replaceChildren();
  ui.interims.replaceChildren();
  ui.news.replaceChildren();
  ui.empty.hidden = false;
  shown.clear();
  voices.clear();
  forgetTranslations();
  [lastVoice, lastEpoch, connected, status] = [null, null, false, "waiting"];
  setFollowing(true);
  const mine = new Stenocast({ session, token });
  client = mine;
  const on = (type, act) => mine.addEventListener(type, ({ detail }) => mine === client && act(detail));
  on("state", connectionChanged);
  on("hello", greet);
  on("interim", showInterim);
  on("final", showFinal);
  on("gap", showGap);
  on("translation", showTranslation);
  on("lost", () => marker("Some lines could not be recovered", "gap"));
  on("status", (entry) => {
    status = entry.status;
    if (status === "ended") {
      dropInterims();
      marker("The session has ended");
    }
    showStatus();
  });
  ui["empty-title"].textContent = STATUS_HINT.connecting[0];
  ui["empty-text"].textContent = "";
  mine.connect();
  ui.captions.focus({ preventScroll: true });
}

/** What the server hears with; the local recogniser knows English only. */
async function showNote() {
  try {
    const health = new URL("health", location.origin + location.pathname);
    const { recogniser } = await (await fetch(health, { cache: "no-store", signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) })).json();
    if (recogniser?.kind !== "local") return;
    ui.note.textContent = "Local recogniser: it understands English only.";
    ui.note.hidden = false;
  } catch {
    // The page works without the note.
  }
}

// ---- start

applyTheme();
resize(0);
prefersDark.addEventListener("change", applyTheme);
ui.theme.addEventListener("click", toggleTheme);
ui.smaller.addEventListener("click", () => resize(-1));
ui.larger.addEventListener("click", () => resize(1));
ui.language.addEventListener("change", () => {
  memory.set(always, "language", ui.language.value || null);
  chooseLanguage(ui.language.value);
});
ui.leave.addEventListener("click", () => openDoor(""));
ui.jump.addEventListener("click", jumpToLive);
ui.captions.addEventListener("scroll", () => {
  const end = atEnd();
  if (end !== following) setFollowing(end);
}, { passive: true });
new ResizeObserver(follow).observe(ui.captions);
ui.enter.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(ui.session.value.trim(), ui.token.value.trim());
  ui.token.value = "";
});
document.addEventListener("pointerdown", () => document.documentElement.classList.remove("tabbing"));
document.addEventListener("keydown", (event) => {
  if (event.key === "Tab") document.documentElement.classList.add("tabbing");
  if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLInputElement) return;
  const act = { "+": () => resize(1), "=": () => resize(1), "-": () => resize(-1), t: toggleTheme, End: jumpToLive }[event.key];
  if (!act || (event.key === "End" && ui.captions.hidden)) return;
  event.preventDefault();
  act();
});

const query = new URLSearchParams(location.search);
const session = query.get("session") ?? memory.get(tab, "session");
const token = query.get("token") ?? memory.get(tab, "token");
if (query.has("token")) {
  // Out of the address bar, the history and screenshots.
  query.delete("token");
  const rest = query.toString();
  history.replaceState(null, "", location.pathname + (rest ? `?${rest}` : "") + location.hash);
}
showNote();
if (session && token) enter(session, token);
else {
  if (session) memory.set(tab, "session", session);
  openDoor("");
}
