//! Conversations whose speakers are known: the voices of the fixtures take turns, a mixer delays them, and each source
//! tells who speaks as it would. Nothing here takes real time.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use stenocast::actors::speaker_tracker::attribution::Attribution;
use stenocast::actors::track_activity::meter::TrackMeter;
use stenocast::transcript::{SpeakerSource, SpeakerUpdate};
use tokio::time::Instant;

/// A frame of loudness.
pub const FRAME_MS: i64 = 20;
const SAMPLES_PER_FRAME: usize = 320;

/// Who tells who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Tracks,
    Observer,
    Browser,
}

/// What happens in a conversation.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// From so many ms on, audio is so many ms late. The first is from 0 on.
    pub delays: Vec<(i64, i64)>,
    /// Share of turns that begin before the one before them has ended.
    pub overlap: f64,
    /// Turns have so many words.
    pub words: std::ops::RangeInclusive<usize>,
    /// Share of reports that are lost.
    pub lost: f64,
    /// Nobody publishes from this time on, for so long.
    pub pause: Option<(i64, i64)>,
}

impl Scenario {
    pub fn new(name: &'static str, delays: &[(i64, i64)]) -> Self {
        Self { name, delays: delays.to_vec(), overlap: 0.0, words: 1..=12, lost: 0.0, pause: None }
    }

    fn delay_ms(&self, at_ms: i64) -> i64 {
        self.delays.iter().rev().find(|(from_ms, _)| *from_ms <= at_ms).map_or(0, |(_, delay_ms)| *delay_ms)
    }

    /// Sound of this time arrives at all: somebody publishes, and no shorter delay overtakes it.
    fn is_published(&self, at_ms: i64) -> bool {
        let is_overtaken = self.delays.windows(2).any(|pair| {
            let [(_, before_ms), (from_ms, after_ms)] = [pair[0], pair[1]];
            (from_ms..from_ms + before_ms - after_ms).contains(&at_ms)
        });
        let is_paused = self.pause.is_some_and(|(from_ms, length_ms)| (from_ms..from_ms + length_ms).contains(&at_ms));
        !is_overtaken && !is_paused
    }
}

/// A reading with the times of its words, in ms.
pub struct Clip {
    pub samples: Vec<i16>,
    pub words: Vec<(String, i64, i64)>,
}

/// One reader.
pub struct Voice {
    pub clips: Vec<Clip>,
}

/// The readers of the fixtures.
pub fn voices() -> Vec<Voice> {
    let readers: [&[&str]; 5] = [
        &["librivox_0870", "librivox_0880", "librivox_0890", "librivox_0920", "librivox_0930"],
        &["audioeval_en_counting", "audioeval_en_quick_brown_fox", "audioeval_en_hello_world"],
        &["cards_001", "cards_002", "cards_003", "cards_004", "cards_005"],
        &["espeak_en"],
        &["goforward"],
    ];
    readers.iter().map(|clips| Voice { clips: clips.iter().map(|name| clip(name)).collect() }).collect()
}

fn clip(name: &str) -> Clip {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech").join(name);
    let mut reader = hound::WavReader::open(path.with_extension("wav")).expect("a fixture");
    let samples: Vec<i16> = reader.samples().map(|sample| sample.expect("PCM16")).collect();
    let text = std::fs::read_to_string(path.with_extension("txt")).expect("its transcript");
    let levels = loudness(&samples);
    let loudest = levels.iter().copied().fold(0.0, f64::max);
    let voiced: Vec<i64> = (0..).zip(&levels).filter(|(_, level)| **level > loudest / 20.0).map(|(n, _)| n).collect();
    let letters: usize = text.split_whitespace().map(str::len).sum();
    let mut read = 0;
    let place = |letter: usize| (letter * voiced.len() / letters).min(voiced.len() - 1);
    let words = text.split_whitespace().map(|word| {
        let (first, last) = (place(read), place(read + word.len()).max(place(read) + 1) - 1);
        read += word.len();
        (word.to_owned(), voiced[first] * FRAME_MS, (voiced[last] + 1) * FRAME_MS)
    });
    let words = words.collect();
    // All readers are equally loud, as gain control makes them.
    let gain = 2500.0 / (voiced.iter().map(|n| levels[*n as usize].powi(2)).sum::<f64>() / voiced.len() as f64).sqrt();
    Clip { samples: samples.into_iter().map(|sample| (f64::from(sample) * gain) as i16).collect(), words }
}

