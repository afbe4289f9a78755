//! Checkpoint files: one that cannot be read is set aside and costs its neighbour nothing; one that can be read, true or
//! not, gives a session that works: its ledger takes audio, is heard and ends.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use stenocast::audio::PcmChunk;
use stenocast::config::Secret;
use stenocast::gladia::ledger::{self, Ledger, Limits, LossReason, MemorySpool, Recognised, ReplayBudget};
use stenocast::transcript::checkpoint::{Checkpoint, Checkpoints};
use stenocast::transcript::{Epoch, Slug};
use stenocast_fuzz::{catch_stack_overflow, scratch};
use tokio::time::Instant;

const LIMITS: Limits = Limits { window: Duration::from_secs(60), max_utterance: Duration::from_secs(15) };

fn neighbour() -> Checkpoint {
    Checkpoint {
        origin: Default::default(),
        slug: Slug::parse("neighbour").expect("a slug"),
        epoch: Epoch::from_u128(7),
        started_at: Default::default(),
        next_seq: 3,
        clock_ms: 99,
        is_publishing: true,
        audio_config: Some("af001210".to_owned()),
        recogniser: serde_json::Value::Null,
    }
}

fn live(image: ledger::LedgerImage) {
    let now = Instant::now();
    let budget = Arc::new(ReplayBudget::new(1 << 20));
    let mut ledger = Ledger::restore(now, image, LIMITS, Box::<MemorySpool>::default(), budget.clone());
    let start_ms = ledger.end_clock_ms();
    ledger.push(now, PcmChunk { pcm: vec![0; 3200].into(), start_ms, inserted: false, arrived: now });
    ledger.connected(now);
    speak(&mut ledger, now, "1");
    ledger.begin_session(now, "next".into(), Secret::new("ws://recogniser"));
    ledger.connected(now);
    if let Some(pcm) = ledger.next_audio(1 << 20) {
        ledger.mark_sent(now, pcm.len() as u64);
    }
    ledger.acknowledged(0, 3200);
    ledger.place();
    speak(&mut ledger, now, "2");
    ledger.tick(now, now);
    ledger.checkpoint();
    ledger.give_up(LossReason::SttUnavailable);
    assert_eq!((ledger.check(), ledger.in_flight_bytes()), (Ok(()), 0));
    ledger.account();
    drop(ledger);
    assert_eq!(budget.used_bytes(), 0);
}

fn speak(ledger: &mut Ledger, now: Instant, id: &str) {
    let said = Recognised {
        id: id.to_owned(),
        is_final: true,
        is_doubtful: false,
        text: " hello".to_owned(),
        start_s: 0.01,
        end_s: 0.09,
        language: None,
        confidence: None,
        voice: None,
        words: Vec::new(),
    };
    ledger.text(now, Default::default(), &said);
}

/// Without this, a new field would leave the ledger's part of every seed unread, and nobody would notice.
fn check_seed() {
    let seed = include_bytes!("../seeds/checkpoint/with_session");
    let seed: Checkpoint = serde_json::from_slice(seed).expect("the seed is a checkpoint");
    let image: Result<ledger::LedgerImage, _> = serde_json::from_value(seed.recogniser);
    image.expect("fuzz/seeds/checkpoint/with_session lacks a field of the ledger's checkpoint: add it to the seeds");
    catch_stack_overflow();
}

fuzz_target!(init: check_seed(), |data: &[u8]| {
    let dir = scratch();
    let sessions = dir.path().join("sessions");
    std::fs::create_dir(&sessions).expect("a new directory");
    let good = serde_json::to_vec(&neighbour()).expect("JSON");
    std::fs::write(sessions.join("good.json"), good).expect("a new file");
    std::fs::write(sessions.join("x.json"), data).expect("a new file");
    let (checkpoints, found) = Checkpoints::open(dir.path()).expect("damage is no reason not to start");
    drop(checkpoints);
    assert!(found.contains(&neighbour()));
    assert_eq!(found.len() + usize::from(sessions.join("x.bad").exists()), 2);
    for checkpoint in found {
        // As the program adopts it: an image of another shape is left out.
        if let Ok(image) = serde_json::from_value(checkpoint.recogniser) {
            live(image);
        }
    }
});
