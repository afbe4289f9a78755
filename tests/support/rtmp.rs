//! A stub of the registry and the session: it takes every publish, runs the real connection and the real decoder,
//! restarts the latter, and keeps the PCM.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;

use actix::prelude::*;
use bytes::Bytes;
use parking_lot::Mutex;
use stenocast::actors::ffmpeg_decoder::{FfmpegDecoder, Flush};
use stenocast::actors::rtmp_connection::{ClosePublisher, RtmpConnection};
use stenocast::actors::rtmp_listener::{self, RtmpListener};
use stenocast::actors::session_core::SessionCore;
use stenocast::actors::session_registry::{Publish, PublishRefusal};
use stenocast::actors::supervision::{ChildDown, ChildKind, Exit, Lifeline};
use stenocast::audio::{AudioTag, PcmChunk};
use stenocast::config::Config;
use stenocast::metrics::Metrics;
use stenocast::rtmp::PendingPublish;
use stenocast::transcript::Slug;
use tokio::process::Command;
use tokio::time::Instant;

use super::wait::{DEADLINE, until};

pub fn clip(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clips").join(name)
}

pub fn config(settings: &[(&str, &str)]) -> Arc<Config> {
    let mut values: HashMap<String, String> =
        settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    values.entry("DATA_DIR".to_owned()).or_insert_with(|| std::env::temp_dir().to_string_lossy().into_owned());
    Arc::new(Config::load(&values, true).expect("a valid configuration"))
}

/// One stubbed session.
pub struct Session {
    pub core: Arc<SessionCore>,
    pub chunks: Arc<Mutex<Vec<PcmChunk>>>,
    pub decoder: Addr<FfmpegDecoder>,
    pub connection: Option<Addr<RtmpConnection>>,
    pub publishers: u64,
    pub decoders: u64,
}

impl Session {
    /// All PCM but inserted silence.
    pub fn pcm(&self) -> Vec<i16> {
        samples(self.chunks.lock().iter().filter(|c| !c.inserted).map(|c| &c.pcm))
    }
}

pub fn samples<'a>(chunks: impl IntoIterator<Item = &'a Bytes>) -> Vec<i16> {
    let bytes: Vec<u8> = chunks.into_iter().flat_map(|c| c.iter().copied()).collect();
    bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()
}

/// What the stub saw.
#[derive(Default)]
pub struct Seen {
    pub sessions: HashMap<String, Session>,
    pub connection_exits: Vec<(String, Exit)>,
    pub decoder_exits: Vec<Exit>,
    /// Flushes that were answered.
    pub flushed: usize,
}

pub type Shared = Arc<Mutex<Seen>>;

/// Registry and session in one.
pub struct Stub {
    pub seen: Shared,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    refuse: bool,
    /// slug of each publisher generation
    generations: Vec<String>,
}

impl Actor for Stub {
    type Context = Context<Self>;
}

impl Handler<Publish> for Stub {
    type Result = Result<(), (PublishRefusal, Box<PendingPublish>)>;

    fn handle(&mut self, publish: Publish, ctx: &mut Self::Context) -> Self::Result {
        if self.refuse {
            return Err((PublishRefusal::TakeoverLimit, publish.publisher));
        }
        let slug = publish.slug.to_string();
        self.generations.push(slug.clone());
        let generation = self.generations.len() as u64;
        let parent = ctx.address().recipient();
        let lifeline = |kind| Lifeline::new(parent.clone(), kind, generation, self.metrics.clone());
        let mut seen = self.seen.lock();
        let session = seen.sessions.entry(slug).or_insert_with(|| {
            let core = Arc::new(SessionCore::new(publish.slug, self.config.clone(), self.metrics.clone()));
            let chunks = Arc::default();
            let decoder = start_decoder(&core, &chunks, lifeline(ChildKind::FfmpegDecoder));
            Session { core, chunks, decoder, connection: None, publishers: 0, decoders: 1 }
        });
        session.publishers += 1;
        let lifeline = lifeline(ChildKind::RtmpConnection);
        let connection = RtmpConnection::start(publish.publisher, session.core.clone(), generation, lifeline);
        session.connection = Some(connection);
        Ok(())
    }
}

impl Handler<ChildDown> for Stub {
    type Result = ();

    fn handle(&mut self, down: ChildDown, ctx: &mut Self::Context) {
        let mut seen = self.seen.lock();
        let slug = self.generations[down.generation as usize - 1].clone();
        let Some(session) = seen.sessions.get_mut(&slug) else { return };
        let parent = ctx.address().recipient();
        match down.kind {
            ChildKind::RtmpConnection => {
                flush(session.decoder.clone(), self.seen.clone());
                seen.connection_exits.push((slug, down.exit));
            }
            _ => {
                if down.exit != Exit::Normal {
                    let lifeline =
                        Lifeline::new(parent, ChildKind::FfmpegDecoder, down.generation, self.metrics.clone());
                    session.decoder = start_decoder(&session.core, &session.chunks, lifeline);
                    session.decoders += 1;
                    if !seen.connection_exits.is_empty() {
                        let decoder = seen.sessions[&slug].decoder.clone();
                        flush(decoder, self.seen.clone());
                    }
                }
                seen.decoder_exits.push(down.exit);
            }
        }
    }
}

