-- Translations of finals: `of` is the entry_id of the final, `language` that of the translation. SQLite changes no CHECK of
-- a table that exists, so the table is made anew.
CREATE TABLE transcripts_new (
    session_id       TEXT NOT NULL CHECK (length(session_id) = 36),
    seq              INTEGER NOT NULL CHECK (seq >= 1),
    entry_id         TEXT NOT NULL CHECK (instr(entry_id, char(0)) = 0),
    kind             TEXT NOT NULL CHECK (kind IN ('final', 'gap', 'status', 'translation')),
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
    "of"             TEXT CHECK (instr("of", char(0)) = 0),
    created_at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, entry_id)
) STRICT;
INSERT INTO transcripts_new (session_id, seq, entry_id, kind, slug, revision, text, start_ms, end_ms, language, confidence, speaker_identity,
    speaker_name, words, reason, status, "timestamp", decode_ms, stt_ms, server_ms, durable, created_at)
SELECT session_id, seq, entry_id, kind, slug, revision, text, start_ms, end_ms, language, confidence, speaker_identity,
    speaker_name, words, reason, status, "timestamp", decode_ms, stt_ms, server_ms, durable, created_at
FROM transcripts;
DROP TABLE transcripts;
ALTER TABLE transcripts_new RENAME TO transcripts;
-- What was said in a room between two times.
CREATE INDEX transcripts_slug_timestamp ON transcripts (slug, "timestamp");
