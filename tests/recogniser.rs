//! The real recogniser on recorded speech. Needs the model files: `scripts/models.sh` installs them.

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stenocast::local_stt::engine::{Engine, Event, SAMPLE_RATE, StreamParams, Utterance};
use stenocast::local_stt::marker;
use stenocast::local_stt::moonshine::Moonshine;
use support::pace::Pace;
use support::wait::DEADLINE;
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
    let (begun, pace) = (Instant::now(), Pace::begin());
    let mut events = Vec::new();
    for (n, chunk) in pcm.chunks(SAMPLE_RATE / 10).enumerate() {
        if paced {
            pace.reaches(100 * (n as u64 + 1)).await;
        }
        stream.push(chunk);
        while let Ok(event) = rx.try_recv() {
            events.push((begun.elapsed(), event));
        }
    }
    stream.finish();
    while let Some(event) = tokio::time::timeout(DEADLINE, rx.recv()).await.expect("an answer") {
        if event == Event::Finished {
            break;
        }
        events.push((begun.elapsed(), event));
    }
    assert_eq!(stream.backlog(), 0, "everything is settled");
    events
}

fn finals(events: &[(Duration, Event)]) -> Vec<&Utterance> {
    let utterances = events.iter().filter_map(|(_, event)| match event {
        Event::Final(utterance) => Some(utterance),
        _ => None,
    });
    utterances.collect()
}

fn text(events: &[(Duration, Event)]) -> String {
    finals(events).iter().map(|u| u.text.as_str()).collect::<Vec<_>>().join(" ")
}

fn silence(ms: usize) -> Vec<i16> {
    vec![0; ms * SAMPLE_RATE / 1000]
}

#[tokio::test]
async fn human_speech_is_understood() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    let (mut errors, mut words) = (0, 0);
    for name in HUMAN {
        let reference = normal(&std::fs::read_to_string(fixture(&format!("{name}.txt"))).unwrap());
        let events = recognise(&engine, &clip(name), false).await;
        let text = text(&events);
        let wrong = word_errors(&reference, &normal(&text));
        println!("{name}: {wrong} of {} wrong: {text}", reference.len());
        errors += wrong;
        words += reference.len();
    }
    let rate = errors as f64 / words as f64;
    println!("word error rate {:.1} %", rate * 100.0);
    assert!(rate <= MAX_WORD_ERROR_RATE, "word error rate {:.1} %", rate * 100.0);
}

#[tokio::test]
async fn interims_come_while_the_speaker_speaks_and_words_have_times() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    let audio = [silence(500), clip("librivox_0870"), silence(1000)].concat();
    let events = recognise(&engine, &audio, true).await;
    let utterance = finals(&events)[0];
    let final_at = events.iter().position(|(_, e)| matches!(e, Event::Final(_))).unwrap();
    let interims: Vec<&Utterance> =
        events[..final_at].iter().filter_map(|(_, e)| if let Event::Interim(u) = e { Some(u) } else { None }).collect();
    // How many depends on how busy the machine is.
    assert!(!interims.is_empty());
    assert!(interims.iter().all(|u| u.segment == utterance.segment && !u.text.is_empty()));
    assert!(matches!(events[0].1, Event::SpeechStart { .. }));
    assert!((400..1200).contains(&utterance.start_ms), "{}", utterance.start_ms);
    assert!(utterance.end_ms <= audio.len() as u64 / 16 && utterance.confidence > 0.5);
    let words = &utterance.words;
    assert_eq!(words.iter().map(|w| w.word.as_str()).collect::<Vec<_>>().join(" "), utterance.text);
    assert!(words.windows(2).all(|w| w[0].start_ms < w[0].end_ms && w[0].end_ms == w[1].start_ms));
    assert_eq!((words[0].start_ms, words.last().unwrap().end_ms), (utterance.start_ms, utterance.end_ms));
}

#[tokio::test]
async fn silence_and_noise_say_nothing() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 19) as i16 - 4096
    });
    let tone =
        (0..3 * SAMPLE_RATE).map(|i| ((i as f64 * 440.0 * std::f64::consts::TAU / 16_000.0).sin() * 8000.0) as i16);
    for audio in [silence(3000), noise.take(3 * SAMPLE_RATE).collect(), tone.collect(), vec![], vec![1; 100]] {
        let events = recognise(&engine, &audio, false).await;
        assert_eq!(text(&events), "");
    }
}

#[tokio::test]
async fn long_speech_is_cut_and_several_streams_keep_their_order() {
    let engine = Moonshine::load(&model_dir(), 2).unwrap();
    let once = clip("librivox_0870");
    let audio = [once.clone(), once.clone(), once].concat();
    let params = StreamParams { max_segment_ms: 5000, ..PARAMS };
    let mut streams: Vec<_> = (0..3)
        .map(|_| {
            let (tx, rx) = mpsc::unbounded_channel();
            (engine.open(params, tx), rx)
        })
        .collect();
    for (stream, _) in &mut streams {
        stream.push(&audio);
        stream.finish();
    }
    for (stream, rx) in &mut streams {
        let mut segments = Vec::new();
        let mut words = Vec::new();
        while let Some(event) = tokio::time::timeout(DEADLINE, rx.recv()).await.unwrap() {
            match event {
                Event::Final(u) => {
                    assert!(u.end_ms - u.start_ms <= 5000, "{u:?}");
                    segments.push(u.segment);
                    words.extend(normal(&u.text));
                }
                Event::Finished => break,
                _ => {}
            }
        }
        assert!(segments.len() >= 4 && segments.is_sorted(), "{segments:?}");
        assert_eq!(words.iter().filter(|w| *w == "dashwood").count(), 3, "{words:?}");
        assert_eq!(stream.backlog(), 0);
    }
}

