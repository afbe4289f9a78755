// Gladia's JavaScript SDK, unchanged, against the service at argv[2]: streams the PCM of argv[3] and reports as JSON
// lines; argv[4] is the longest utterance in seconds, where it is not the default.
import { readFileSync } from "node:fs";
import { GladiaClient } from "@gladiaio/sdk";

const [, , apiUrl, pcmPath, longest] = process.argv;
const CHUNK_BYTES = 3200;
const CHUNK_PERIOD_MS = 10;

const report = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const pcm = readFileSync(pcmPath);
const client = new GladiaClient({ apiUrl });
const session = client.liveV2().startSession({
  encoding: "wav/pcm",
  bit_depth: 16,
  sample_rate: 16000,
  channels: 1,
  endpointing: 0.3,
  ...(longest && { maximum_duration_without_endpointing: Number(longest) }),
  language_config: { languages: ["en"] },
  messages_config: { receive_partial_transcripts: true, receive_lifecycle_events: true, receive_acknowledgments: true },
});

const kinds = {};
let sent = 0;
let acknowledged = 0;
session.on("connected", ({ attempt }) => report({ event: "connected", attempt }));
session.on("error", (error) => report({ event: "error", message: String(error) }));
session.on("message", (message) => {
  kinds[message.type] = (kinds[message.type] ?? 0) + 1;
  if (message.type === "audio_chunk" && message.acknowledged) {
    acknowledged = message.data.byte_range[1];
    report({ event: "ack", end: acknowledged });
  }
  if (message.type === "transcript" && message.data.is_final) report({ event: "final", text: message.data.utterance.text });
  if (message.type === "post_final_transcript") {
    report({ event: "full", text: message.data.transcription.full_transcript });
  }
});
session.once("ended", async ({ code }) => {
  try {
    const id = session.sessionId;
    const job = await client.liveV2().get(id);
    const page = await client.liveV2().list({ limit: 5 });
    const file = Buffer.from(await client.liveV2().getFile(id));
    const listed = page.items.some((item) => item.id === id);
    const deleted = await client.liveV2().delete(id);
    const audio = file.subarray(44).toString("hex") === pcm.toString("hex");
    report({ event: "ended", code, kinds, status: job.status, listed, riff: file.subarray(0, 4).toString(), audio, deleted });
  } catch (error) {
    report({ event: "failed", message: String(error) });
  }
});

const timer = setInterval(() => {
  if (sent < pcm.length) {
    session.sendAudio(pcm.subarray(sent, sent + CHUNK_BYTES));
    sent = Math.min(sent + CHUNK_BYTES, pcm.length);
    report({ event: "sent", end: sent });
  } else if (acknowledged === pcm.length) {
    clearInterval(timer);
    session.stopRecording();
  }
}, CHUNK_PERIOD_MS);
