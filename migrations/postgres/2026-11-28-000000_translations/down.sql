-- An older program knows no translations, and takes a missing number for a hole in the history: in the place of each stands
-- the status that held then.
UPDATE transcripts SET
    kind = 'status',
    status = coalesce((SELECT s.status FROM transcripts s WHERE s.session_id = transcripts.session_id
        AND s.seq < transcripts.seq AND s.kind = 'status' ORDER BY s.seq DESC LIMIT 1), 'live'),
    reason = 'translation', text = NULL, language = NULL, start_ms = NULL, end_ms = NULL
WHERE kind = 'translation';
ALTER TABLE transcripts DROP CONSTRAINT transcripts_kind_check;
ALTER TABLE transcripts ADD CONSTRAINT transcripts_kind_check CHECK (kind IN ('final', 'gap', 'status'));
ALTER TABLE transcripts DROP COLUMN "of";
