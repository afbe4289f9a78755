//! The decoder with a real ffmpeg child: what goes in comes out, whatever happens to the child.

mod support;

use std::rc::Rc;
use std::sync::Arc;

use actix::prelude::*;
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use stenocast::actors::ffmpeg_decoder::{FfmpegDecoder, Flush};
use stenocast::actors::session_core::SessionCore;
use stenocast::actors::supervision::Observe;
use stenocast::actors::supervision::{ChildDown, ChildKind, Exit, Lifeline};
use stenocast::audio::PcmChunk;
use stenocast::metrics::Metrics;
use stenocast::transcript::TranscriptEvent;
use support::rtmp::*;
use support::wait::{DEADLINE, until};

const SAMPLES_PER_MS: usize = 16;

/// A session with nothing but a decoder, restarted when it fails.
struct Bench {
    core: Arc<SessionCore>,
    chunks: Arc<Mutex<Vec<PcmChunk>>>,
    exits: Arc<Mutex<Vec<Exit>>>,
    parent: Addr<Supervisor>,
}

/// Parent that restarts its child.
struct Supervisor {
    core: Arc<SessionCore>,
    chunks: Arc<Mutex<Vec<PcmChunk>>>,
    exits: Arc<Mutex<Vec<Exit>>>,
    restarts: usize,
    decoder: Option<Addr<FfmpegDecoder>>,
}

impl Supervisor {
    fn start_decoder(&mut self, ctx: &mut Context<Self>) {
        let lifeline = Lifeline::new(ctx.address().recipient(), ChildKind::FfmpegDecoder, 1, self.core.metrics.clone());
        let chunks = self.chunks.clone();
        let sink = Rc::new(move |chunk| chunks.lock().push(chunk));
        self.decoder = Some(FfmpegDecoder::start_into(self.core.clone(), sink, lifeline));
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.start_decoder(ctx);
    }
}

impl Handler<ChildDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        let failed = down.exit != Exit::Normal;
        self.exits.lock().push(down.exit);
        if failed && self.restarts > 0 {
            self.restarts -= 1;
            self.start_decoder(ctx);
        }
    }
}

#[derive(Message)]
#[rtype(result = "Addr<FfmpegDecoder>")]
struct Decoder;

impl Handler<Decoder> for Supervisor {
    type Result = MessageResult<Decoder>;

    fn handle(&mut self, _: Decoder, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.decoder.clone().expect("one was started"))
    }
}

impl Bench {
    fn start(settings: &[(&str, &str)], restarts: usize) -> Self {
        let core = Arc::new(SessionCore::new(slug("bench"), config(settings), Arc::new(Metrics::new())));
        let (chunks, exits) = (Arc::default(), Arc::default());
        let (core_, chunks_, exits_) = (core.clone(), Arc::clone(&chunks), Arc::clone(&exits));
        let parent = Supervisor { core: core_, chunks: chunks_, exits: exits_, restarts, decoder: None }.start();
        Self { core, chunks, exits, parent }
    }

    async fn push(&self, publisher: u64, tags: &[(u64, Bytes)]) {
        for tag in tags {
            self.core.tags.push(audio_tag(publisher, tag)).await;
        }
    }

    /// Ends the publish. The wish survives the decoder, but its answer does not.
    async fn flush(&self) {
        let answer = async || {
            let decoder = self.parent.send(Decoder).await.unwrap();
            tokio::time::timeout(DEADLINE, decoder.send(Flush)).await.expect("the flush is answered").is_ok()
        };
        until("a decoder has flushed", answer).await;
    }

    fn pcm(&self) -> Vec<i16> {
        samples(self.chunks.lock().iter().map(|c| &c.pcm))
    }

    async fn pid(&self) -> Pid {
        let child = async || {
            let decoder = self.parent.send(Decoder).await.unwrap();
            decoder.send(Observe::default()).await.ok()?.child_pid
        };
        Pid::from_raw(until("a child", child).await as i32)
    }

    async fn heard_ms(&self, ms: usize) {
        until("enough PCM", async || self.pcm().len() >= ms * SAMPLES_PER_MS).await;
    }
}

/// What an undisturbed decoder makes of these tags.
async fn undisturbed(tags: &[(u64, Bytes)]) -> Vec<i16> {
    let bench = Bench::start(&[], 0);
    bench.push(1, tags).await;
    bench.flush().await;
    assert!(bench.exits.lock().is_empty());
    bench.pcm()
}

