//! Captions on their way into a LiveKit room: which entries of a log go there, how often, and as which messages.
//!
//! Pulled from the log like a viewer: whoever sends takes the next caption when it is done with the one before, so a slow
//! server holds a cursor and a few open utterances here, and nobody else waits. Pure but for its clock.
//!
//! - `LIVEKIT_CAPTIONS=data`: the entry as viewers get it, as JSON, in data packets of [`TOPIC`] ([`messages`]).
//! - `LIVEKIT_CAPTIONS=transcription`: text streams as LiveKit's agents send them ([`stream`]).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::wire::{ContentHeader, DataPacket, Payload, StreamChunk, StreamHeader, StreamTrailer, TextHeader};
use crate::transcript::{Cursor, Entry, Item, Read, Transcript, TranscriptLog};

/// Topic of our data packets.
pub const TOPIC: &str = "stenocast.transcript";
/// Topic of LiveKit's transcriptions.
pub const TRANSCRIPTION_TOPIC: &str = "lk.transcription";
/// Longest message of a data packet: what LiveKit recommends.
pub const MAX_MESSAGE_BYTES: usize = 15 * 1024;
/// Longest piece of a text stream.
const MAX_CHUNK_BYTES: usize = 15_000;
/// Least time between two interims of a room.
const INTERIM_INTERVAL: Duration = Duration::from_millis(200);
/// A final that is older when its turn comes is no caption any more.
pub const MAX_AGE: Duration = Duration::from_secs(20);
/// Entries of one read.
const BATCH: usize = 64;

/// An entry that goes into the room.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// None for an interim.
    pub seq: Option<u64>,
    pub entry: Entry,
    /// As viewers get it.
    pub json: String,
    /// When it came into the log.
    pub shown: Instant,
}

impl Caption {
    pub fn is_final(&self) -> bool {
        self.seq.is_some()
    }

    pub fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.shown) > MAX_AGE
    }
}

/// The captions of one log, in order.
pub struct CaptionFeed {
    log: Arc<TranscriptLog>,
    changes: watch::Receiver<u64>,
    cursor: Cursor,
    finals: VecDeque<Caption>,
    /// The newest of each open utterance.
    interims: VecDeque<Caption>,
    interim_at: Instant,
    skipped: u64,
}

impl CaptionFeed {
    /// Begins after entry `after`.
    pub fn new(log: Arc<TranscriptLog>, after: u64, now: Instant) -> Self {
        let changes = log.watch();
        let (finals, interims) = (VecDeque::new(), VecDeque::new());
        Self { log, changes, cursor: Cursor::after(after), finals, interims, interim_at: now, skipped: 0 }
    }

    /// The next caption, if one is due.
    pub fn next(&mut self, now: Instant) -> Option<Caption> {
        if self.finals.is_empty() {
            self.read(now);
        }
        if let Some(caption) = self.finals.pop_front() {
            return Some(caption);
        }
        if now < self.interim_at {
            return None;
        }
        let interim = self.interims.pop_front()?;
        self.interim_at = now + INTERIM_INTERVAL;
        Some(interim)
    }

    fn read(&mut self, now: Instant) {
        // Marked before the read: what comes in during it wakes us again.
        self.changes.borrow_and_update();
        match self.log.read(&mut self.cursor, BATCH) {
            Read::Items(items) => items.into_iter().for_each(|item| self.take(&item, now)),
            Read::FellOff { first_in_ring } => {
                self.skipped += first_in_ring.saturating_sub(self.cursor.seq + 1);
                self.cursor = Cursor::after(first_in_ring - 1);
                self.changes.mark_changed();
            }
        }
    }

    fn take(&mut self, item: &Item, now: Instant) {
        let Ok(entry) = serde_json::from_str::<Entry>(&item.json) else { return };
        if matches!(entry, Entry::Status(_)) {
            return;
        }
        let shown = item.stamp.map_or(now, |stamp| stamp.shown);
        let caption = Caption { seq: item.seq, entry, json: item.json.to_string(), shown };
        self.interims.retain(|open| open.entry.id() != caption.entry.id());
        let queue = if caption.is_final() { &mut self.finals } else { &mut self.interims };
        queue.push_back(caption);
    }

    /// When [`Self::next`] may have something although nothing new has come.
    pub fn wake_at(&self) -> Option<Instant> {
        (!self.interims.is_empty()).then_some(self.interim_at)
    }

