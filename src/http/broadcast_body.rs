//! The body of POST broadcast, checked field by field: an error names the path of the field and what is allowed.

use std::collections::HashSet;

use chrono::{DateTime, Datelike, Utc};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::query::MAX_SEQ;
use crate::actors::session_registry::{BroadcastEntry, FromOrigin};
use crate::bus::wire::MAX_POST_ENTRIES;
use crate::transcript::clean::{MAX_NAME_BYTES, MAX_REASON_BYTES, MAX_WORDS};
use crate::transcript::entry::MAX_TEXT_BYTES;
use crate::transcript::{
    Entry, Epoch, Gap, GapReason, Latency, SessionRecord, Slug, Speaker, Status, StatusChange, Transcript, Translation,
    Word,
};

/// Most entries of one post.
pub const MAX_ENTRIES: usize = MAX_POST_ENTRIES;
const MAX_LANGUAGE_BYTES: usize = 16;
const MAX_RECORD_ERROR_CHARS: usize = 200;

const TYPES: [&str; 4] = ["transcript", "gap", "status", "translation"];

/// A checked body.
#[derive(Debug)]
pub struct Post {
    pub slug: Slug,
    pub entries: Vec<BroadcastEntry>,
    pub from_origin: FromOrigin,
}

type Checked<T> = Result<T, ApiError>;

pub fn parse(body: &[u8]) -> Checked<Post> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request("bad_json", format!("the body is not JSON: {error}")))?;
    let root = Object::of(&value, String::new())?;
    let slug = root.slug("session")?;
    let from_origin = from_origin(&root, &slug)?;
    let has_record = from_origin.record.is_some();
    let entries = match (root.get("transcript"), root.get("transcripts")) {
        (Some(one), None) => vec![entry(one, "transcript".into(), &slug)?],
        (None, Some(Value::Array(many))) if many.is_empty() && has_record => Vec::new(),
        (None, Some(Value::Array(many))) if (1..=MAX_ENTRIES).contains(&many.len()) => {
            let numbered = many.iter().enumerate();
            numbered.map(|(n, one)| entry(one, format!("transcripts[{n}]"), &slug)).collect::<Checked<_>>()?
        }
        (None, Some(_)) => {
            return Err(ApiError::field("transcripts", format!("1 to {MAX_ENTRIES} entries are allowed")));
        }
        (Some(_), Some(_)) => return Err(ApiError::field("transcripts", "give transcript or transcripts, not both")),
        (None, None) => return Err(ApiError::field("transcripts", "required (or transcript, for one)")),
    };
    let numbered: HashSet<bool> = entries.iter().map(|e: &BroadcastEntry| e.numbered).collect();
    if numbered.len() > 1 {
        return Err(ApiError::field("transcripts", "either all entries have an epoch, or none"));
    }
    let first = entries.first().map(|e| e.entry.epoch());
    if let Some(n) = entries.iter().position(|e| Some(e.entry.epoch()) != first) {
        return Err(ApiError::field(
            &format!("transcripts[{n}].epoch"),
            "another one than transcripts[0].epoch; a post is of one epoch",
        ));
    }
    let other = from_origin.record.as_ref().zip(first).is_some_and(|(record, epoch)| record.epoch != epoch);
    if other {
        return Err(ApiError::field("record.epoch", "another one than that of the entries"));
    }
    Ok(Post { slug, entries, from_origin })
}

/// A node of ours sends no such row; its texts would reach the database as they are.
fn is_odd(record: &SessionRecord) -> bool {
    let is_language = |text: &String| text.len() <= MAX_LANGUAGE_BYTES && !text.contains(char::is_control);
    let is_reason = |text: &String| GapReason::ALL.iter().any(|reason| reason.as_str() == text);
    !record.language.as_ref().is_none_or(is_language) || !record.losses.keys().all(is_reason)
}

