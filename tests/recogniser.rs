//! The real recogniser on recorded speech. Needs the model files: `scripts/models.sh` installs them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stenocast::stt::engine::{Engine, Event, SAMPLE_RATE, StreamParams};
use stenocast::stt::moonshine::Moonshine;
use tokio::sync::mpsc;

/// Clips read by people, and the most words in a hundred that may be wrong over all of them.
const HUMAN: [&str; 6] = ["librivox_0870", "librivox_0880", "librivox_0890", "cards_001", "cards_002", "goforward"];
const MAX_WORD_ERROR_RATE: f64 = 0.06;
const PARAMS: StreamParams = StreamParams { end_silence_ms: 480, max_segment_ms: 15_000, interims: true };

fn model_dir() -> PathBuf {
    let dir = std::env::var_os("MODEL_DIR").map_or_else(stenocast::config::default_model_dir, PathBuf::from);
    assert!(dir.join("models.lock").exists(), "no model files in {}: run scripts/models.sh first", dir.display());
    dir
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech").join(name)
}

fn clip(name: &str) -> Vec<i16> {
    let mut reader = hound::WavReader::open(fixture(&format!("{name}.wav"))).unwrap();
    assert_eq!((reader.spec().sample_rate, reader.spec().channels), (16_000, 1));
    reader.samples::<i16>().map(Result::unwrap).collect()
}

fn normal(text: &str) -> Vec<String> {
    let numbers = HashMap::from([("4", "four"), ("10", "ten")]);
    let text = text.to_lowercase().replace("mr.", "mister").replace('-', " ");
    let text: String = text.chars().map(|c| if c.is_alphanumeric() || c == '\'' { c } else { ' ' }).collect();
    text.split_whitespace().map(|w| (*numbers.get(w).unwrap_or(&w)).to_owned()).collect()
}

/// Levenshtein distance in words.
fn word_errors(reference: &[String], heard: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, expected) in reference.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, word) in heard.iter().enumerate() {
            let cost = diagonal + usize::from(word != expected);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[heard.len()]
}

/// Pushes `pcm` in chunks of 100 ms and collects all events; `paced` at the speed of speech.
async fn recognise(engine: &Moonshine, pcm: &[i16], paced: bool) -> Vec<(Duration, Event)> {
    let (tx, mut rx) = mpsc::unbounded_channel();
    let mut stream = engine.open(PARAMS, tx);
    let begun = Instant::now();
    let mut events = Vec::new();
    for (n, chunk) in pcm.chunks(SAMPLE_RATE / 10).enumerate() {
        if paced {
            tokio::time::sleep_until((begun + Duration::from_millis(100 * (n as u64 + 1))).into()).await;
        }
        stream.push(chunk);
        while let Ok(event) = rx.try_recv() {
            events.push((begun.elapsed(), event));
        }
    }
    stream.finish();
    while let Some(event) = tokio::time::timeout(Duration::from_secs(60), rx.recv()).await.expect("an answer") {
        if event == Event::Finished {
            break;
        }
        events.push((begun.elapsed(), event));
    }
    assert_eq!(stream.backlog(), 0, "everything is settled");
    events
}

#[tokio::test]
async fn human_speech_is_understood() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    let (mut errors, mut words) = (0, 0);
    for name in HUMAN {
        let reference = normal(&std::fs::read_to_string(fixture(&format!("{name}.txt"))).unwrap());
        let events = recognise(&engine, &clip(name), false).await;
        let mut text = String::new();
        for (_, event) in &events {
            if let Event::Final(utterance) = event {
                text = format!("{text} {}", utterance.text);
            }
        }
        let wrong = word_errors(&reference, &normal(&text));
        println!("{name}: {wrong} of {} wrong:{text}", reference.len());
        errors += wrong;
        words += reference.len();
    }
    let rate = errors as f64 / words as f64;
    println!("word error rate {:.1} %", rate * 100.0);
    assert!(rate <= MAX_WORD_ERROR_RATE, "word error rate {:.1} %", rate * 100.0);
}