#[actix::test]
async fn chunks_are_100_ms_and_lie_end_to_end() {
    let bench = Bench::start(&[], 0);
    bench.push(1, &tags("audio_aac44s.flv")).await;
    bench.flush().await;
    let chunks = bench.chunks.lock();
    let (last, full) = chunks.split_last().unwrap();
    for pair in full.windows(2) {
        assert_eq!(pair[0].pcm.len(), 3200);
        assert_eq!(pair[1].start_ms, pair[0].start_ms + 100);
    }
    assert!(last.pcm.len() <= 3200 && chunks.iter().all(|c| !c.inserted));
    assert_eq!(bench.core.metrics.decode_latency_seconds.get_sample_count(), chunks.len() as u64);
}

/// Kills the child after every so many tags, and compares.
async fn killing_loses_nothing(clip_name: &str, least_snr_db: f64) {
    let tags = tags(clip_name);
    let bench = Bench::start(&[], 10);
    let quarter = tags.len() / 4;
    for (n, part) in tags.chunks(quarter).enumerate() {
        bench.push(1, part).await;
        if n < 3 {
            bench.heard_ms((n + 1) * 2000).await;
            kill(bench.pid().await, Signal::SIGKILL).unwrap();
            until("the end of the decoder", async || bench.exits.lock().len() > n).await;
        }
    }
    bench.flush().await;
    let (got, wanted) = (bench.pcm(), undisturbed(&tags).await);
    assert_eq!(got.len(), wanted.len());
    assert!(snr_db(&wanted, &got) > least_snr_db, "{} dB", snr_db(&wanted, &got));
    // One more only where the machine stood still for so long that a child seemed frozen.
    assert!(bench.core.metrics.ffmpeg_starts_total.get() >= 4);
    let killed = |exit: &&Exit| matches!(exit, Exit::Failed(why) if why.contains("signal: 9"));
    assert_eq!(bench.exits.lock().iter().filter(killed).count(), 3);
    // What came in parts, faster than in real time, may take less of it.
    assert!(bench.chunks.lock().windows(2).all(|c| c[1].start_ms > c[0].start_ms));
    assert_eq!(bench.core.decode().check(), Ok(()));
}

/// The encoder's noise substitution is random by design, so no two decodes are equal to the bit.
#[actix::test]
async fn killing_the_child_loses_nothing_at_48_khz() {
    killing_loses_nothing("audio_aac48s.flv", 35.0).await;
}

/// At 44.1 kHz a new resampler begins up to 1/50 of a sample off.
#[actix::test]
async fn killing_the_child_loses_nothing_at_44_100_hz() {
    killing_loses_nothing("audio_aac44s.flv", 20.0).await;
}

#[actix::test]
async fn killing_the_child_loses_nothing_of_he_aac() {
    killing_loses_nothing("audio_heaac48s.flv", 35.0).await;
}

#[actix::test]
async fn a_frozen_child_is_found_and_replaced() {
    let tags = tags("audio_aac48s.flv");
    let bench = Bench::start(&[], 10);
    bench.push(1, &tags[..100]).await;
    bench.heard_ms(1500).await;
    kill(bench.pid().await, Signal::SIGSTOP).unwrap();
    bench.push(1, &tags[100..]).await;
    bench.flush().await;
    assert_eq!(bench.pcm().len(), undisturbed(&tags).await.len());
    let exits = bench.exits.lock();
    let frozen = |exit: &Exit| matches!(exit, Exit::Failed(why) if why.contains("no audio for 2000 ms"));
    assert!(!exits.is_empty() && exits.iter().all(frozen), "{exits:?}");
    assert_eq!(bench.core.metrics.ffmpeg_processes.get(), 0);
}

#[actix::test]
async fn broken_frames_become_silence_of_their_length() {
    let mut tags = tags("audio_aac48s.flv");
    let whole = undisturbed(&tags).await;
    let mut broken = 0;
    for (_, body) in tags.iter_mut().skip(20).step_by(20) {
        // The frame is there, but means nothing.
        let noise = body.iter().enumerate().map(|(n, b)| if n < 2 { *b } else { (n * 31 % 251) as u8 });
        *body = noise.collect::<Vec<u8>>().into();
        broken += 1;
    }
    let bench = Bench::start(&[], 0);
    bench.push(1, &tags).await;
    bench.flush().await;
    let got = bench.pcm();
    // Silence ends at a whole millisecond; the next one makes up for it.
    assert!(got.len().abs_diff(whole.len()) < SAMPLES_PER_MS, "{} of {}", got.len(), whole.len());
    assert!(bench.exits.lock().is_empty());
    let errors = bench.core.metrics.decode_errors_total.get();
    assert!((broken / 2..=broken).contains(&errors), "{errors} of {broken}");
    // Between the broken frames, which spoil their neighbours too, the sound is in its place to the millisecond.
    let frame = 1024 / 3;
    for after in [0, 20 * 5, 20 * 20] {
        let good = (after + 10) * frame..(after + 16) * frame;
        let shifted = |by: usize| snr_db(&whole[good.clone()], &got[good.start + by - SAMPLES_PER_MS..]);
        let best = (0..=2 * SAMPLES_PER_MS).map(shifted).fold(f64::MIN, f64::max);
        assert!(best > 8.0, "{best} dB after frame {after}");
    }
}

