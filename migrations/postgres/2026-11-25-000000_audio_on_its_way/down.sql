ALTER TABLE sessions DROP COLUMN resent_ms;
ALTER TABLE sessions DROP COLUMN sent_ms;
ALTER TABLE sessions DROP COLUMN decoded_ms;