fn flush(decoder: Addr<FfmpegDecoder>, seen: Shared) {
    actix_rt::spawn(async move {
        if decoder.send(Flush).await.is_ok() {
            seen.lock().flushed += 1;
        }
    });
}

fn start_decoder(
    core: &Arc<SessionCore>,
    chunks: &Arc<Mutex<Vec<PcmChunk>>>,
    lifeline: Lifeline,
) -> Addr<FfmpegDecoder> {
    let chunks = chunks.clone();
    FfmpegDecoder::start_into(core.clone(), Rc::new(move |chunk| chunks.lock().push(chunk)), lifeline)
}

/// A running listener with its stub.
pub struct Server {
    pub address: SocketAddr,
    pub seen: Shared,
    pub metrics: Arc<Metrics>,
    pub listener: Addr<RtmpListener>,
    pub stub: Addr<Stub>,
}

impl Server {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(settings, false)
    }

    pub fn start_with(settings: &[(&str, &str)], refuse: bool) -> Self {
        let config = config(settings);
        let metrics = Arc::new(Metrics::new());
        let seen = Shared::default();
        let stub =
            Stub { seen: seen.clone(), config: config.clone(), metrics: metrics.clone(), refuse, generations: vec![] }
                .start();
        let socket = rtmp_listener::bind("127.0.0.1:0".parse().unwrap()).expect("a free port");
        let address = socket.local_addr().unwrap();
        let listener = RtmpListener::start(socket, config, metrics.clone(), stub.clone().recipient());
        Self { address, seen, metrics, listener, stub }
    }

    pub fn url(&self, path: &str) -> String {
        format!("rtmp://{}/{path}", self.address)
    }

    /// Waits for the end of `count` publishers and of their last sample.
    pub async fn flushed(&self, count: usize) {
        until("all audio is out", async || self.seen.lock().flushed >= count).await;
    }

    pub fn close(&self, slug: &str, order: ClosePublisher) {
        let connection = self.seen.lock().sessions[slug].connection.clone();
        connection.expect("a publisher").do_send(order);
    }
}

pub struct Output {
    pub success: bool,
    pub stderr: String,
    pub stdout: Vec<u8>,
}

/// Runs a program to its end; a missing one fails the test with the reason.
pub async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{program} did not end: {arguments:?}")).unwrap_or_else(|error| {
        panic!(
            "{program}: {error}. These tests need ffmpeg and GStreamer: apt install ffmpeg gstreamer1.0-tools \
             gstreamer1.0-plugins-good gstreamer1.0-plugins-bad"
        )
    });
    Output {
        success: output.status.success(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        stdout: output.stdout,
    }
}

/// Publishes a clip eight times as fast as it is heard. (Faster, ffmpeg would close with much still to send; an
/// acknowledgement of ours that it has not read then makes its kernel throw that away.)
pub async fn publish_ffmpeg(url: &str, clip_name: &str) -> Output {
    let file = clip(clip_name);
    let input = file.to_str().unwrap();
    let speed = ["-hide_banner", "-nostdin", "-loglevel", "warning", "-readrate", "8"];
    run("ffmpeg", &[&speed[..], &["-i", input, "-c", "copy", "-f", "flv", url]].concat()).await
}

/// What ffmpeg makes of a clip by itself.
pub async fn reference(clip_name: &str) -> Vec<i16> {
    let file = clip(clip_name);
    let input = file.to_str().unwrap();
    let arguments = ["-v", "error", "-i", input, "-vn", "-f", "s16le", "-ar", "16000", "-ac", "1", "pipe:1"];
    let output = run("ffmpeg", &arguments).await;
    assert!(output.success, "{}", output.stderr);
    samples([&Bytes::from(output.stdout)])
}

/// The audio tags of an FLV file: timestamp in ms and body.
pub fn tags(clip_name: &str) -> Vec<(u64, Bytes)> {
    let data = Bytes::from(std::fs::read(clip(clip_name)).expect("the clip is in the repository"));
    let mut at = 13;
    let mut tags = Vec::new();
    while at + 11 < data.len() {
        let number = |range: std::ops::Range<usize>| data[range].iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let length = number(at + 1..at + 4) as usize;
        let timestamp = number(at + 4..at + 7) | u64::from(data[at + 7]) << 24;
        if data[at] == 8 {
            tags.push((timestamp, data.slice(at + 11..at + 11 + length)));
        }
        at += 11 + length + 4;
    }
    tags
}

pub fn audio_tag(publisher: u64, (timestamp_ms, body): &(u64, Bytes)) -> AudioTag {
    AudioTag { publisher, timestamp_ms: *timestamp_ms, body: body.clone(), arrived: Instant::now() }
}

pub fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

/// Signal to noise in dB of `got` against `wanted`; infinite when equal.
pub fn snr_db(wanted: &[i16], got: &[i16]) -> f64 {
    let signal: f64 = wanted.iter().map(|s| f64::from(*s).powi(2)).sum();
    let noise: f64 = wanted.iter().zip(got).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (signal / noise).log10()
}
