-- Translations of finals: `of` is the entry_id of the final, `language` that of the translation.
ALTER TABLE transcripts ADD COLUMN "of" text;
ALTER TABLE transcripts DROP CONSTRAINT transcripts_kind_check;
ALTER TABLE transcripts ADD CONSTRAINT transcripts_kind_check
    CHECK (kind IN ('final', 'gap', 'status', 'translation'));
