DROP TABLE transcripts;
DROP TABLE sessions;