/// Root mean squares of frames.
pub fn loudness(samples: &[i16]) -> Vec<f64> {
    let square = |frame: &[i16]| frame.iter().map(|sample| f64::from(*sample).powi(2)).sum::<f64>();
    samples.chunks(SAMPLES_PER_FRAME).map(|frame| (square(frame) / frame.len() as f64).sqrt()).collect()
}

/// A word, on the clock of the room.
#[derive(Debug, Clone)]
pub struct SpokenWord {
    pub who: usize,
    pub from_ms: i64,
    pub to_ms: i64,
}

/// What was said, and how loud each participant was.
pub struct Conversation {
    pub words: Vec<SpokenWord>,
    pub levels: Vec<Vec<f64>>,
}

/// Voices take turns for so long.
pub fn converse(voices: &[Voice], scenario: &Scenario, length_ms: i64, rng: &mut StdRng) -> Conversation {
    let frames = (length_ms / FRAME_MS) as usize + 500;
    let mut levels: Vec<Vec<f64>> =
        voices.iter().map(|_| (0..frames).map(|_| rng.random_range(15.0..30.0)).collect()).collect();
    let gains: Vec<f64> = voices.iter().map(|_| rng.random_range(0.6..1.6)).collect();
    let mut words = Vec::new();
    let (mut at_ms, mut who) = (rng.random_range(500..3000), 0);
    while at_ms < length_ms - 10_000 {
        who = (who + rng.random_range(1..voices.len())) % voices.len();
        let clip = &voices[who].clips[rng.random_range(0..voices[who].clips.len())];
        let count = rng.random_range(scenario.words.clone()).min(clip.words.len());
        let first = rng.random_range(0..=clip.words.len() - count);
        let part = &clip.words[first..first + count];
        let (from_ms, to_ms) = (part[0].1, part[count - 1].2);
        let begin = (from_ms / FRAME_MS) as usize * SAMPLES_PER_FRAME;
        let end = ((to_ms / FRAME_MS) as usize * SAMPLES_PER_FRAME).min(clip.samples.len());
        for (n, level) in loudness(&clip.samples[begin..end]).into_iter().enumerate() {
            let frame = &mut levels[who][(at_ms / FRAME_MS) as usize + n];
            *frame = frame.hypot(level * gains[who]);
        }
        at_ms = at_ms / FRAME_MS * FRAME_MS;
        words.extend(part.iter().map(|(_, from, to)| SpokenWord {
            who,
            from_ms: at_ms + from - from_ms,
            to_ms: at_ms + to - from_ms,
        }));
        let spoken_ms = to_ms - from_ms;
        let pause_ms = match rng.random::<f64>() {
            x if x < scenario.overlap => -rng.random_range(200..1200).min(spoken_ms / 2),
            x if x < 0.3 => rng.random_range(0..200),
            x if x < 0.92 => rng.random_range(200..1000),
            _ => rng.random_range(1500..4000),
        };
        at_ms += spoken_ms + pause_ms;
    }
    words.sort_by_key(|word| word.from_ms);
    Conversation { words, levels }
}

/// Labels of a conversation, beside the truth.
#[derive(Debug, Default, Clone, Copy)]
pub struct Score {
    pub lines: usize,
    pub right: usize,
    pub wrong: usize,
    pub unknown: usize,
    pub words: usize,
    pub wrong_words: usize,
    pub cut: usize,
}

impl Score {
    pub fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.right += other.right;
        self.wrong += other.wrong;
        self.unknown += other.unknown;
        self.words += other.words;
        self.wrong_words += other.wrong_words;
        self.cut += other.cut;
    }

    pub fn share(&self, count: usize) -> f64 {
        100.0 * count as f64 / self.lines.max(1) as f64
    }
}

enum Event {
    /// Loudness of 100 ms of audio.
    Audio(Vec<f64>),
    Report {
        source: SpeakerSource,
        who: usize,
        is_active: bool,
        level: f32,
        at_ms: i64,
    },
    /// A line is final: its words, by number.
    Line(Vec<usize>),
}

