//! Speech that says who it is: every sample of word `n` has the magnitude `4000 + n`. A [`Script`] is what is spoken, an
//! [`Ear`] is a recogniser that understands it, with nothing random in it.

use std::collections::BTreeMap;

pub const BYTES_PER_MS: u64 = 32;
const BASE: i16 = 4000;
const ENDPOINT_MS: u64 = 300;
const MAX_UTTERANCE_MS: u64 = 15_000;

/// Length of word `n`: 200 to 499 ms.
pub fn word_ms(n: u64) -> u64 {
    200 + n * 37 % 300
}

pub fn word_text(n: u64) -> String {
    format!("w{n}")
}

/// What is spoken: (offset in ms, word number), without overlaps.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub words: Vec<(u64, u64)>,
    pub length_ms: u64,
}

impl Script {
    /// Adds an utterance of `count` words, `between_ms` apart, after a pause.
    pub fn say(&mut self, pause_ms: u64, count: u64, between_ms: u64) {
        self.length_ms += pause_ms;
        for _ in 0..count {
            let n = self.words.len() as u64;
            self.words.push((self.length_ms, n));
            self.length_ms += word_ms(n) + between_ms;
        }
    }

    pub fn rest(&mut self, ms: u64) {
        self.length_ms += ms;
    }

    /// PCM of the whole script.
    pub fn pcm(&self) -> Vec<u8> {
        let mut samples = vec![0i16; (self.length_ms * BYTES_PER_MS / 2) as usize];
        for &(start_ms, n) in &self.words {
            let start = (start_ms * BYTES_PER_MS / 2) as usize;
            let end = start + (word_ms(n) * BYTES_PER_MS / 2) as usize;
            for (i, sample) in samples[start..end].iter_mut().enumerate() {
                let level = BASE + n as i16;
                *sample = if i % 2 == 0 { level } else { -level };
            }
        }
        samples.iter().flat_map(|s| s.to_le_bytes()).collect()
    }
}

/// A word that was heard; bytes of the recogniser's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeardWord {
    pub n: u64,
    pub start: u64,
    pub end: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub id: String,
    pub is_final: bool,
    pub words: Vec<HeardWord>,
}

impl Said {
    pub fn text(&self) -> String {
        self.words.iter().map(|w| format!(" {}", word_text(w.n))).collect()
    }
}

/// One recogniser session's hearing.
#[derive(Debug, Clone, Default)]
pub struct Ear {
    pub heard: u64,
    /// Word, its first and last byte; a word is believed when more than half of it was heard in one piece.
    run: Option<HeardWord>,
    words: Vec<HeardWord>,
    quiet_since: u64,
    utterances: u64,
    pub finals: BTreeMap<String, Said>,
}

impl Ear {
    pub fn hear(&mut self, pcm: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        for sample in pcm.chunks_exact(2) {
            let level = i16::from_le_bytes([sample[0], sample[1]]).unsigned_abs();
            let n = (level >= BASE as u16).then(|| u64::from(level - BASE as u16));
            match (&mut self.run, n) {
                (Some(run), Some(n)) if run.n == n => run.end = self.heard + 2,
                (run, n) => {
                    let ended = run.take();
                    *run = n.map(|n| HeardWord { n, start: self.heard, end: self.heard + 2 });
                    if let Some(word) = ended {
                        self.believe(word, &mut said);
                    }
                }
            }
            self.heard += 2;
            if self.run.is_none() && !self.words.is_empty() {
                let quiet = self.heard - self.quiet_since;
                let length = self.quiet_since - self.words[0].start;
                if quiet >= ENDPOINT_MS * BYTES_PER_MS || length >= MAX_UTTERANCE_MS * BYTES_PER_MS {
                    said.extend(self.close());
                }
            }
        }
        said
    }

    fn believe(&mut self, word: HeardWord, said: &mut Vec<Said>) {
        if (word.end - word.start) * 2 > word_ms(word.n) * BYTES_PER_MS {
            self.words.push(word);
            self.quiet_since = word.end;
            said.push(self.utterance(false));
        }
    }

    fn utterance(&self, is_final: bool) -> Said {
        Said { id: format!("00_{:08}", self.utterances), is_final, words: self.words.clone() }
    }

    fn close(&mut self) -> Option<Said> {
        let said = (!self.words.is_empty()).then(|| self.utterance(true))?;
        self.words.clear();
        self.utterances += 1;
        self.finals.insert(said.id.clone(), said.clone());
        Some(said)
    }

    /// No more audio: what is open becomes final.
    pub fn stop(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        if let Some(word) = self.run.take() {
            self.believe(word, &mut said);
        }
        said.extend(self.close());
        said
    }

    /// Acknowledged audio without a final is forgotten, the count is not.
    pub fn forget(&mut self) {
        self.run = None;
        self.words.clear();
        self.utterances += 1;
    }
}
