// Prints a room's captions: a viewer for Node (20 or newer) and, as a module, for a browser.
//
//   TOKEN=… node examples/viewer.mjs http://localhost:8080 demo
//
// The server gives out the client module that fits it. That one comes back after every drop, resumes after the last line
// it has seen, and gives each durable entry once and in order; what is left for a viewer is to show them.

/** Calls `write` with a line for each entry; resolves when the room has ended, rejects when the server refuses. */
export async function view({ url, session, token, write }) {
  const { Stenocast } = await clientOf(url);
  const captions = new Stenocast({ url, session, token });
  const on = (name, show) => captions.addEventListener(name, ({ detail }) => write(show(detail)));
  on("final", (line) => `${clock(line.startMs)} ${line.speaker?.name ?? line.speaker?.identity ?? "-"}: ${line.text}`);
  on("translation", (line) => `${clock(line.startMs)} (${line.language}) ${line.text}`);
  on("gap", (gap) => `${clock(gap.startMs)} [${gap.endMs - gap.startMs} ms are missing: ${gap.reason}]`);
  on("lost", () => "[older lines are not to be had any more]");
  const end = new Promise((resolve, reject) => {
    captions.addEventListener("status", ({ detail }) => detail.status === "ended" && resolve());
    captions.addEventListener("state", ({ detail }) => {
      if (detail.state === "refused") reject(new Error(`refused: ${detail.message}`));
    });
  });
  captions.connect();
  return end.finally(() => captions.close());
}

/** A browser can import from the server's address; Node reads modules from files and from data. */
async function clientOf(url) {
  const address = new URL("stenocast.js", url.endsWith("/") ? url : `${url}/`);
  if (globalThis.document) return import(address);
  const source = await (await fetch(address)).text();
  return import(`data:text/javascript,${encodeURIComponent(source)}`);
}

function clock(ms) {
  return `[${(ms / 1000).toFixed(1)} s]`;
}

if (!globalThis.document) {
  const [, , url, session] = process.argv;
  const token = process.env.TOKEN;
  if (!url || !session || !token) {
    console.error("usage: TOKEN=… node viewer.mjs URL ROOM");
    process.exit(64);
  }
  view({ url, session, token, write: console.log }).then(
    () => process.exit(0),
    (error) => {
      console.error(`viewer: ${error.message}`);
      process.exit(1);
    },
  );
}
