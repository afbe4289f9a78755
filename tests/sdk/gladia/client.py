"""Gladia's Python SDK, unchanged, against the service at argv[1]: streams the PCM of argv[2] and reports as JSON lines.

argv[3] is the longest utterance in seconds, where it is not the default.
"""

import json
import socket
import sys
import threading
import time
from collections import Counter

from gladiaio_sdk import GladiaClient

CHUNK_BYTES = 3200
CHUNK_PERIOD_S = 0.01


lock = threading.Lock()
listening = threading.Event()
connect = socket.create_connection


def connect_once_listening(*args, **kwargs):
    """Holds the SDK's first request: it begins a session on a thread of its own, before anybody can listen to it."""
    listening.wait()
    return connect(*args, **kwargs)


socket.create_connection = connect_once_listening


def report(**line):
    with lock:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


api_url, pcm_path = sys.argv[1:3]
longest = {"maximum_duration_without_endpointing": int(sys.argv[3])} if len(sys.argv) > 3 else {}
with open(pcm_path, "rb") as file:
    pcm = file.read()
client = GladiaClient(api_url=api_url, api_key="not needed")
live = client.live_v2()
session = live.start_session(
    {
        "encoding": "wav/pcm",
        "bit_depth": 16,
        "sample_rate": 16000,
        "channels": 1,
        "endpointing": 0.3,
        **longest,
        "language_config": {"languages": ["en"]},
        "messages_config": {
            "receive_partial_transcripts": True,
            "receive_lifecycle_events": True,
            "receive_acknowledgments": True,
        },
    }
)
kinds = Counter()
acknowledged = 0
ended = threading.Event()
code = None


@session.on("message")
def on_message(message):
    global acknowledged
    kinds[message.type] += 1
    if message.type == "audio_chunk" and message.acknowledged:
        acknowledged = message.data.byte_range[1]
        report(event="ack", end=acknowledged)
    if message.type == "transcript" and message.data.is_final:
        report(event="final", text=message.data.utterance.text)
    if message.type == "post_final_transcript":
        report(event="full", text=message.data.transcription.full_transcript)


@session.on("connected")
def on_connected(message):
    report(event="connected", attempt=message.attempt)


@session.on("error")
def on_error(error):
    report(event="error", message=repr(error))


@session.on("ended")
def on_ended(message):
    global code
    code = message.code
    ended.set()


if session.status != "starting":
    report(event="failed", message=f"it is {session.status} before anybody listens")
    sys.exit(1)
listening.set()
for start in range(0, len(pcm), CHUNK_BYTES):
    chunk = pcm[start : start + CHUNK_BYTES]
    session.send_audio(chunk)
    report(event="sent", end=start + len(chunk))
    time.sleep(CHUNK_PERIOD_S)
while acknowledged < len(pcm) and not ended.is_set():
    time.sleep(CHUNK_PERIOD_S)
session.stop_recording()
if not ended.wait(30):
    report(event="failed", message="the session did not end")
    sys.exit(1)
try:
    job_id = session.session_id
    job = live.get(job_id)
    listed = any(item.id == job_id for item in live.list({"limit": 5}).items)
    file = live.get_file(job_id)
    deleted = live.delete(job_id)
    report(
        event="ended",
        code=code,
        kinds=kinds,
        status=job.status,
        listed=listed,
        riff=file[:4].decode(),
        audio=file[44:] == pcm,
        deleted=deleted,
    )
except Exception as error:  # whatever it is, the test wants to see it
    report(event="failed", message=repr(error))