    /// Returns when something new has come into the log.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Nothing more will come.
    pub fn is_over(&self) -> bool {
        self.finals.is_empty() && self.log.is_closed() && self.cursor.seq >= self.log.last_seq()
    }

    /// Entries that had left the log's ring before their turn, since the last time that this was asked.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }
}

/// The messages of one entry, none longer than [`MAX_MESSAGE_BYTES`]: the entry itself where it fits; else without its
/// words; else in pieces of its text, of which each has `part` and `parts`.
pub fn messages(json: &str) -> Vec<String> {
    if json.len() <= MAX_MESSAGE_BYTES {
        return vec![json.to_owned()];
    }
    let Ok(Value::Object(mut entry)) = serde_json::from_str(json) else { return Vec::new() };
    if let Some(words) = entry.get_mut("words") {
        *words = Value::Null;
    }
    let whole = written(&entry);
    if whole.len() <= MAX_MESSAGE_BYTES {
        return vec![whole];
    }
    let Some(Value::String(text)) = entry.insert("text".to_owned(), Value::String(String::new())) else {
        return Vec::new();
    };
    entry.insert("part".to_owned(), 99.into());
    entry.insert("parts".to_owned(), 99.into());
    let room = MAX_MESSAGE_BYTES.saturating_sub(written(&entry).len());
    let pieces = pieces(&text, room, encoded_bytes);
    let parts = pieces.len();
    let message = |(n, piece): (usize, &str)| {
        let mut entry = entry.clone();
        entry.insert("text".to_owned(), piece.into());
        entry.insert("part".to_owned(), (n + 1).into());
        entry.insert("parts".to_owned(), parts.into());
        written(&entry)
    };
    pieces.into_iter().enumerate().map(message).collect()
}

fn written(entry: &Map<String, Value>) -> String {
    serde_json::to_string(entry).expect("a map of plain values")
}

/// Bytes of a character in a JSON text.
fn encoded_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if (c as u32) < 0x20 => 6,
        c => c.len_utf8(),
    }
}

/// Cuts `text` between characters, so that each piece has at most `room` bytes as `bytes` counts them.
fn pieces(text: &str, room: usize, bytes: impl Fn(char) -> usize) -> Vec<&str> {
    let (mut pieces, mut from, mut used) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        if used + bytes(c) > room && at > from {
            pieces.push(&text[from..at]);
            (from, used) = (at, 0);
        }
        used += bytes(c);
    }
    pieces.push(&text[from..]);
    pieces
}

/// The speaker of a line as somebody in the room.
#[derive(Debug, Clone, Copy, Default)]
pub struct InRoom<'a> {
    pub identity: &'a str,
    /// Of the microphone.
    pub track: Option<&'a str>,
}

