-- What of a session's audio was decoded, sent to a recogniser, and sent again. Older rows keep 0.
ALTER TABLE sessions ADD COLUMN decoded_ms bigint NOT NULL DEFAULT 0 CHECK (decoded_ms >= 0);
ALTER TABLE sessions ADD COLUMN sent_ms bigint NOT NULL DEFAULT 0 CHECK (sent_ms >= 0);
ALTER TABLE sessions ADD COLUMN resent_ms bigint NOT NULL DEFAULT 0 CHECK (resent_ms >= 0);