/// A pause between words that ends a line, and the longest line.
const ENDPOINT_MS: i64 = 350;
const LONGEST_MS: i64 = 10_000;
/// From a line's end to its final.
const RECOGNISER_MS: i64 = 600;

pub fn identity(who: usize) -> String {
    ["anna", "ben", "cara", "dora", "eli"][who].to_owned()
}

/// Plays a conversation to the tracker's rules, and counts.
pub fn play(voices: &[Voice], scenario: &Scenario, source: Source, length_ms: i64, seed: u64) -> Score {
    let rng = &mut StdRng::seed_from_u64(seed);
    let talk = converse(voices, scenario, length_ms, rng);
    let mut events = audio(&talk, scenario);
    match source {
        Source::Tracks => events.extend(tracks(&talk, scenario.lost, rng)),
        Source::Observer | Source::Browser => events.extend(server(&talk, source, scenario.lost, rng)),
    }
    events.extend(lines(&talk, scenario));
    events.sort_by_key(|(at_ms, _)| *at_ms);
    let mut attribution = Attribution::new(None);
    let mut score = Score::default();
    for (at_ms, event) in events {
        match event {
            Event::Audio(levels) => {
                attribution.hear(at_ms - 100, levels);
                attribution.advance(at_ms);
            }
            Event::Report { source, who, is_active, level, at_ms } => {
                let (identity, at) = (identity(who), Instant::now());
                let update = SpeakerUpdate { identity, name: None, active: is_active, level, at, source };
                attribution.report(&update, at_ms);
            }
            Event::Line(words) => count(&talk, scenario, &attribution, &words, &mut score),
        }
    }
    score
}

fn count(talk: &Conversation, scenario: &Scenario, attribution: &Attribution, line: &[usize], score: &mut Score) {
    let words: Vec<&SpokenWord> = line.iter().map(|n| &talk.words[*n]).collect();
    let arrived = |ms: i64| ms + scenario.delay_ms(ms);
    let spans: Vec<_> =
        words.iter().map(|word| (arrived(word.from_ms), arrived(word.to_ms).max(arrived(word.from_ms)))).collect();
    let pieces = attribution.label(&spans, true);
    assert_eq!(pieces.iter().map(|(words, _)| words.len()).sum::<usize>(), words.len());
    score.cut += pieces.len() - 1;
    for (piece, label) in pieces {
        let words = &words[piece];
        let spoken = |who: usize| words.iter().filter(|w| w.who == who).map(|w| w.to_ms - w.from_ms).sum::<i64>();
        let truth = (0..talk.levels.len()).max_by_key(|who| spoken(*who)).expect("somebody");
        score.lines += 1;
        score.words += words.len();
        match label {
            None => score.unknown += 1,
            Some(who) => {
                let is_right = who == identity(truth);
                score.right += usize::from(is_right);
                score.wrong += usize::from(!is_right);
                score.wrong_words += words.iter().filter(|word| identity(word.who) != who).count();
                if !is_right && std::env::var_os("SHOW_WRONG").is_some() {
                    eprintln!(
                        "{} {:?}: {who} is wrong: {words:?}, delay {:?}",
                        scenario.name,
                        spans.first(),
                        attribution.delay_ms()
                    );
                }
            }
        }
    }
}

/// The mix, as it arrives: in chunks, each as late as its time says. What a shorter delay overtakes is cut.
fn audio(talk: &Conversation, scenario: &Scenario) -> Vec<(i64, Event)> {
    let mut events = Vec::new();
    let mut mixed = Vec::new();
    let frames = talk.levels[0].len();
    for n in 0..frames {
        let at_ms = n as i64 * FRAME_MS;
        mixed.push(talk.levels.iter().map(|levels| levels[n].powi(2)).sum::<f64>().sqrt());
        let arrived_ms = at_ms + FRAME_MS + scenario.delay_ms(at_ms);
        if !scenario.is_published(at_ms) {
            mixed.clear();
        }
        if mixed.len() == 5 {
            events.push((arrived_ms, Event::Audio(std::mem::take(&mut mixed))));
        }
    }
    events
}