#[actix::test]
async fn gaps_become_silence_and_pauses_become_segments() {
    let tags = tags("audio_aac48s.flv");
    // 187 frames of 1024 at 48 kHz are 3989 ms.
    let late = |from: usize, to: usize, by: u64| tags[from..to].iter().map(move |(t, b)| (t + by, b.clone()));
    let stream: Vec<_> = late(0, 188, 0).chain(late(188, 300, 500)).chain(late(300, 400, 90_000)).collect();
    let bench = Bench::start(&[], 0);
    bench.push(1, &stream).await;
    bench.flush().await;
    let chunks = bench.chunks.lock();
    let inserted: Vec<_> = chunks.iter().filter(|c| c.inserted).collect();
    let silent: usize = inserted.iter().map(|c| c.pcm.len() / 2).sum();
    let at = inserted[0].start_ms - chunks[0].start_ms;
    assert!(silent.abs_diff(500 * SAMPLES_PER_MS) < 2 * SAMPLES_PER_MS, "{silent}");
    assert!(at.abs_diff(3989) <= 2, "{at}");
    let sound: usize = chunks.iter().filter(|c| !c.inserted).map(|c| c.pcm.len() / 2).sum();
    assert!(sound.abs_diff(399 * 1024 / 3) < SAMPLES_PER_MS + 2, "{sound}");
    // All came at once, so the segment after the pause begins where the one before ended.
    for pair in chunks.windows(2) {
        let end = pair[0].start_ms + (pair[0].pcm.len() / 32) as u64;
        assert!((end..=end + 1).contains(&pair[1].start_ms), "{} after {end}", pair[1].start_ms);
    }
}

#[actix::test]
async fn a_new_publisher_gets_a_new_child_and_both_are_heard_to_the_end() {
    let tags = tags("audio_heaacv2.flv");
    let bench = Bench::start(&[], 0);
    bench.push(1, &tags[..200]).await;
    bench.push(2, &tags[..100]).await;
    bench.flush().await;
    bench.push(3, &tags[..50]).await;
    bench.flush().await;
    let frames = 199 + 99 + 49;
    assert!(bench.pcm().len().abs_diff(frames * 2048 / 3) <= 3);
    assert_eq!(bench.core.metrics.ffmpeg_starts_total.get(), 3);
}

#[actix::test]
async fn a_flush_without_anything_is_answered() {
    let bench = Bench::start(&[], 0);
    bench.flush().await;
    bench.push(1, &tags("audio_aac48s.flv")[..1]).await;
    bench.flush().await;
    assert!(bench.pcm().is_empty());
    assert_eq!(bench.core.metrics.ffmpeg_starts_total.get(), 0, "nothing to decode, nothing started");
}

#[actix::test]
async fn a_missing_ffmpeg_says_how_to_get_it() {
    let bench = Bench::start(&[("FFMPEG_PATH", "/nonexistent/ffmpeg")], 0);
    bench.push(1, &tags("audio_aac48s.flv")[..9]).await;
    let exit = until("the end of the decoder", async || bench.exits.lock().first().cloned()).await;
    assert!(matches!(&exit, Exit::Failed(why) if why.contains("apt install ffmpeg") && why.contains("FFMPEG_PATH")));
    assert_eq!(bench.core.decode().waiting(), 8, "the tags wait for it");
}

#[actix::test]
async fn audio_that_no_decoder_gets_through_is_given_up_and_announced() {
    let bench = Bench::start(&[("FFMPEG_PATH", "false")], 3);
    bench.push(1, &tags("audio_aac48s.flv")[..50]).await;
    let gap = tokio::time::timeout(DEADLINE, bench.core.results.peek(0)).await.expect("an announcement");
    assert!(matches!(gap, TranscriptEvent::Gap { start_ms, end_ms, .. } if start_ms <= end_ms), "{gap:?}");
    until("the third end", async || bench.exits.lock().len() == 3).await;
    assert_eq!(bench.core.decode().waiting(), 0);
}