/// What a node that numbers its entries says beside them.
fn from_origin(root: &Object, slug: &Slug) -> Checked<FromOrigin> {
    let record = root.get("record").map(|value| serde_json::from_value::<SessionRecord>(value.clone())).transpose();
    let short = |error: serde_json::Error| error.to_string().chars().take(MAX_RECORD_ERROR_CHARS).collect::<String>();
    let record = record.map_err(|error| root.fault("record", short(error)))?;
    if record.as_ref().is_some_and(is_odd) {
        return Err(root.fault("record", "its language or a reason of its losses is none that this program knows"));
    }
    if record.as_ref().is_some_and(|record| record.slug != *slug) {
        return Err(root.fault("record.slug", format!("another one than {slug}, which the post is for")));
    }
    let sent_at = root.opt("sentAt", Object::time)?;
    Ok(FromOrigin {
        record,
        begins: root.opt("begins", |o, name| o.number(name, 1, MAX_SEQ))?,
        clock_offset_ms: sent_at.map(|sent_at| (Utc::now() - sent_at).num_milliseconds()),
    })
}

fn entry(value: &Value, path: String, slug: &Slug) -> Checked<BroadcastEntry> {
    let object = Object::of(value, path)?;
    if let Some(other) = object.opt("session", Object::slug)?.filter(|other| other != slug) {
        return Err(object.fault("session", format!("is {other}, but the post is for {slug}")));
    }
    let kind = object.opt("type", |o, name| o.choice(name, &TYPES))?.unwrap_or("transcript");
    let is_interim = kind == "transcript" && !object.bool("isFinal")?;
    let epoch = object.opt("epoch", Object::epoch)?;
    let seq = object.opt("seq", |o, name| o.number(name, 1, MAX_SEQ))?;
    match (epoch, seq, is_interim) {
        (_, Some(_), true) => return Err(object.fault("seq", "an interim has none")),
        (Some(_), None, false) => return Err(object.fault("seq", "required with epoch")),
        (None, Some(_), false) => return Err(object.fault("epoch", "required with seq")),
        _ => {}
    }
    let head = Head {
        session: slug.clone(),
        epoch: epoch.unwrap_or(Epoch::nil()),
        seq,
        id: object.name("id")?,
        durable: object.opt("durable", Object::bool)?.unwrap_or(true),
    };
    let entry = match kind {
        "gap" => gap(&object, head)?,
        "status" => status(&object, head)?,
        "translation" => translation(&object, head)?,
        _ => transcript(&object, head, !is_interim)?,
    };
    Ok(BroadcastEntry { numbered: epoch.is_some(), entry })
}

/// The fields that all kinds of entry have.
struct Head {
    session: Slug,
    epoch: Epoch,
    seq: Option<u64>,
    id: String,
    durable: bool,
}

fn transcript(object: &Object, head: Head, is_final: bool) -> Checked<Entry> {
    let Head { session, epoch, seq, id, durable } = head;
    let (start_ms, end_ms) = object.span()?;
    Ok(Entry::Transcript(Transcript {
        session,
        epoch,
        seq,
        id,
        is_final,
        revision: object.opt("revision", |o, name| o.number(name, 0, u32::MAX.into()))?.unwrap_or(1) as u32,
        text: object.text("text", 0, MAX_TEXT_BYTES)?,
        start_ms,
        end_ms,
        language: object.opt("language", |o, name| o.text(name, 1, MAX_LANGUAGE_BYTES))?,
        confidence: object.opt("confidence", Object::fraction)?,
        speaker: object.opt("speaker", speaker)?,
        words: object.opt("words", words)?,
        timestamp: object.opt("timestamp", Object::time)?.unwrap_or_else(Utc::now),
        latency: object.opt("latency", latency)?.unwrap_or_default(),
        durable,
    }))
}

fn gap(object: &Object, head: Head) -> Checked<Entry> {
    let Head { session, epoch, seq, id, durable } = head;
    let (start_ms, end_ms) = object.span()?;
    let label = object.choice("reason", &GapReason::ALL.map(GapReason::as_str))?;
    let reason = GapReason::ALL.into_iter().find(|reason| reason.as_str() == label).expect("one of the choices");
    Ok(Entry::Gap(Gap { session, epoch, seq, id, start_ms, end_ms, reason, durable }))
}

const STATUSES: [Status; 8] = [
    Status::Live,
    Status::Waiting,
    Status::Reconnecting,
    Status::CatchingUp,
    Status::Stalled,
    Status::Degraded,
    Status::Suspended,
    Status::Ended,
];

