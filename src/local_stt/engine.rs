//! Recogniser engines: audio in, utterances out. Engines know nothing of the wire.

use tokio::sync::mpsc::UnboundedSender;

/// Sample rate of all audio that an engine takes, Hz.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples in a millisecond.
pub const SAMPLES_PER_MS: usize = SAMPLE_RATE / 1000;

/// Makes recognition streams; one per process, shared by all sessions.
pub trait Engine: Send + Sync {
    fn about(&self) -> About;
    /// Opens a stream whose events go to `events`. Their number is bounded by the audio pushed.
    fn open(&self, params: StreamParams, events: UnboundedSender<Event>) -> Box<dyn EngineStream>;
    fn load(&self) -> Load;
}

/// One channel of one session. Dropping it abandons what is still to be recognised.
pub trait EngineStream: Send {
    /// Takes PCM16, 16 kHz, mono. Never blocks on inference.
    fn push(&mut self, samples: &[i16]);
    /// No more audio: everything becomes final, then [`Event::Finished`] follows.
    fn finish(&mut self);
    /// Samples taken and not yet settled (as silence or as a final). The caller stops reading when it grows.
    fn backlog(&self) -> usize;
}

/// For humans and `/health`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// "moonshine" or "marker".
    pub engine: &'static str,
    pub model: String,
    /// ISO code of the only language there is.
    pub language: &'static str,
    pub threads: usize,
    /// It takes any end silence that a client asks for; otherwise short ones would cost accuracy.
    pub exact_endpointing: bool,
}

/// The engine's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Load {
    /// Milliseconds that the oldest waiting final has waited.
    pub queue_ms: u64,
    pub finals_waiting: usize,
    pub interims_waiting: usize,
    /// Share of the inference threads' time spent on inference, over the last seconds: 0..=1.
    pub busy: f64,
    /// Interims dropped because a newer one or a final made them worthless.
    pub interims_shed: u64,
    /// A thread has died, or has been at one piece of work for longer than is possible: only a restart helps.
    pub broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamParams {
    /// Silence that closes an utterance, ms.
    pub end_silence_ms: usize,
    /// Speech without a pause is cut after this, ms.
    pub max_segment_ms: usize,
    /// Interims are wanted.
    pub interims: bool,
}

/// Times are milliseconds of the stream's audio.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    SpeechStart {
        at_ms: u64,
    },
    SpeechEnd {
        at_ms: u64,
    },
    /// The present guess; the same `segment` becomes final later.
    Interim(Utterance),
    Final(Utterance),
    /// The segment holds no words after all; guesses shown for it are void.
    Empty {
        segment: u32,
        start_ms: u64,
        end_ms: u64,
    },
    /// The segment could not be recognised.
    Failed {
        segment: u32,
        why: String,
    },
    /// After `finish`: nothing follows.
    Finished,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Utterance {
    /// 0, 1, 2, ... within the stream.
    pub segment: u32,
    /// Trimmed, not empty.
    pub text: String,
    pub start_ms: u64,
    pub end_ms: u64,
    /// 0..=1.
    pub confidence: f64,
    pub words: Vec<Word>,
}

/// Times are estimated by the moonshine engine (spread by length), exact by the marker engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Word {
    pub word: String,
    pub start_ms: u64,
    pub end_ms: u64,
    pub confidence: f64,
}

/// Gives each word a share of `start_ms..end_ms` by its length in characters, plus one for the gap.
pub fn spread(words: &mut [Word], start_ms: u64, end_ms: u64) {
    let total: usize = words.iter().map(|w| w.word.chars().count() + 1).sum();
    let span = end_ms.saturating_sub(start_ms);
    let at = |done: usize| start_ms + span * done as u64 / total.max(1) as u64;
    let mut done = 0;
    for word in words {
        word.start_ms = at(done);
        done += word.word.chars().count() + 1;
        word.end_ms = at(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_share_the_segment_by_length() {
        let mut words: Vec<Word> =
            ["go", "forward"].map(|word| Word { word: word.into(), ..Default::default() }).to_vec();
        spread(&mut words, 1000, 2100);
        assert_eq!((words[0].start_ms, words[0].end_ms), (1000, 1300));
        assert_eq!((words[1].start_ms, words[1].end_ms), (1300, 2100));
        spread(&mut [], 0, 10);
    }
}
