#!/usr/bin/env python3
"""Posts each line of its input as a final of a room, with Python's standard library alone.

    BROADCAST_TOKEN=… python3 examples/post.py http://localhost:8080 demo anna < notes.txt

The server numbers the lines. 202 means that a line is in its outbox. Anything else that may pass is tried again with the
same id, which the server knows when it has the line already: each line is there once, whatever breaks in between.
"""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request
import uuid

FIRST_DELAY_S = 0.5
MOST_DELAY_S = 15.0
TIMEOUT_S = 10.0
# The server stops, is full, has no disk, or its proxy has lost it.
TRY_AGAIN = (429, 500, 502, 503, 504)


def post(url, token, body):
    """The server's answer to one entry, however long that takes."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/api/realtime/transcribe/broadcast",
        data=json.dumps(body).encode("utf-8"),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    delay = FIRST_DELAY_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            why = f"{error.code}: {error.read().decode('utf-8', 'replace')}"
            if error.code not in TRY_AGAIN:
                sys.exit(f"post: refused with {why}")
        except (OSError, ValueError) as error:
            why = str(error)
        print(f"post: once more, {why}", file=sys.stderr)
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(MOST_DELAY_S, 2 * delay)


def main():
    token = os.environ.get("BROADCAST_TOKEN")
    if len(sys.argv) not in (3, 4) or not token:
        sys.exit("usage: BROADCAST_TOKEN=… post.py URL ROOM [SPEAKER] < TEXT")
    url, room = sys.argv[1:3]
    speaker = {"identity": sys.argv[3]} if len(sys.argv) == 4 else None
    begun = time.monotonic()
    start_ms = 0
    for line in filter(None, map(str.strip, sys.stdin)):
        end_ms = int((time.monotonic() - begun) * 1000)
        transcript = {
            "id": f"post-{uuid.uuid4()}",
            "isFinal": True,
            "text": line,
            "startMs": start_ms,
            "endMs": end_ms,
            "speaker": speaker,
        }
        answer = post(url, token, {"session": room, "transcript": transcript})
        print(f"{answer['seq']} {line}", flush=True)
        start_ms = end_ms


if __name__ == "__main__":
    main()
