-- One life of a room. session_id is a UUIDv7, so it sorts by start.
CREATE TABLE sessions (
    session_id      uuid PRIMARY KEY,
    slug            text NOT NULL CHECK (length(slug) BETWEEN 1 AND 128),
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    state           text NOT NULL CHECK (state IN ('live', 'suspended', 'ended')),
    last_seq        bigint NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    language        text,
    received_ms     bigint NOT NULL DEFAULT 0 CHECK (received_ms >= 0),
    inserted_ms     bigint NOT NULL DEFAULT 0 CHECK (inserted_ms >= 0),
    acknowledged_ms bigint NOT NULL DEFAULT 0 CHECK (acknowledged_ms >= 0),
    spoken_ms       bigint NOT NULL DEFAULT 0 CHECK (spoken_ms >= 0),
    finalised_ms    bigint NOT NULL DEFAULT 0 CHECK (finalised_ms >= 0),
    lost_ms         bigint NOT NULL DEFAULT 0 CHECK (lost_ms >= 0),
    losses          jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now()
);
-- The latest sessions of a room; retention.
CREATE INDEX sessions_slug ON sessions (slug, session_id DESC);
CREATE INDEX sessions_ended_at ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- The durable entries of a session, in order. No foreign key: a session's row may arrive after its entries when rows
-- are replayed, and an entry is never refused for that.
CREATE TABLE transcripts (
    session_id       uuid NOT NULL,
    seq              bigint NOT NULL CHECK (seq >= 1),
    entry_id         text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('final', 'gap', 'status')),
    slug             text NOT NULL CHECK (length(slug) BETWEEN 1 AND 128),
    revision         bigint NOT NULL DEFAULT 0,
    text             text,
    start_ms         bigint,
    end_ms           bigint,
    language         text,
    confidence       double precision,
    speaker_identity text,
    speaker_name     text,
    words            jsonb,
    reason           text,
    status           text,
    "timestamp"      timestamptz,
    decode_ms        bigint,
    stt_ms           bigint,
    server_ms        bigint,
    durable          boolean NOT NULL DEFAULT true,
    created_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, seq),
    UNIQUE (session_id, entry_id)
);
-- What was said in a room between two times.
CREATE INDEX transcripts_slug_timestamp ON transcripts (slug, "timestamp");
