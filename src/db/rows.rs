//! Log entries and session records as table rows, and back. The columns of each table are listed here, and only here.

use diesel::prelude::Queryable;

use super::columns::row;
use super::types::{DbJson, DbTime, DbUuid};
use crate::transcript::{
    AudioAccount, Entry, Gap, GapReason, Kind, Latency, SessionRecord, SessionState, Slug, Speaker, Status,
    StatusChange, Transcript, Translation,
};

row! {
    /// A row of table `transcripts` (without `created_at`).
    #[derive(Debug, Clone, PartialEq, Queryable)]
    pub struct TranscriptRow of transcripts {
        pub session_id: DbUuid;
        pub seq: i64;
        pub entry_id: String;
        pub kind: String;
        pub slug: String;
        pub revision: i64;
        pub text: Option<String>;
        pub start_ms: Option<i64>;
        pub end_ms: Option<i64>;
        pub language: Option<String>;
        pub confidence: Option<f64>;
        pub speaker_identity: Option<String>;
        pub speaker_name: Option<String>;
        pub words: Option<DbJson>;
        pub reason: Option<String>;
        pub status: Option<String>;
        pub timestamp: Option<DbTime>;
        pub decode_ms: Option<i64>;
        pub stt_ms: Option<i64>;
        pub server_ms: Option<i64>;
        pub durable: bool;
        /// Of a translation: `entry_id` of the final.
        pub of: Option<String>;
    }
}

row! {
    /// A row of table `sessions` (without `created_at`). `last_seq` is read from the entries where there are any.
    #[derive(Debug, Clone, PartialEq, Eq, Queryable)]
    pub struct SessionRow of sessions {
        pub session_id: DbUuid;
        pub slug: String;
        pub started_at: DbTime;
        pub ended_at: Option<DbTime> => First;
        pub state: String => UnlessEnded;
        pub last_seq: i64
            as "coalesce((SELECT max(t.seq) FROM transcripts t WHERE t.session_id = sessions.session_id), last_seq)"
            => Greatest;
        pub language: Option<String> => Newest;
        pub received_ms: i64 => Greatest;
        pub inserted_ms: i64 => Greatest;
        pub acknowledged_ms: i64 => Greatest;
        pub spoken_ms: i64 => Greatest;
        pub finalised_ms: i64 => Greatest;
        pub lost_ms: i64 => Greatest;
        pub losses: DbJson => Filled;
        pub decoded_ms: i64 => Greatest;
        pub sent_ms: i64 => Greatest;
        pub resent_ms: i64 => Greatest;
    }
}

