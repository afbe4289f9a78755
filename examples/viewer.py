#!/usr/bin/env python3
"""Prints a room's captions, with Python's standard library alone.

    TOKEN=… python3 examples/viewer.py http://localhost:8080 demo

Reads the server-sent events. After a drop it says the id of the last entry that it has seen (`epoch:seq`), and the
server goes on behind it: each durable entry comes once and in order.
"""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

FIRST_DELAY_S = 1.0
MOST_DELAY_S = 15.0
# The server sends something at least every `pingMs` (15 s); twice as long without anything is a dead connection.
SILENCE_S = 30.0
# A token that is missing, wrong, or for another room: trying again would change nothing.
REFUSALS = (400, 401, 403)


def events(stream):
    """The events of a stream, as (id, name, data)."""
    event_id, name, data = None, "message", []
    for raw in stream:
        line = raw.decode("utf-8").rstrip("\r\n")
        field, _, value = line.partition(": ")
        if field == "id":
            event_id = value
        elif field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line and data:
            yield event_id, name, json.loads("\n".join(data))
            event_id, name, data = None, "message", []


def line_of(entry):
    """What is shown of an entry; None for what is not durable, or not text."""
    start = f"[{entry.get('startMs', 0) / 1000:.1f} s]"
    if entry["type"] == "transcript" and entry["isFinal"]:
        speaker = entry["speaker"] or {}
        return f"{start} {speaker.get('name') or speaker.get('identity') or '-'}: {entry['text']}"
    if entry["type"] == "translation":
        return f"{start} ({entry['language']}) {entry['text']}"
    if entry["type"] == "gap":
        return f"{start} [{entry['endMs'] - entry['startMs']} ms are missing: {entry['reason']}]"
    return None


def follow(url, room, token, last):
    """Prints the lines of one connection. Returns the last id, and whether the room has ended."""
    address = f"{url.rstrip('/')}/api/realtime/events?{urllib.parse.urlencode({'session': room})}"
    headers = {"Authorization": f"Bearer {token}"}
    if last:
        headers["Last-Event-ID"] = last
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=SILENCE_S) as stream:
        try:
            for event_id, name, entry in events(stream):
                if name == "close":
                    break
                last = event_id or last
                shown = line_of(entry)
                if shown:
                    print(shown, flush=True)
                if entry["type"] == "status" and entry["status"] == "ended":
                    return last, True
        except OSError as error:
            print(f"viewer: the connection broke: {error}", file=sys.stderr)
    return last, False


def main():
    token = os.environ.get("TOKEN")
    if len(sys.argv) != 3 or not token:
        sys.exit("usage: TOKEN=… viewer.py URL ROOM")
    _, url, room = sys.argv
    last, delay = None, FIRST_DELAY_S
    while True:
        before = last
        try:
            last, ended = follow(url, room, token, last)
            if ended:
                return
        except urllib.error.HTTPError as error:
            if error.code in REFUSALS:
                sys.exit(f"viewer: refused with {error.code}: {error.read().decode('utf-8', 'replace')}")
        except OSError as error:
            print(f"viewer: {error}", file=sys.stderr)
        delay = FIRST_DELAY_S if last != before else min(MOST_DELAY_S, 2 * delay)
        # Random, so that a server that comes back is not met by everybody at once.
        time.sleep(delay * random.uniform(0.25, 1.0))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