/// The packets of one line as a text stream of LiveKit's: each state of an utterance is a stream of its own, all with
/// the same segment. Without a speaker the packets are nobody's.
pub fn stream(line: &Transcript, speaker: Option<InRoom<'_>>, now_ms: i64) -> Vec<DataPacket> {
    let stream_id = Uuid::new_v4().to_string();
    let mut attributes = HashMap::from([
        // Ids are unique in an epoch; a room may live through several.
        ("lk.segment_id".to_owned(), format!("{}:{}", line.epoch, line.id)),
        ("lk.transcription_final".to_owned(), (line.is_final || line.text.is_empty()).to_string()),
    ]);
    if let Some(track) = speaker.and_then(|speaker| speaker.track) {
        attributes.insert("lk.transcribed_track_id".to_owned(), track.to_owned());
    }
    let header = StreamHeader {
        stream_id: stream_id.clone(),
        timestamp: now_ms,
        topic: TRANSCRIPTION_TOPIC.to_owned(),
        mime_type: "text/plain".to_owned(),
        total_length: Some(line.text.len() as u64),
        attributes,
        content: Some(ContentHeader::Text(TextHeader { generated: true })),
    };
    let mut payloads = vec![Payload::StreamHeader(header)];
    let chunks = pieces(&line.text, MAX_CHUNK_BYTES, char::len_utf8).into_iter().filter(|chunk| !chunk.is_empty());
    payloads.extend((0..).zip(chunks).map(|(chunk_index, chunk)| {
        let (stream_id, content) = (stream_id.clone(), chunk.as_bytes().to_vec());
        Payload::StreamChunk(StreamChunk { stream_id, chunk_index, content })
    }));
    payloads.push(Payload::StreamTrailer(StreamTrailer { stream_id, reason: String::new() }));
    let identity = speaker.map_or("", |speaker| speaker.identity);
    let packet = |payload| DataPacket {
        participant_identity: identity.to_owned(),
        payload: Some(payload),
        ..DataPacket::default()
    };
    payloads.into_iter().map(packet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::{Epoch, Latency, Slug, Word};

    const MS: Duration = Duration::from_millis(1);

    fn line(id: &str, seq: Option<u64>, text: &str) -> Transcript {
        Transcript {
            session: Slug::parse("demo").unwrap(),
            epoch: Epoch::nil(),
            seq,
            id: id.into(),
            is_final: seq.is_some(),
            revision: 1,
            text: text.into(),
            start_ms: 0,
            end_ms: 1000,
            language: Some("en".into()),
            confidence: None,
            speaker: None,
            words: None,
            timestamp: Default::default(),
            latency: Latency::default(),
            durable: true,
        }
    }

    fn log(max_entries: usize) -> Arc<TranscriptLog> {
        Arc::new(TranscriptLog::new(Slug::parse("demo").unwrap(), Epoch::nil(), 0, max_entries, 1 << 20))
    }

    fn ids(feed: &mut CaptionFeed, now: Instant) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(caption) = feed.next(now) {
            taken.push(caption.entry.id().to_owned());
        }
        taken
    }

    #[test]
    fn finals_come_at_once_and_interims_five_times_a_second() {
        let (log, mut now) = (log(100), Instant::now());
        let mut feed = CaptionFeed::new(log.clone(), 0, now);
        let (mut interims, mut finals) = (0, 0);
        for n in 0..1000 {
            log.show_interim(&Entry::Transcript(line("open", None, &format!("word {n}"))));
            if n % 100 == 0 {
                let seq = log.last_seq() + 1;
                log.publish(&Entry::Transcript(line(&format!("f{seq}"), Some(seq), "done"))).unwrap();
            }
            while let Some(caption) = feed.next(now) {
                *if caption.is_final() { &mut finals } else { &mut interims } += 1;
            }
            now += MS;
        }
        assert_eq!((finals, interims), (10, 5));
        now += INTERIM_INTERVAL;
        let last = feed.next(now).unwrap();
        assert!(last.json.contains("word 999"), "the newest is shown in the end: {}", last.json);
        assert_eq!(feed.wake_at(), None);
    }

    #[test]
    fn the_final_takes_the_place_of_its_interim() {
        let (log, now) = (log(100), Instant::now());
        let mut feed = CaptionFeed::new(log.clone(), 0, now);
        log.show_interim(&Entry::Transcript(line("a", None, "h")));
        assert_eq!(ids(&mut feed, now), ["a"]);
        log.show_interim(&Entry::Transcript(line("a", None, "he")));
        log.show_interim(&Entry::Transcript(line("b", None, "x")));
        assert_eq!(ids(&mut feed, now), [""; 0], "too early");
        assert!(feed.wake_at().is_some_and(|at| at > now));
        log.publish(&Entry::Transcript(line("a", Some(1), "hello"))).unwrap();
        let taken: Vec<_> = [now, now + INTERIM_INTERVAL].iter().map(|at| feed.next(*at).unwrap()).collect();
        assert_eq!(taken.iter().map(|c| (c.entry.id(), c.seq)).collect::<Vec<_>>(), [("a", Some(1)), ("b", None)]);
    }

    #[test]
    fn whoever_is_too_slow_goes_on_with_what_is_there_and_holds_little() {
        let (log, now) = (log(10), Instant::now());
        let mut feed = CaptionFeed::new(log.clone(), 0, now);
        for seq in 1..=1000 {
            log.publish(&Entry::Transcript(line(&format!("{seq}"), Some(seq), "x"))).unwrap();
        }
        assert_eq!(feed.next(now), None, "told to look again");
        assert!(feed.changes.has_changed().unwrap());
        assert_eq!(ids(&mut feed, now), (991..=1000).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!((feed.take_skipped(), feed.take_skipped()), (990, 0));
        assert!(!feed.is_over());
        log.close();
        assert!(feed.is_over());
    }

    #[test]
    fn a_short_entry_is_sent_as_viewers_get_it() {
        let json = Entry::Transcript(line("a", Some(1), "Hello world.")).to_json();
        assert_eq!(messages(&json), [json.to_string()]);
    }

    #[test]
    fn a_long_entry_loses_its_words_first_and_comes_in_parts_then() {
        let word = Word { word: "hello".into(), start_ms: 1, end_ms: 2, confidence: Some(0.5) };
        let mut wordy = line("a", Some(1), "hello hello");
        wordy.words = Some(vec![word; 400]);
        let [message] = &messages(&Entry::Transcript(wordy).to_json())[..] else { panic!("one message") };
        let read: Value = serde_json::from_str(message).unwrap();
        assert_eq!((&read["words"], &read["text"], &read["part"]), (&Value::Null, &"hello hello".into(), &Value::Null));

        for text in ["a".repeat(16 * 1024), "\"\\".repeat(8 * 1024), "говорит ".repeat(1090), "🎤".repeat(4096)]
        {
            let whole = Entry::Transcript(line("a", Some(7), &text)).to_json();
            let parts = messages(&whole);
            assert!(parts.len() > 1 && parts.iter().all(|part| part.len() <= MAX_MESSAGE_BYTES));
            let read: Vec<Value> = parts.iter().map(|part| serde_json::from_str(part).unwrap()).collect();
            let joined: String = read.iter().map(|part| part["text"].as_str().unwrap()).collect();
            assert_eq!(joined, text);
            for (n, part) in read.iter().enumerate() {
                assert_eq!(
                    (part["part"].as_u64(), part["parts"].as_u64()),
                    (Some(n as u64 + 1), Some(parts.len() as u64))
                );
                assert_eq!((part["seq"].as_u64(), part["id"].as_str()), (Some(7), Some("a")));
            }
        }
    }

    fn text_of(packets: &[DataPacket]) -> String {
        let chunk = |packet: &DataPacket| match &packet.payload {
            Some(Payload::StreamChunk(chunk)) => Some(chunk.content.clone()),
            _ => None,
        };
        packets.iter().filter_map(chunk).map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    fn header_of(packets: &[DataPacket]) -> &StreamHeader {
        let Some(Payload::StreamHeader(header)) = &packets[0].payload else { panic!("{packets:?}") };
        header
    }

    #[test]
    fn a_line_is_a_text_stream_of_its_speaker() {
        let speaker = InRoom { identity: "anna", track: Some("TR_1") };
        let packets = stream(&line("a", Some(1), "Hello."), Some(speaker), 5);
        let header = header_of(&packets);
        let attribute = |name: &str| header.attributes.get(name).map(String::as_str);
        assert_eq!((header.topic.as_str(), header.mime_type.as_str()), ("lk.transcription", "text/plain"));
        assert_eq!((header.total_length, header.timestamp), (Some(6), 5));
        assert_eq!(attribute("lk.transcription_final"), Some("true"));
        assert_eq!(attribute("lk.transcribed_track_id"), Some("TR_1"));
        let nil = Epoch::nil();
        assert_eq!(attribute("lk.segment_id"), Some(format!("{nil}:a").as_str()));
        assert!(packets.iter().all(|packet| packet.participant_identity == "anna"));
        assert_eq!((packets.len(), text_of(&packets).as_str()), (3, "Hello."));
        assert!(matches!(&packets[2].payload, Some(Payload::StreamTrailer(end)) if end.stream_id == header.stream_id));
        let interim = stream(&line("a", None, "Hel"), None, 6);
        let next = header_of(&interim);
        assert!(next.stream_id != header.stream_id && next.attributes["lk.transcription_final"] == "false");
        assert_eq!(next.attributes["lk.segment_id"], header.attributes["lk.segment_id"]);
        assert!(interim.iter().all(|packet| packet.participant_identity.is_empty()));
    }

    #[test]
    fn a_stream_has_short_pieces_and_one_that_is_taken_back_ends_empty() {
        let text = "ж".repeat(20_000);
        let packets = stream(&line("a", Some(1), &text), None, 0);
        assert_eq!((packets.len(), text_of(&packets)), (2 + 3, text));
        let taken_back = stream(&line("a", None, ""), None, 0);
        assert_eq!((taken_back.len(), text_of(&taken_back)), (2, String::new()));
        assert_eq!(header_of(&taken_back).attributes["lk.transcription_final"], "true");
    }
}