fn status(object: &Object, head: Head) -> Checked<Entry> {
    let Head { session, epoch, seq, id, durable } = head;
    let label = object.choice("status", &STATUSES.map(Status::as_str))?;
    let status = STATUSES.into_iter().find(|status| status.as_str() == label).expect("one of the choices");
    let reason = object.opt("reason", |o, name| o.text(name, 0, MAX_REASON_BYTES))?;
    Ok(Entry::Status(StatusChange { session, epoch, seq, id, status, reason, durable }))
}

/// Its final need not be known here: it may be older than what this node remembers.
fn translation(object: &Object, head: Head) -> Checked<Entry> {
    let Head { session, epoch, seq, id, durable } = head;
    let (start_ms, end_ms) = object.span()?;
    let (of, language) = (object.name("of")?, object.text("language", 1, MAX_LANGUAGE_BYTES)?);
    let text = object.text("text", 0, MAX_TEXT_BYTES)?;
    Ok(Entry::Translation(Translation { session, epoch, seq, id, of, language, text, start_ms, end_ms, durable }))
}

fn speaker(parent: &Object, name: &str) -> Checked<Speaker> {
    let object = parent.object(name)?;
    let name = object.opt("name", |o, name| o.text(name, 0, MAX_NAME_BYTES))?;
    Ok(Speaker { identity: object.name("identity")?, name })
}

fn words(parent: &Object, name: &str) -> Checked<Vec<Word>> {
    let Some(Value::Array(items)) = parent.get(name).filter(|v| v.as_array().is_some_and(|a| a.len() <= MAX_WORDS))
    else {
        return Err(parent.fault(name, format!("a list of at most {MAX_WORDS} words is allowed")));
    };
    let one = |(n, item)| {
        let object = Object::of(item, parent.path(&format!("{name}[{n}]")))?;
        let (start_ms, end_ms) = object.span()?;
        let word = object.text("word", 0, MAX_NAME_BYTES)?;
        Ok(Word { word, start_ms, end_ms, confidence: object.opt("confidence", Object::fraction)? })
    };
    items.iter().enumerate().map(one).collect()
}

fn latency(parent: &Object, name: &str) -> Checked<Latency> {
    let object = parent.object(name)?;
    let ms = |name| object.opt(name, |o, name| o.number(name, 0, MAX_SEQ));
    Ok(Latency { decode_ms: ms("decodeMs")?, stt_ms: ms("sttMs")?, server_ms: ms("serverMs")? })
}

/// A JSON object and where it stands in the body.
struct Object<'a> {
    fields: &'a Map<String, Value>,
    path: String,
}

impl<'a> Object<'a> {
    fn of(value: &'a Value, path: String) -> Checked<Self> {
        let name = if path.is_empty() { "body" } else { &path };
        let fields = value.as_object().ok_or_else(|| ApiError::field(name, "an object is allowed"))?;
        Ok(Self { fields, path })
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn fault(&self, name: &str, message: impl std::fmt::Display) -> ApiError {
        ApiError::field(&self.path(name), message)
    }

    /// None when absent or null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn required(&self, name: &str) -> Checked<&'a Value> {
        self.get(name).ok_or_else(|| self.fault(name, "required"))
    }

    fn opt<T>(&self, name: &str, read: impl Fn(&Self, &str) -> Checked<T>) -> Checked<Option<T>> {
        self.get(name).map(|_| read(self, name)).transpose()
    }

