//! `make livekit-demo`: a LiveKit room starts its own captions. Two people talk in turns, the room's egress brings their sound
//! by RTMP as LiveKit's does, and each of the three ways to know who speaks labels the lines; captions come back into the
//! room both ways, the room ends, and everything that was started for it is gone. A table says how many words had the right
//! name.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stenocast::config::Secret;
use stenocast::livekit::token::mint;
use stenocast::transcript::Slug;
use support::app::KEY;
use support::livekit::egress::Manner;
use support::livekit::participant::NodeParticipant;
use support::livekit::{FakeLiveKit, Task};
use support::publisher::clip;
use support::server::{Server, health};
use support::viewer::Viewer;
use support::wait::{until, within};

const ROOM: &str = "team-sync";
/// Identity and name.
const ANNA: (&str, &str) = ("anna-7", "Anna");
const BEN: (&str, &str) = ("ben-3", "Ben");
/// Who says which clip, and the pause after it. Two readers; one turn follows the other at once.
const TURNS: &[((&str, &str), &str, u64)] = &[
    (ANNA, "librivox_0870", 900),
    (BEN, "cards_003", 900),
    (BEN, "cards_001", 250),
    (ANNA, "librivox_0880", 900),
    (BEN, "cards_002", 900),
    (ANNA, "librivox_0890", 900),
    (BEN, "goforward", 900),
];
/// The egress is so late.
const LATE_MS: u64 = 1200;
/// Way by which the server learns who speaks, and the one by which captions come back.
const WAYS: [(&str, &str); 3] = [("browser", "data"), ("observer", "transcription"), ("tracks", "data")];
const MODEL_PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(200);

fn main() {
    let is_whole = actix_rt::System::new().block_on(async {
        let mut rows = Vec::new();
        for (speakers, captions) in WAYS {
            rows.push(talk(speakers, captions).await);
        }
        table(&rows)
    });
    if !is_whole {
        println!("the demo did not go as it should");
        std::process::exit(1);
    }
}

fn say(begun: Instant, what: &str) {
    println!("{:>6.1} s  {what}", begun.elapsed().as_secs_f64());
}

/// The result of one talk.
struct Row {
    speakers: &'static str,
    captions: &'static str,
    words: Words,
    lines: usize,
    /// Finals that came back into the room.
    returned: usize,
    /// Everything that was started for the room has ended.
    is_clean: bool,
    gaps: usize,
}

/// Words by what their line's label is.
#[derive(Default)]
struct Words {
    right: usize,
    wrong: usize,
    unknown: usize,
}