/// Why an entry and a row do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("an entry without a number is not stored")]
    NoSeq,
    #[error("{field} is {value}; at most {max} fits", max = i64::MAX)]
    TooLarge { field: &'static str, value: u64 },
    #[error("column {0} has a value that this program does not know")]
    Unknown(&'static str),
}

impl TranscriptRow {
    pub fn new(entry: &Entry) -> Result<Self, RowError> {
        let seq = big("seq", entry.seq().ok_or(RowError::NoSeq)?)?;
        let mut row = Self::blank(DbUuid(entry.epoch()), seq, entry.id(), entry.kind(), entry.session());
        match entry {
            Entry::Transcript(t) => row.fill_transcript(t)?,
            Entry::Gap(gap) => {
                row.start_ms = Some(big("startMs", gap.start_ms)?);
                row.end_ms = Some(big("endMs", gap.end_ms)?);
                row.reason = Some(gap.reason.as_str().to_owned());
                row.durable = gap.durable;
            }
            Entry::Status(change) => {
                row.status = Some(change.status.as_str().to_owned());
                row.reason = change.reason.clone();
                row.durable = change.durable;
            }
            Entry::Translation(t) => {
                (row.start_ms, row.end_ms) = (Some(big("startMs", t.start_ms)?), Some(big("endMs", t.end_ms)?));
                (row.of, row.language, row.text) = (Some(t.of.clone()), Some(t.language.clone()), Some(t.text.clone()));
                row.durable = t.durable;
            }
        }
        Ok(row)
    }

    fn blank(session_id: DbUuid, seq: i64, entry_id: &str, kind: Kind, slug: &Slug) -> Self {
        Self {
            session_id,
            seq,
            entry_id: entry_id.to_owned(),
            kind: kind.as_str().to_owned(),
            slug: slug.as_str().to_owned(),
            revision: 0,
            text: None,
            start_ms: None,
            end_ms: None,
            language: None,
            confidence: None,
            speaker_identity: None,
            speaker_name: None,
            words: None,
            reason: None,
            status: None,
            timestamp: None,
            decode_ms: None,
            stt_ms: None,
            server_ms: None,
            durable: true,
            of: None,
        }
    }

    fn fill_transcript(&mut self, t: &Transcript) -> Result<(), RowError> {
        let json = |words| serde_json::to_string(words).expect("words have string keys and finite numbers");
        self.revision = i64::from(t.revision);
        self.text = Some(t.text.clone());
        self.start_ms = Some(big("startMs", t.start_ms)?);
        self.end_ms = Some(big("endMs", t.end_ms)?);
        self.language = t.language.clone();
        self.confidence = t.confidence;
        self.speaker_identity = t.speaker.as_ref().map(|s| s.identity.clone());
        self.speaker_name = t.speaker.as_ref().and_then(|s| s.name.clone());
        self.words = t.words.as_ref().map(|words| DbJson(json(words)));
        self.timestamp = Some(DbTime(t.timestamp));
        self.decode_ms = maybe_big("latency.decodeMs", t.latency.decode_ms)?;
        self.stt_ms = maybe_big("latency.sttMs", t.latency.stt_ms)?;
        self.server_ms = maybe_big("latency.serverMs", t.latency.server_ms)?;
        self.durable = t.durable;
        Ok(())
    }

    /// The entry that the row was made of; its JSON is the same to the byte.
    pub fn into_entry(self) -> Result<Entry, RowError> {
        let session = Slug::parse(&self.slug).map_err(|_| RowError::Unknown("slug"))?;
        let (epoch, seq, id, durable) = (self.session_id.0, Some(small("seq", self.seq)?), self.entry_id, self.durable);
        let span = |ms: Option<i64>, column| small(column, ms.ok_or(RowError::Unknown(column))?);
        match self.kind.as_str() {
            "final" => Ok(Entry::Transcript(Transcript {
                session,
                epoch,
                seq,
                id,
                is_final: true,
                revision: u32::try_from(self.revision).map_err(|_| RowError::Unknown("revision"))?,
                text: self.text.ok_or(RowError::Unknown("text"))?,
                start_ms: span(self.start_ms, "start_ms")?,
                end_ms: span(self.end_ms, "end_ms")?,
                language: self.language,
                confidence: self.confidence,
                speaker: self.speaker_identity.map(|identity| Speaker { identity, name: self.speaker_name }),
                words: from_json("words", self.words)?,
                timestamp: self.timestamp.ok_or(RowError::Unknown("timestamp"))?.0,
                latency: Latency {
                    decode_ms: maybe_small("decode_ms", self.decode_ms)?,
                    stt_ms: maybe_small("stt_ms", self.stt_ms)?,
                    server_ms: maybe_small("server_ms", self.server_ms)?,
                },
                durable,
            })),
            "gap" => {
                let known = GapReason::ALL.into_iter().find(|r| Some(r.as_str()) == self.reason.as_deref());
                let reason = known.ok_or(RowError::Unknown("reason"))?;
                let (start_ms, end_ms) = (span(self.start_ms, "start_ms")?, span(self.end_ms, "end_ms")?);
                Ok(Entry::Gap(Gap { session, epoch, seq, id, start_ms, end_ms, reason, durable }))
            }
            "status" => {
                let status = self.status.as_deref().and_then(parse_status).ok_or(RowError::Unknown("status"))?;
                Ok(Entry::Status(StatusChange { session, epoch, seq, id, status, reason: self.reason, durable }))
            }
            "translation" => Ok(Entry::Translation(Translation {
                session,
                epoch,
                seq,
                id,
                of: self.of.ok_or(RowError::Unknown("of"))?,
                language: self.language.ok_or(RowError::Unknown("language"))?,
                text: self.text.ok_or(RowError::Unknown("text"))?,
                start_ms: span(self.start_ms, "start_ms")?,
                end_ms: span(self.end_ms, "end_ms")?,
                durable,
            })),
            _ => Err(RowError::Unknown("kind")),
        }
    }
}

impl SessionRow {
    pub fn new(record: &SessionRecord) -> Result<Self, RowError> {
        Ok(Self {
            session_id: DbUuid(record.epoch),
            slug: record.slug.as_str().to_owned(),
            started_at: DbTime(record.started_at),
            ended_at: record.ended_at.map(DbTime),
            state: record.state.as_str().to_owned(),
            last_seq: big("lastSeq", record.last_seq)?,
            language: record.language.clone(),
            received_ms: big("receivedMs", record.audio.received_ms)?,
            inserted_ms: big("insertedMs", record.audio.inserted_ms)?,
            acknowledged_ms: big("acknowledgedMs", record.audio.acknowledged_ms)?,
            spoken_ms: big("spokenMs", record.audio.spoken_ms)?,
            finalised_ms: big("finalisedMs", record.audio.finalised_ms)?,
            lost_ms: big("lostMs", record.audio.lost_ms)?,
            losses: DbJson(serde_json::to_string(&record.losses).expect("a map of strings to numbers")),
            decoded_ms: big("decodedMs", record.audio.decoded_ms)?,
            sent_ms: big("sentMs", record.audio.sent_ms)?,
            resent_ms: big("resentMs", record.audio.resent_ms)?,
        })
    }

    pub fn into_record(self) -> Result<SessionRecord, RowError> {
        Ok(SessionRecord {
            epoch: self.session_id.0,
            slug: Slug::parse(&self.slug).map_err(|_| RowError::Unknown("slug"))?,
            started_at: self.started_at.0,
            ended_at: self.ended_at.map(|t| t.0),
            state: SessionState::parse(&self.state).ok_or(RowError::Unknown("state"))?,
            last_seq: small("last_seq", self.last_seq)?,
            language: self.language,
            audio: AudioAccount {
                received_ms: small("received_ms", self.received_ms)?,
                decoded_ms: small("decoded_ms", self.decoded_ms)?,
                inserted_ms: small("inserted_ms", self.inserted_ms)?,
                sent_ms: small("sent_ms", self.sent_ms)?,
                resent_ms: small("resent_ms", self.resent_ms)?,
                acknowledged_ms: small("acknowledged_ms", self.acknowledged_ms)?,
                spoken_ms: small("spoken_ms", self.spoken_ms)?,
                finalised_ms: small("finalised_ms", self.finalised_ms)?,
                lost_ms: small("lost_ms", self.lost_ms)?,
            },
            losses: from_json("losses", Some(self.losses))?.unwrap_or_default(),
        })
    }
}

fn big(field: &'static str, value: u64) -> Result<i64, RowError> {
    i64::try_from(value).map_err(|_| RowError::TooLarge { field, value })
}

fn maybe_big(field: &'static str, value: Option<u64>) -> Result<Option<i64>, RowError> {
    value.map(|v| big(field, v)).transpose()
}

fn small(column: &'static str, value: i64) -> Result<u64, RowError> {
    u64::try_from(value).map_err(|_| RowError::Unknown(column))
}

fn maybe_small(column: &'static str, value: Option<i64>) -> Result<Option<u64>, RowError> {
    value.map(|v| small(column, v)).transpose()
}

fn from_json<T: serde::de::DeserializeOwned>(
    column: &'static str,
    json: Option<DbJson>,
) -> Result<Option<T>, RowError> {
    json.map(|DbJson(text)| serde_json::from_str(&text)).transpose().map_err(|_| RowError::Unknown(column))
}

fn parse_status(text: &str) -> Option<Status> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}
