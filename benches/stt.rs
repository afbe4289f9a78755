//! What the local recogniser costs and how fast it answers, on the recorded clips, paced as speech.
//!
//! `cargo bench --bench stt -- [sessions] [threads]` (1 and 1), `cargo bench --bench stt -- words` for the word error rate
//! of speech that is cut; needs the model files (`scripts/models.sh`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stenocast::cli::wer::{WordErrors, word_errors};
use stenocast::local_stt::engine::{Engine, Event, SAMPLE_RATE, StreamParams};
use stenocast::local_stt::moonshine::Moonshine;
use tokio::sync::mpsc;

const CLIPS: [&str; 6] = ["librivox_0870", "cards_001", "librivox_0890", "goforward", "librivox_0880", "cards_002"];
const PARAMS: StreamParams = StreamParams { end_silence_ms: 480, max_segment_ms: 15_000, interims: true };
/// A reading without pauses: nothing was tuned on the last two clips.
const READING: [&str; 5] = ["librivox_0870", "librivox_0880", "librivox_0890", "librivox_0920", "librivox_0930"];
const HELD_OUT: [&str; 2] = ["librivox_0920", "librivox_0930"];
/// Longest utterances that are asked for, ms.
const LIMITS_MS: [usize; 10] = [5000, 5500, 6000, 6500, 7000, 7500, 8000, 10_000, 15_000, 30_000];
/// Silence between clips, s.
const PAUSE_S: usize = 1;

fn clip(name: &str) -> Vec<i16> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/speech/{name}.wav"));
    hound::WavReader::open(path).expect("a fixture").samples::<i16>().map(|s| s.expect("PCM")).collect()
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("own usage");
    let duration = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    duration(usage.user_time()) + duration(usage.system_time())
}

fn status(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or("?").trim().to_owned()
}

fn percentiles(name: &str, mut values: Vec<u64>) {
    values.sort_unstable();
    let at = |p: usize| values.get((values.len() * p / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0);
    println!("{name}: n {} p50 {} p95 {} max {} ms", values.len(), at(50), at(95), at(100));
}

#[derive(Default)]
struct Lags {
    first_interim: Vec<u64>,
    end_to_final: Vec<u64>,
    interims: usize,
}

/// Plays `audio` in real time, beginning after `offset`.
async fn play(engine: Arc<Moonshine>, audio: Vec<i16>, offset: Duration) -> Lags {
    tokio::time::sleep(offset).await;
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut stream = engine.open(PARAMS, tx);
    let begun = Instant::now();
    let (mut lags, mut guessed) = (Lags::default(), None);
    let mut take = |event: Event| {
        let now = begun.elapsed().as_millis() as u64;
        match event {
            Event::Interim(u) => {
                lags.interims += 1;
                if guessed.replace(u.segment) != Some(u.segment) {
                    lags.first_interim.push(now.saturating_sub(u.start_ms));
                }
            }
            Event::Final(u) => lags.end_to_final.push(now.saturating_sub(u.end_ms)),
            _ => {}
        }
    };
    for (n, chunk) in audio.chunks(SAMPLE_RATE / 10).enumerate() {
        let due = begun + Duration::from_millis(100 * (n as u64 + 1));
        while let Ok(Some(event)) = tokio::time::timeout_at(due.into(), rx.recv()).await {
            take(event);
        }
        stream.push(chunk);
    }
    stream.finish();
    while let Some(event) = rx.recv().await {
        if event == Event::Finished {
            break;
        }
        take(event);
    }
    lags
}

/// The text of `audio`, pushed at once.
async fn read(engine: &Moonshine, audio: &[i16], max_segment_ms: usize) -> String {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut stream = engine.open(StreamParams { max_segment_ms, ..PARAMS }, tx);
    stream.push(audio);
    stream.finish();
    let mut texts = Vec::new();
    while let Some(event) = rx.recv().await {
        match event {
            Event::Final(utterance) => texts.push(utterance.text),
            Event::Finished => break,
            _ => {}
        }
    }
    texts.join(" ")
}

/// Word error rates of two readings, by the longest utterance.
async fn words(engine: &Moonshine) {
    for (name, clips) in [("held-out reading", &HELD_OUT[..]), ("all readings, joined", &READING)] {
        let audio: Vec<i16> = clips.iter().flat_map(|name| clip(name)).collect();
        let text = |name: &&str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/speech/{name}.txt"));
            std::fs::read_to_string(path).expect("a text")
        };
        let reference = clips.iter().map(text).collect::<String>();
        let mut all = WordErrors { edits: 0, words: 0 };
        for limit_ms in LIMITS_MS {
            let errors = word_errors(&reference, &read(engine, &audio, limit_ms).await);
            println!("{name}, at most {limit_ms} ms: {} of {} words wrong", errors.edits, errors.words);
            all = WordErrors { edits: all.edits + errors.edits, words: all.words + errors.words };
        }
        println!("{name}, all limits: word error rate {:.1} % of {} words", all.percent(), all.words);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let (sessions, threads) = (numbers.first().copied().unwrap_or(1), numbers.get(1).copied().unwrap_or(1));
    let dir = std::env::var_os("MODEL_DIR").map_or_else(stenocast::config::default_model_dir, PathBuf::from);
    let begun = Instant::now();
    let engine = Arc::new(Moonshine::load(&dir, threads).unwrap_or_else(|e| panic!("{e}")));
    println!("loaded in {} ms, resident {}", begun.elapsed().as_millis(), status("VmRSS:"));
    if std::env::args().any(|a| a == "words") {
        return words(&engine).await;
    }
    let clips: Vec<Vec<i16>> = CLIPS.map(clip).to_vec();
    let (before, begun) = (cpu(), Instant::now());
    let mut audio_s = 0.0;
    let mut plays = tokio::task::JoinSet::new();
    for n in 0..sessions {
        let mut audio = Vec::new();
        for k in 0..clips.len() {
            audio.extend(&clips[(k + n) % clips.len()]);
            audio.resize(audio.len() + PAUSE_S * SAMPLE_RATE, 0);
        }
        audio_s += audio.len() as f64 / SAMPLE_RATE as f64;
        plays.spawn(play(engine.clone(), audio, Duration::from_millis(137 * n as u64)));
    }
    let all = plays.join_all().await;
    let used = (cpu() - before).as_secs_f64();
    println!(
        "{sessions} sessions, {threads} threads, {audio_s:.1} s of audio in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    println!("cpu {:.4} s per s of audio, {:.2} cores", used / audio_s, used / begun.elapsed().as_secs_f64());
    println!("interims {}, shed {}", all.iter().map(|l| l.interims).sum::<usize>(), engine.load().interims_shed);
    percentiles("speech onset to first interim", all.iter().flat_map(|l| l.first_interim.clone()).collect());
    percentiles("speech end to final", all.iter().flat_map(|l| l.end_to_final.clone()).collect());
    println!("peak resident {}", status("VmHWM:"));
}