/// The same conversation, with one source of speakers.
async fn talk(speakers: &'static str, captions: &'static str) -> Row {
    let begun = Instant::now();
    println!("\nLIVEKIT_SPEAKERS={speakers} LIVEKIT_CAPTIONS={captions}");
    let livekit = FakeLiveKit::start();
    livekit.egresses_will(&[Manner::Publishes(LATE_MS)]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (http, rtmp) = (free_port(), free_port());
    let server = Server::start(
        dir.path(),
        &[
            ("PORT", &http.port().to_string()),
            ("RTMP_PORT", &rtmp.port().to_string()),
            ("RTMP_OPEN", "false"),
            ("RTMP_HOST", "127.0.0.1"),
            ("RTMP_PUBLISH_KEY", "a key that only the egress is given"),
            ("LIVEKIT_URL", &livekit.url()),
            ("LIVEKIT_EGRESS", "room_composite"),
            ("RTMP_PUBLIC_URL", &format!("rtmp://{rtmp}/live")),
            ("HTTP_PUBLIC_URL", &format!("http://{http}")),
            ("LIVEKIT_SPEAKERS", speakers),
            ("LIVEKIT_CAPTIONS", captions),
        ],
    )
    .await;
    livekit.send_webhooks_to_addr(server.http);
    recogniser_ready(&server).await;
    say(begun, "the room begins, Anna and Ben come in");
    livekit.create_room(ROOM);
    for (identity, name) in [ANNA, BEN] {
        livekit.join(ROOM, identity, name);
        livekit.publish_microphone(ROOM, identity);
    }
    until("its egress runs", async || {
        livekit.running(ROOM).len() == 1 || speakers == "tracks" && livekit.running(ROOM).len() == 3
    })
    .await;
    until("its egress publishes", async || server.session(ROOM).await["status"] == "live").await;
    say(begun, &format!("stenocast has started {} egress(es), and one of them publishes", livekit.running(ROOM).len()));
    let node = NodeParticipant::join(&livekit, ROOM, "carol-1").await;
    let (_counting, returned) = count_finals(node, captions);
    let mut viewer = Viewer::connect(server.http, ROOM, "").await;
    let _browsers: Vec<Task> = match speakers {
        "browser" => [ANNA, BEN]
            .map(|(identity, name)| Task(tokio::spawn(browser(livekit.server.clone(), server.http, identity, name))))
            .into(),
        _ => Vec::new(),
    };
    for ((identity, _), clip, pause_ms) in TURNS {
        let (samples, silence) = (samples(clip), vec![0; *pause_ms as usize * 48]);
        for (other, _) in [ANNA, BEN] {
            let said = if other == *identity { samples.clone() } else { vec![0; samples.len()] };
            livekit.say(ROOM, other, &said);
            livekit.say(ROOM, other, &silence);
        }
    }
    let last = TURNS.last().expect("a turn").1;
    let printed = std::cell::Cell::new(0);
    viewer
        .until("the last turn's words", |seen| {
            let lines: Vec<_> = seen.iter().filter(|m| m["isFinal"] == true).collect();
            for line in &lines[printed.replace(lines.len()).min(lines.len())..] {
                let who = line["speaker"]["name"].as_str().unwrap_or("(unknown)");
                say(begun, &format!("    {who}: {}", line["text"].as_str().unwrap_or_default()));
            }
            let text = lines.last().map(|line| words(line["text"].as_str().unwrap_or_default())).unwrap_or_default();
            text.last().is_some() && text.last() == words(&reference(last)).last()
        })
        .await;
    let wanted = viewer.finals().len();
    let _ = within(Duration::from_secs(5), POLL, async || returned.load(Ordering::Relaxed) >= wanted).await;
    say(begun, "everybody leaves, the room is over");
    livekit.delete_room(ROOM);
    viewer.until_ended().await;
    let is_clean = within(Duration::from_secs(20), POLL, async || is_clean(&livekit, &server).await).await.is_ok();
    let lines: Vec<&Value> = viewer.seen.iter().filter(|m| m["isFinal"] == true).collect();
    Row {
        speakers,
        captions,
        words: judge(&lines),
        lines: lines.len(),
        returned: returned.load(Ordering::Relaxed),
        is_clean,
        gaps: viewer.seen.iter().filter(|m| m["type"] == "gap").count(),
    }
}

/// A participant's browser: its LiveKit client says who speaks as LiveKit's server measures it, every 400 ms, and it passes
/// that on for itself.
async fn browser(livekit: Arc<support::livekit::Server>, http: SocketAddr, identity: &'static str, name: &'static str) {
    /// LiveKit's interval, and what counts as speech in it: louder than -35 dBov in 40 % of the time.
    const FRAMES: usize = 40;
    const LOUD: f64 = 0.017_78 * 32_768.0;
    let mut voices = livekit.state.lock().rooms[ROOM].voices.listen();
    let (room, secret) = (Slug::parse(ROOM).expect("a room"), Secret::new(KEY.1));
    let token = mint(KEY.0, &secret, identity, Some(name), &room, Duration::from_secs(600), false);
    let mut socket = Viewer::connect_as(http, ROOM, "", &token).await;
    let mut loud: BTreeMap<String, usize> = BTreeMap::new();
    let mut was_speaking = false;
    for n in 1usize.. {
        let Ok(frame) = voices.recv().await else { return };
        for (who, samples) in &frame.by_identity {
            let energy: f64 = samples.iter().map(|s| f64::from(*s) * f64::from(*s)).sum();
            *loud.entry(who.clone()).or_default() += usize::from((energy / samples.len() as f64).sqrt() > LOUD);
        }
        if n % FRAMES != 0 {
            continue;
        }
        let speaks = |who: &&String| loud[*who] * 10 >= FRAMES * 4;
        let speakers: Vec<Value> =
            loud.keys().filter(speaks).map(|who| json!({"identity": who, "level": 0.5})).collect();
        let is_speaking = loud.get(identity).is_some_and(|count| count * 10 >= FRAMES * 4);
        if is_speaking || was_speaking {
            let at = chrono::Utc::now().timestamp_millis();
            socket.send(&json!({"type": "active_speakers", "at": at, "speakers": speakers})).await;
        }
        was_speaking = is_speaking;
        loud.values_mut().for_each(|count| *count = 0);
    }
}

/// LiveKit's own client, which is in the room: it counts the finals that come back.
fn count_finals(mut node: NodeParticipant, captions: &'static str) -> (Task, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let counting = async move {
        loop {
            match captions {
                "data" => node.until("data", |event| data_of(event)["isFinal"] == true).await,
                _ => node.until("text", |event| event["attributes"]["lk.transcription_final"] == "true").await,
            };
            counted.fetch_add(1, Ordering::Relaxed);
        }
    };
    (Task(tokio::spawn(counting)), count)
}

