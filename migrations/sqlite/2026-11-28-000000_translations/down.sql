-- An older program knows no translations, and takes a missing number for a hole in the history: in the place of each stands
-- the status that held then.
UPDATE transcripts SET
    kind = 'status',
    status = coalesce((SELECT s.status FROM transcripts s WHERE s.session_id = transcripts.session_id
        AND s.seq < transcripts.seq AND s.kind = 'status' ORDER BY s.seq DESC LIMIT 1), 'live'),
    reason = 'translation', text = NULL, language = NULL, start_ms = NULL, end_ms = NULL
WHERE kind = 'translation';
CREATE TABLE transcripts_new (
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
INSERT INTO transcripts_new (session_id, seq, entry_id, kind, slug, revision, text, start_ms, end_ms, language, confidence, speaker_identity,
    speaker_name, words, reason, status, "timestamp", decode_ms, stt_ms, server_ms, durable, created_at)
SELECT session_id, seq, entry_id, kind, slug, revision, text, start_ms, end_ms, language, confidence, speaker_identity,
    speaker_name, words, reason, status, "timestamp", decode_ms, stt_ms, server_ms, durable, created_at
FROM transcripts;
DROP TABLE transcripts;
ALTER TABLE transcripts_new RENAME TO transcripts;
-- What was said in a room between two times.
CREATE INDEX transcripts_slug_timestamp ON transcripts (slug, "timestamp");
