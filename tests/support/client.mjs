// Runs the client module of web/ in Node and prints its events, one JSON line each. Arguments: the module, its options.
import { pathToFileURL } from "node:url";

const { Stenocast } = await import(pathToFileURL(process.argv[2]));
const { renewed, ...options } = JSON.parse(process.argv[3]);
if (renewed) {
  options.renew = async () => {
    const next = renewed.shift() ?? null;
    if (next?.error) throw new TypeError(next.error);
    return next;
  };
}
const client = new Stenocast(options);
for (const type of ["hello", "interim", "final", "gap", "status", "lost", "state"]) {
  client.addEventListener(type, ({ detail }) => console.log(JSON.stringify({ event: type, ...detail })));
}
client.connect();
// A connection that waits for nothing would end the process.
setInterval(() => {}, 1 << 30);