fn data_of(event: &Value) -> Value {
    event["text"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Nothing that was started for the room is left.
async fn is_clean(livekit: &FakeLiveKit, server: &Server) -> Result<(), String> {
    let running = livekit.running(ROOM);
    if !running.is_empty() {
        return Err(format!("egresses go on: {running:?}"));
    }
    let session = server.session(ROOM).await;
    if session.is_null() { Ok(()) } else { Err(format!("the session goes on: {session}")) }
}

/// Gives each word of each line to whoever has said it, and compares that with the line's label.
fn judge(lines: &[&Value]) -> Words {
    let mut all = Words::default();
    for line in lines {
        let said = words(line["text"].as_str().unwrap_or_default());
        let of = |person: (&str, &str)| {
            let vocabulary: Vec<String> =
                TURNS.iter().filter(|turn| turn.0 == person).flat_map(|turn| words(&reference(turn.1))).collect();
            said.iter().filter(|word| vocabulary.contains(word)).count()
        };
        let speaker = if of(ANNA) >= of(BEN) { ANNA } else { BEN };
        match line["speaker"]["identity"].as_str() {
            None => all.unknown += said.len(),
            Some(identity) if identity == speaker.0 => all.right += said.len(),
            Some(_) => all.wrong += said.len(),
        }
    }
    all
}

/// True when every way has labelled well, and has left nothing behind.
fn table(rows: &[Row]) -> bool {
    println!();
    println!("speakers   captions        lines  gaps  words right  wrong  unknown  back in the room  all ended");
    for row in rows {
        let total = (row.words.right + row.words.wrong + row.words.unknown).max(1);
        let share = |count: usize| format!("{:.0} %", count as f64 * 100.0 / total as f64);
        println!(
            "{:<10} {:<14} {:>6} {:>5} {:>12} {:>6} {:>8} {:>17}  {}",
            row.speakers,
            row.captions,
            row.lines,
            row.gaps,
            share(row.words.right),
            share(row.words.wrong),
            share(row.words.unknown),
            format!("{} of {}", row.returned, row.lines),
            if row.is_clean { "yes" } else { "NO" },
        );
    }
    rows.iter().all(|row| {
        let is_right = row.words.wrong == 0 && row.words.right * 10 >= (row.words.right + row.words.unknown) * 8;
        is_right && row.is_clean && row.returned == row.lines && row.gaps == 0
    })
}

/// A clip at 48 kHz.
fn samples(name: &str) -> Vec<i16> {
    let mut wav = hound::WavReader::open(clip(&format!("{name}.wav"))).expect("a bundled clip");
    let at_16_khz: Vec<i16> = wav.samples::<i16>().map(|sample| sample.expect("PCM16")).collect();
    let pairs = at_16_khz.windows(2);
    pairs
        .flat_map(|pair| (0..3).map(move |n| (i32::from(pair[0]) * (3 - n) + i32::from(pair[1]) * n) / 3))
        .map(|s| s as i16)
        .collect()
}

fn reference(name: &str) -> String {
    std::fs::read_to_string(clip(&format!("{name}.txt"))).expect("a bundled clip")
}

fn words(text: &str) -> Vec<String> {
    let letters = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    text.split_whitespace().map(letters).filter(|word| !word.is_empty()).collect()
}

async fn recogniser_ready(node: &Server) {
    let is_up = async || {
        let health = health(node.http).await.map_err(|error| error.to_string())?;
        if health["recogniser"]["state"] == "up" { Ok(()) } else { Err(health.to_string()) }
    };
    let loaded = within(MODEL_PATIENCE, POLL, is_up).await;
    assert!(loaded.is_ok(), "the speech model is not loaded: {loaded:?}");
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}
