//! Messages of the usual size, made by the program's own types: what they weigh is measured, not assumed.

use stenocast::transcript::{Entry, Epoch, Latency, Slug, Speaker, Transcript, Word};

/// Four seconds of speech, at 156 words a minute with a pause between sentences.
const SENTENCE: &str = "We had leisure then to consider how much there might be";
const WORD_MS: u64 = 340;

/// A final with its words, of a speaker that is known.
pub fn final_entry(room: &str, epoch: Epoch, seq: u64) -> Entry {
    let begun_ms = 3_600_000 + 4000 * seq;
    let words = SENTENCE.split(' ').zip(0..).map(|(word, n)| {
        let start_ms = begun_ms + WORD_MS * n;
        Word { word: word.to_owned(), start_ms, end_ms: start_ms + 300, confidence: Some(0.97) }
    });
    let words = Some(words.collect());
    let text = format!("{SENTENCE}.");
    Entry::Transcript(Transcript {
        seq: Some(seq),
        is_final: true,
        words,
        text,
        ..transcript(room, epoch, seq, begun_ms)
    })
}

/// An interim in the middle of the same sentence.
pub fn interim(room: &str, epoch: Epoch, seq: u64) -> Entry {
    let text = SENTENCE.split(' ').take(6).collect::<Vec<_>>().join(" ");
    Entry::Transcript(Transcript { text, ..transcript(room, epoch, seq, 3_600_000 + 4000 * seq) })
}

fn transcript(room: &str, epoch: Epoch, seq: u64, start_ms: u64) -> Transcript {
    Transcript {
        session: Slug::parse(room).expect("a plain name"),
        epoch,
        seq: None,
        id: format!("00_{seq:08}-0198c3f2"),
        is_final: false,
        revision: 4,
        text: String::new(),
        start_ms,
        end_ms: start_ms + 3900,
        language: Some("en".into()),
        confidence: Some(0.97),
        speaker: Some(Speaker { identity: "participant-17".into(), name: Some("Anna Lee".into()) }),
        words: None,
        timestamp: "2026-11-28T12:00:00.123Z".parse().expect("a time"),
        latency: Latency { decode_ms: Some(21), stt_ms: Some(410), server_ms: Some(1) },
        durable: true,
    }
}