    fn object(&self, name: &str) -> Checked<Object<'a>> {
        Object::of(self.required(name)?, self.path(name))
    }

    fn str(&self, name: &str) -> Checked<&'a str> {
        self.required(name)?.as_str().ok_or_else(|| self.fault(name, "a string is allowed"))
    }

    /// Text of `least` to `most` bytes; the room cleans it ([`crate::transcript::clean`]).
    fn text(&self, name: &str, least: usize, most: usize) -> Checked<String> {
        let text = self.str(name)?;
        if !(least..=most).contains(&text.len()) {
            return Err(self.fault(name, format!("{least} to {most} bytes are allowed, these are {}", text.len())));
        }
        Ok(text.to_owned())
    }

    /// An id or identity: compared byte by byte elsewhere, so nothing is removed from it.
    fn name(&self, name: &str) -> Checked<String> {
        let text = self.text(name, 1, MAX_NAME_BYTES)?;
        let clean = !self.str(name)?.contains(char::is_control);
        clean.then_some(text).ok_or_else(|| self.fault(name, "control characters are not allowed"))
    }

    fn bool(&self, name: &str) -> Checked<bool> {
        self.required(name)?.as_bool().ok_or_else(|| self.fault(name, "true or false is allowed"))
    }

    /// Reads a whole number, also one that is written as `508.0` or `5e2`: JSON has one kind of number, and JavaScript
    /// writes it so.
    fn number(&self, name: &str, low: u64, high: u64) -> Checked<u64> {
        let value = self.required(name)?;
        let is_whole = |n: &f64| n.fract() == 0.0 && (0.0..=MAX_SEQ as f64).contains(n);
        let whole = value.as_u64().or_else(|| value.as_f64().filter(is_whole).map(|n| n as u64));
        whole.filter(|n| (low..=high).contains(n)).ok_or_else(|| {
            let given = if value.is_number() { format!(", this is {value}") } else { String::new() };
            self.fault(name, format!("a whole number from {low} to {high} is allowed{given}"))
        })
    }

    fn fraction(&self, name: &str) -> Checked<f64> {
        let number = self.required(name)?.as_f64().filter(|n| (0.0..=1.0).contains(n));
        number.ok_or_else(|| self.fault(name, "a number from 0 to 1 is allowed"))
    }

    /// `startMs` and `endMs`.
    fn span(&self) -> Checked<(u64, u64)> {
        let (start, end) = (self.number("startMs", 0, MAX_SEQ)?, self.number("endMs", 0, MAX_SEQ)?);
        if end < start {
            return Err(self.fault("endMs", format!("before startMs, which is {start}")));
        }
        Ok((start, end))
    }

    fn choice<'b>(&self, name: &str, choices: &[&'b str]) -> Checked<&'b str> {
        let text = self.str(name)?;
        let found = choices.iter().find(|choice| **choice == text);
        found.copied().ok_or_else(|| self.fault(name, format!("allowed: {}", choices.join(", "))))
    }

    fn slug(&self, name: &str) -> Checked<Slug> {
        Slug::parse(self.str(name)?).map_err(|error| self.fault(name, error))
    }

    fn epoch(&self, name: &str) -> Checked<Epoch> {
        let epoch = Epoch::parse_str(self.str(name)?).ok().filter(|epoch| epoch.get_version_num() == 7);
        // Which of two epochs is the later one is told by their values.
        epoch.ok_or_else(|| self.fault(name, "a UUIDv7 is allowed"))
    }

    fn time(&self, name: &str) -> Checked<DateTime<Utc>> {
        let time = DateTime::parse_from_rfc3339(self.str(name)?).ok().map(|at| at.to_utc());
        // With its offset taken off, a time may lie in a year that has no plain ISO 8601 form.
        time.filter(|at| (0..=9999).contains(&at.year()))
            .ok_or_else(|| self.fault(name, "an ISO 8601 time such as 2026-11-22T12:00:00.123Z is allowed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::StatusCode;
    use serde_json::json;

    fn line() -> Value {
        json!({"id": "a", "isFinal": true, "text": "Hello.", "startMs": 0, "endMs": 900})
    }

    fn with(changes: Value) -> Value {
        let mut line = line();
        for (name, value) in changes.as_object().unwrap() {
            line[name] = value.clone();
        }
        json!({"session": "demo", "transcripts": [line]})
    }

    fn parsed(body: Value) -> Checked<Post> {
        parse(body.to_string().as_bytes())
    }

    #[test]
    fn a_third_partys_line_needs_little() {
        let post = parsed(json!({"session": "demo", "transcript": line()})).unwrap();
        assert_eq!(post.slug.as_str(), "demo");
        assert!(!post.entries[0].numbered);
        let interim = parsed(with(json!({"isFinal": false}))).unwrap();
        assert!(interim.entries[0].entry.is_interim());
    }

    #[test]
    fn our_own_entries_come_back_as_they_went() {
        let epoch = "0193b3f0-0000-7000-8000-000000000001";
        let entries = json!([
            {"type": "transcript", "session": "demo", "epoch": epoch, "seq": 1, "id": "a", "isFinal": true, "revision": 3,
             "text": "Hello world.", "startMs": 188, "endMs": 1284, "language": "en", "confidence": 0.97,
             "speaker": {"identity": "anna", "name": "Anna"},
             "words": [{"word": "Hello", "startMs": 188, "endMs": 735, "confidence": 0.99}],
             "timestamp": "2026-11-22T12:00:00.123Z", "latency": {"decodeMs": 21, "sttMs": 410, "serverMs": 1}},
            {"type": "gap", "session": "demo", "epoch": epoch, "seq": 2, "id": "g", "startMs": 9000, "endMs": 12000,
             "reason": "stt_unavailable"},
            {"type": "status", "session": "demo", "epoch": epoch, "seq": 3, "id": "s", "status": "live",
             "reason": "publisher connected", "durable": false},
            {"type": "translation", "session": "demo", "epoch": epoch, "seq": 4, "id": "a:fr", "of": "a",
             "language": "fr", "text": "Bonjour le monde.", "startMs": 188, "endMs": 1284},
        ]);
        let post = parsed(json!({"session": "demo", "transcripts": entries})).unwrap();
        assert!(post.entries.iter().all(|e| e.numbered));
        for (entry, sent) in post.entries.iter().zip(entries.as_array().unwrap()) {
            assert_eq!(serde_json::from_str::<Value>(&entry.entry.to_json()).unwrap(), *sent);
        }
    }

    #[test]
    fn each_fault_names_its_field() {
        let epoch = "0193b3f0-0000-7000-8000-000000000001";
        let at = |field: &str| format!("transcripts[0].{field}");
        for (body, field) in [
            (json!([]), "body".to_owned()),
            (json!({"transcript": line()}), "session".into()),
            (json!({"session": "a b", "transcript": line()}), "session".into()),
            (json!({"session": "demo"}), "transcripts".into()),
            (json!({"session": "demo", "transcripts": []}), "transcripts".into()),
            (json!({"session": "demo", "transcripts": vec![line(); 1001]}), "transcripts".into()),
            (json!({"session": "demo", "transcripts": line()}), "transcripts".into()),
            (json!({"session": "demo", "transcript": line(), "transcripts": [line()]}), "transcripts".into()),
            (json!({"session": "demo", "transcript": {"id": 1, "isFinal": true}}), "transcript.id".into()),
            (json!({"session": "demo", "transcripts": [line(), 5]}), "transcripts[1]".into()),
            (with(json!({"id": null})), at("id")),
            (with(json!({"id": "a\nb"})), at("id")),
            (with(json!({"isFinal": "yes"})), at("isFinal")),
            (with(json!({"text": "x".repeat(MAX_TEXT_BYTES + 1)})), at("text")),
            (with(json!({"startMs": -1})), at("startMs")),
            (with(json!({"startMs": 1.5})), at("startMs")),
            (with(json!({"startMs": 901})), at("endMs")),
            (with(json!({"confidence": 1.01})), at("confidence")),
            (with(json!({"speaker": {"name": "Anna"}})), at("speaker.identity")),
            (with(json!({"words": [{"word": "a", "startMs": 0, "endMs": "x"}]})), at("words[0].endMs")),
            (with(json!({"timestamp": "yesterday"})), at("timestamp")),
            (with(json!({"timestamp": "0000-01-01T00:00:00+23:59"})), at("timestamp")),
            (with(json!({"timestamp": "9999-12-31T23:59:59-00:01"})), at("timestamp")),
            (with(json!({"latency": {"sttMs": "fast"}})), at("latency.sttMs")),
            (with(json!({"type": "song"})), at("type")),
            (with(json!({"type": "gap", "reason": "boredom"})), at("reason")),
            (with(json!({"type": "status", "status": "asleep"})), at("status")),
            (with(json!({"session": "other"})), at("session")),
            (with(json!({"seq": 4})), at("epoch")),
            (with(json!({"epoch": epoch})), at("seq")),
            (with(json!({"epoch": epoch, "seq": 0})), at("seq")),
            (with(json!({"epoch": epoch, "seq": 4, "isFinal": false})), at("seq")),
        ] {
            let error = parsed(body).unwrap_err();
            assert_eq!(error.status, StatusCode::UNPROCESSABLE_ENTITY);
            assert!(error.message.starts_with(&format!("{field}: ")), "{field}: {}", error.message);
        }
    }

    #[test]
    fn what_is_not_json_is_a_bad_request() {
        for body in [&b""[..], b"{", b"\xff", b"{} {}"] {
            assert_eq!(parse(body).unwrap_err().status, StatusCode::BAD_REQUEST);
        }
        let deep = "[".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
