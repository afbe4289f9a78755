-- One life of a room. session_id is a UUIDv7 in lower case, so it sorts by start. Times are ISO 8601 in UTC with
-- milliseconds, so they sort too.
CREATE TABLE sessions (
    session_id      TEXT NOT NULL PRIMARY KEY CHECK (length(session_id) = 36),
    slug            TEXT NOT NULL CHECK (length(slug) BETWEEN 1 AND 128),
    started_at      TEXT NOT NULL,
    ended_at        TEXT,
    state           TEXT NOT NULL CHECK (state IN ('live', 'suspended', 'ended')),
    last_seq        INTEGER NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    language        TEXT,
    received_ms     INTEGER NOT NULL DEFAULT 0 CHECK (received_ms >= 0),
    inserted_ms     INTEGER NOT NULL DEFAULT 0 CHECK (inserted_ms >= 0),
    acknowledged_ms INTEGER NOT NULL DEFAULT 0 CHECK (acknowledged_ms >= 0),
    spoken_ms       INTEGER NOT NULL DEFAULT 0 CHECK (spoken_ms >= 0),
    finalised_ms    INTEGER NOT NULL DEFAULT 0 CHECK (finalised_ms >= 0),
    lost_ms         INTEGER NOT NULL DEFAULT 0 CHECK (lost_ms >= 0),
    losses          TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(losses)),
    created_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
-- The latest sessions of a room; retention.
CREATE INDEX sessions_slug ON sessions (slug, session_id DESC);
CREATE INDEX sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- The durable entries of a session, in order. No foreign key: a session's row may arrive after its entries when rows
-- are replayed, and an entry is never refused for that. NUL is refused as Postgres refuses it.
CREATE TABLE transcripts (
    session_id       TEXT NOT NULL CHECK (length(session_id) = 36),
    seq              INTEGER NOT NULL CHECK (seq >= 1),
    entry_id         TEXT NOT NULL CHECK (instr(entry_id, char(0)) = 0),
    kind             TEXT NOT NULL CHECK (kind IN ('final', 'gap', 'status')),
    slug             TEXT NOT NULL CHECK (length(slug) BETWEEN 1 AND 128),
    revision         INTEGER NOT NULL DEFAULT 0,
    text             TEXT CHECK (instr(text, char(0)) = 0),
    start_ms         INTEGER,
    end_ms           INTEGER,
    language         TEXT,
    confidence       REAL,
    speaker_identity TEXT,
    speaker_name     TEXT,
    words            TEXT CHECK (json_valid(words)),
    reason           TEXT,
    status           TEXT,
    "timestamp"      TEXT,
    decode_ms        INTEGER,
    stt_ms           INTEGER,
    server_ms        INTEGER,
    durable          INTEGER NOT NULL DEFAULT 1 CHECK (durable IN (0, 1)),
    created_at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, entry_id)
) STRICT;
-- What was said in a room between two times.
CREATE INDEX transcripts_slug_timestamp ON transcripts (slug, "timestamp");
