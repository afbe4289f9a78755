//! The demo's viewer: a plain WebSocket client that prints what it receives.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;

use anyhow::Context;
use awc::ws::{Frame, Message};
use chrono::{DateTime, Duration, Utc};
use futures_util::{SinkExt, StreamExt};

use crate::transcript::{Entry, Slug, Status, Transcript};

/// The entries that the viewer has received.
#[derive(Debug, Default)]
pub struct Heard {
    finals: Vec<String>,
    seqs: Vec<u64>,
    latencies_ms: Vec<i64>,
    pub first_interim_ms: Option<i64>,
    /// Durable entries: finals, gaps and status changes.
    pub durable: usize,
}

impl Heard {
    pub fn text(&self) -> String {
        self.finals.join(" ")
    }

    /// No hole and no duplicate.
    pub fn is_contiguous(&self) -> bool {
        !self.seqs.is_empty() && self.seqs.iter().copied().eq(1..=self.seqs.len() as u64)
    }

    /// Quantile of the time from the end of speech to its final.
    pub fn final_latency_ms(&self, quantile: f64) -> i64 {
        let mut sorted = self.latencies_ms.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * quantile) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
    }
}

/// Listens until the session has ended.
pub async fn listen(http: SocketAddr, room: Slug, token: String) -> anyhow::Result<Heard> {
    let url = format!("http://{http}/api/realtime/transcribe?session={room}");
    let client = awc::Client::builder().max_http_version(awc::http::Version::HTTP_11).finish();
    let request = client.ws(url).header("Authorization", format!("Bearer {token}"));
    let connected = request.connect().await.map_err(|e| anyhow::anyhow!("the viewer was refused: {e}"))?;
    let (_, mut socket) = connected;
    let mut heard = Heard::default();
    while let Some(frame) = socket.next().await {
        match frame.map_err(|e| anyhow::anyhow!("the viewer's connection broke: {e}"))? {
            Frame::Text(text) => {
                let Ok(entry) = serde_json::from_slice::<Entry>(&text) else { continue };
                if heard.take(&entry) {
                    break;
                }
            }
            Frame::Ping(payload) => socket.send(Message::Pong(payload)).await.context("pong not sent")?,
            Frame::Close(_) => break,
            _ => {}
        }
    }
    Ok(heard)
}

impl Heard {
    /// True at the end of the session.
    fn take(&mut self, entry: &Entry) -> bool {
        if let Some(seq) = entry.seq() {
            self.seqs.push(seq);
            self.durable += 1;
        }
        match entry {
            Entry::Transcript(line) => self.line(line),
            Entry::Gap(gap) => println!("-- gap of {} ms: {}", gap.end_ms - gap.start_ms, gap.reason.as_str()),
            Entry::Translation(line) => println!("   {}: {}", line.language, line.text),
            Entry::Status(change) => return change.status == Status::Ended,
        }
        false
    }

    fn line(&mut self, line: &Transcript) {
        let rewrite = std::io::stdout().is_terminal();
        let since = |ms: u64| (Utc::now() - moment(line, ms)).num_milliseconds();
        if !line.is_final {
            if !line.text.is_empty() {
                self.first_interim_ms.get_or_insert(since(line.start_ms));
            }
            if rewrite {
                print!("\r\x1b[2K\x1b[2m{}\x1b[0m", line.text);
                let _ = std::io::stdout().flush();
            }
            return;
        }
        let latency_ms = since(line.end_ms);
        self.latencies_ms.push(latency_ms);
        self.finals.push(line.text.clone());
        let start = if rewrite { "\r\x1b[2K" } else { "" };
        let seconds = line.start_ms as f64 / 1000.0;
        println!("{start}[{seconds:5.1} s] {}   (+{latency_ms} ms)", line.text);
    }
}

/// Wall time of a point of the session clock: the epoch is a UUIDv7, whose first 48 bits are the session's start.
fn moment(line: &Transcript, clock_ms: u64) -> DateTime<Utc> {
    let started_ms = line.epoch.get_timestamp().map_or(0, |t| {
        let (seconds, nanos) = t.to_unix();
        seconds as i64 * 1000 + i64::from(nanos) / 1_000_000
    });
    DateTime::from_timestamp_millis(started_ms).unwrap_or_default() + Duration::milliseconds(clock_ms as i64)
}