/// A final for each stretch of words.
fn lines(talk: &Conversation, scenario: &Scenario) -> Vec<(i64, Event)> {
    let mut lines: Vec<Vec<usize>> = Vec::new();
    for (n, word) in talk.words.iter().enumerate() {
        if !scenario.is_published(word.from_ms) || !scenario.is_published(word.to_ms) {
            continue;
        }
        let goes_on = lines.last().is_some_and(|line| {
            let last_ms = line.iter().map(|n| talk.words[*n].to_ms).max().unwrap_or(0);
            word.from_ms - last_ms < ENDPOINT_MS && word.to_ms - talk.words[line[0]].from_ms < LONGEST_MS
        });
        match lines.last_mut().filter(|_| goes_on) {
            Some(line) => line.push(n),
            None => lines.push(vec![n]),
        }
    }
    let end_ms = |line: &[usize]| line.iter().map(|n| talk.words[*n].to_ms).max().unwrap_or(0);
    let at_ms = |line: &[usize]| end_ms(line) + scenario.delay_ms(end_ms(line)) + RECOGNISER_MS;
    lines.into_iter().map(|line| (at_ms(&line), Event::Line(line))).collect()
}

/// A Track Egress for each microphone: exact, and a little late.
fn tracks(talk: &Conversation, lost: f64, rng: &mut StdRng) -> Vec<(i64, Event)> {
    let mut events = Vec::new();
    for (who, levels) in talk.levels.iter().enumerate() {
        let mut meter = TrackMeter::default();
        let latency_ms = rng.random_range(50..250);
        let mut last_ms = 0;
        for (n, level) in levels.iter().enumerate() {
            let jitter_ms = if rng.random_bool(0.02) { rng.random_range(0..150) } else { rng.random_range(0..15) };
            last_ms = last_ms.max((n as i64 + 1) * FRAME_MS + latency_ms + jitter_ms);
            meter.arrived(FRAME_MS, last_ms);
            if let Some(report) = meter.frame(*level).filter(|_| !rng.random_bool(lost)) {
                let (is_active, level, at_ms) = (report.is_active, report.level, report.at_ms);
                let source = SpeakerSource::Track;
                events.push((last_ms, Event::Report { source, who, is_active, level, at_ms }));
            }
        }
    }
    events
}

/// A LiveKit server looks at all participants every 400 ms, and tells what has changed; browsers repeat it each second.
fn server(talk: &Conversation, source: Source, lost: f64, rng: &mut StdRng) -> Vec<(i64, Event)> {
    const WINDOW: usize = 20;
    let mut events = Vec::new();
    for (who, levels) in talk.levels.iter().enumerate() {
        let told_by = match source {
            Source::Browser => SpeakerSource::Viewer(identity(who)),
            _ => SpeakerSource::Observer,
        };
        let (mut smoothed, mut told, mut renewed_ms) = (0.0, (false, 0.0), 0);
        let own_latency_ms = if source == Source::Browser { rng.random_range(30..120) } else { 30 };
        // All windows of a room end at the same time.
        let phase = (talk.words.len() * 7) % WINDOW;
        for (n, window) in levels[phase..].chunks_exact(WINDOW).enumerate() {
            let end_ms = (phase + (n + 1) * WINDOW) as i64 * FRAME_MS;
            // Louder than -35 dBov in 40 % of the window.
            let loud = window.iter().filter(|level| **level > 580.0).count();
            let loudest = window.iter().copied().fold(0.0, f64::max);
            match loud * 5 >= WINDOW * 2 {
                true => smoothed += (loudest / 32_768.0 * loud as f64 / WINDOW as f64 - smoothed) * 2.0 / 3.0,
                false => smoothed = 0.0,
            }
            let level = (smoothed * 8.0_f64).ceil() / 8.0;
            let now = (smoothed > 0.0178, level as f32);
            let is_due = source == Source::Browser && now.0 && end_ms - renewed_ms >= 1000;
            if now == told && !is_due {
                continue;
            }
            (told, renewed_ms) = (now, end_ms);
            if rng.random_bool(lost) {
                continue;
            }
            let at_ms = end_ms + own_latency_ms + rng.random_range(0..60);
            events.push((at_ms, Event::Report { source: told_by.clone(), who, is_active: now.0, level: now.1, at_ms }));
        }
    }
    events
}