#[tokio::test]
async fn abandoned_streams_leave_the_engine_to_the_others() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    for _ in 0..20 {
        let (tx, _rx) = mpsc::unbounded_channel();
        let mut stream = engine.open(PARAMS, tx);
        stream.push(&clip("librivox_0870"));
    }
    let events = recognise(&engine, &clip("goforward"), false).await;
    assert!(text(&events).to_lowercase().contains("forward"), "{}", text(&events));
    let load = engine.load();
    assert_eq!((load.finals_waiting, load.broken), (0, false));
}

/// As a stream does it: AAC at 64 kbit/s and back.
fn through_aac(pcm: &[i16], rate: &str) -> Vec<i16> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (raw, flv, back) = (path("in.pcm"), path("a.flv"), path("out.pcm"));
    std::fs::write(&raw, pcm.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let ffmpeg = |args: &[&str]| {
        let output = std::process::Command::new("ffmpeg").args(["-v", "error", "-y"]).args(args).output();
        let output = output.expect("this test needs ffmpeg on the PATH");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let pcm16 = ["-f", "s16le", "-ar", "16000", "-ac", "1"];
    ffmpeg(&[&pcm16[..], &["-i", &raw, "-ar", rate, "-ac", "2", "-c:a", "aac", "-b:a", "64k", &flv]].concat());
    ffmpeg(&[&["-i", &flv][..], &pcm16, &[&back]].concat());
    std::fs::read(back).unwrap().chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()
}

#[tokio::test]
async fn markers_survive_aac_and_resampling() {
    let audio = [silence(700), marker::track(987, 20, 1500)].concat();
    for rate in ["44100", "48000"] {
        let (tx, mut rx) = mpsc::unbounded_channel();
        let mut stream = marker::MarkerEngine.open(StreamParams { end_silence_ms: 300, ..PARAMS }, tx);
        stream.push(&through_aac(&audio, rate));
        stream.finish();
        let mut found = Vec::new();
        while let Ok(event) = rx.try_recv() {
            if let Event::Final(u) = event {
                found.push((marker::parse(&u.text), u.start_ms));
            }
        }
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), (987..1007).map(Some).collect::<Vec<_>>(), "{rate}");
        // The codec itself shifts audio by up to two of its frames.
        let off = found.iter().zip(0..).map(|(f, n)| f.1.abs_diff(700 + 1500 * n)).max().unwrap();
        println!("{rate} Hz: times off by at most {off} ms");
        assert!(off <= 50, "{rate}: {found:?}");
    }
}

#[tokio::test]
async fn speech_survives_aac() {
    let engine = Moonshine::load(&model_dir(), 1).unwrap();
    let events = recognise(&engine, &through_aac(&clip("librivox_0870"), "48000"), false).await;
    let reference = normal(&std::fs::read_to_string(fixture("librivox_0870.txt")).unwrap());
    let wrong = word_errors(&reference, &normal(&text(&events)));
    assert!(wrong <= 2, "{wrong} wrong: {}", text(&events));
}

/// More audio at once than may wait for the engine (60 s): the service stops reading and goes on when there is room.
#[actix::test]
async fn a_client_far_ahead_is_slowed_down_and_loses_nothing() {
    use futures_util::{SinkExt, StreamExt};
    use stenocast::gladia::wire::{LiveReply, ServerEnvelope, ServerMessage};
    use tokio_tungstenite::tungstenite::Message;
    let options = stenocast::local_stt::SttOptions {
        host: "127.0.0.1".to_owned(),
        port: 0,
        model_dir: model_dir(),
        threads: 1,
        max_sessions: 1,
        engine: stenocast::local_stt::EngineKind::Moonshine,
        faults: false,
        keep_audio: false,
        limits: stenocast::local_stt::Limits::default(),
    };
    let service = stenocast::local_stt::serve(options).await.unwrap();
    let url = format!("{}/v2/live", service.base_url());
    let mut response = awc::Client::default().post(url).send_json(&serde_json::json!({})).await.unwrap();
    let reply: LiveReply = response.json().await.unwrap();
    let (mut sink, mut source) = tokio_tungstenite::connect_async(&reply.url).await.unwrap().0.split();
    let spoken = [clip("goforward"), silence(1000)].concat();
    let times = 100 * SAMPLE_RATE / spoken.len();
    let audio: Vec<u8> = spoken.repeat(times).iter().flat_map(|s| s.to_le_bytes()).collect();
    actix::spawn(async move {
        for frame in audio.chunks(512 * 1024) {
            sink.send(Message::binary(frame.to_vec())).await.unwrap();
        }
        sink.send(Message::text(r#"{"type":"stop_recording"}"#)).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut heard = Vec::new();
    while let Some(Ok(message)) = tokio::time::timeout(DEADLINE, source.next()).await.unwrap() {
        let Message::Text(text) = message else { break };
        if let ServerMessage::Transcript { data } = serde_json::from_str::<ServerEnvelope>(&text).unwrap().message {
            heard.extend(normal(&data.utterance.text));
        }
    }
    assert_eq!(heard.iter().filter(|w| *w == "forward").count(), times, "{heard:?}");
    service.stop().await;
}
