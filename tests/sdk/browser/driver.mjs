// Drives a headless Chromium by commands on stdin, one JSON per line; answers one JSON line each.
import { createInterface } from "node:readline";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const axe = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8");
const profile = mkdtempSync(join(tmpdir(), "page-"));
const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.argv[2], headless: true, args, viewport: { width: 1100, height: 720 },
});
const page = context.pages()[0];
const problems = [];
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => {
  // A refused or dropped connection is the browser's own line.
  if (message.type() === "error" && !/WebSocket|Failed to load resource/.test(message.text())) problems.push(message.text());
});

const commands = {
  goto: ({ url }) => page.goto(url).then(() => null),
  evaluate: ({ js }) => page.evaluate(js),
  // waitForFunction evaluates inside the page, which its security policy forbids.
  wait: async ({ js }) => {
    const deadline = Date.now() + 25_000;
    while (!(await page.evaluate(js).catch(() => false))) {
      if (Date.now() > deadline) throw new Error("not in time");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  },
  press: ({ key }) => page.keyboard.press(key).then(() => null),
  click: ({ selector }) => page.click(selector).then(() => null),
  fill: ({ selector, text }) => page.fill(selector, text).then(() => null),
  scheme: ({ scheme }) => page.emulateMedia({ colorScheme: scheme }).then(() => null),
  size: ({ width, height }) => page.setViewportSize({ width, height }).then(() => null),
  screenshot: ({ path }) => page.screenshot({ path, animations: "disabled" }).then(() => null),
  problems: async () => problems,
  axe: async () => {
    await page.evaluate(`${axe}; null`);
    const { violations } = await page.evaluate("axe.run()");
    return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(" ")}`);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line);
  let answer;
  try {
    answer = { ok: (await commands[command](options)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context.close();
rmSync(profile, { recursive: true, force: true });
