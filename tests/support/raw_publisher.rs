//! A publisher without a library: it says just as much RTMP as it takes, and breaks off when it is told to.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::rtmp_bytes;
use super::wait::DEADLINE;

/// An FLV audio tag: timestamp in ms and body.
#[derive(Debug, Clone)]
pub struct Tag {
    pub timestamp_ms: u32,
    pub body: Vec<u8>,
}

/// The file as ffmpeg would publish it: first the AAC configuration, then the frames.
pub async fn aac_tags(wav: &Path) -> Vec<Tag> {
    aac_tags_filtered(wav, "anull").await
}

/// The same of what an ffmpeg filter makes of it.
pub async fn aac_tags_filtered(wav: &Path, filter: &str) -> Vec<Tag> {
    let filter = format!("aresample=44100,aformat=channel_layouts=stereo,{filter}");
    encoded_tags(wav, &["-af", &filter, "-c:a", "aac", "-b:a", "128k"]).await
}

/// The file in this encoding, as ffmpeg would publish it.
pub async fn encoded_tags(wav: &Path, encoding: &[&str]) -> Vec<Tag> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(wav);
    ffmpeg.args(encoding).args(["-f", "flv", "pipe:1"]);
    let output = ffmpeg.output().await.expect("ffmpeg is installed (apt-get install ffmpeg)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let flv = output.stdout;
    let number = |range: std::ops::Range<usize>| flv[range].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let (mut tags, mut at) = (Vec::new(), 13);
    while at + 11 < flv.len() {
        let length = number(at + 1..at + 4) as usize;
        if flv[at] == 8 {
            let timestamp_ms = number(at + 4..at + 7) | u32::from(flv[at + 7]) << 24;
            tags.push(Tag { timestamp_ms, body: flv[at + 11..at + 11 + length].to_vec() });
        }
        at += 11 + length + 4;
    }
    tags
}

/// See the module.
pub struct RawPublisher {
    writer: tokio::net::tcp::OwnedWriteHalf,
    reader: tokio::task::JoinHandle<()>,
    /// What the server has said since it let the publish begin.
    said: Arc<Mutex<Vec<u8>>>,
}

impl RawPublisher {
    /// Publishes `name`; gives the bytes of the refusal where the server closes instead of starting.
    pub async fn publish(to: SocketAddr, name: &str) -> Result<Self, Vec<u8>> {
        let mut socket = rtmp_bytes::handshake(to).await;
        socket.write_all(&rtmp_bytes::publish(name)).await.expect("written");
        let mut said = Vec::new();
        let begun = async {
            while !contains(&said, b"NetStream.Publish.Start") {
                if socket.read_buf(&mut said).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
            true
        };
        if !tokio::time::timeout(DEADLINE, begun).await.expect("an answer to publish") {
            return Err(said);
        }
        let (mut read, writer) = socket.into_split();
        let shared = Arc::new(Mutex::new(Vec::new()));
        let said = shared.clone();
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            while read.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                said.lock().append(&mut bytes);
            }
        });
        Ok(Self { writer, reader, said: shared })
    }

    /// False when the server is gone.
    pub async fn send(&mut self, tag: &Tag) -> bool {
        self.writer.write_all(&rtmp_bytes::message_at(tag.timestamp_ms, 8, 1, &tag.body)).await.is_ok()
    }

    /// Has the server said this since it let the publish begin?
    pub fn was_told(&self, text: &str) -> bool {
        contains(&self.said.lock(), text.as_bytes())
    }

    /// A video message, which nobody looks at.
    pub async fn send_video(&mut self, timestamp_ms: u32) -> bool {
        self.writer.write_all(&rtmp_bytes::message_at(timestamp_ms, 9, 1, &[0x27, 1, 0, 0, 0, 9])).await.is_ok()
    }

    /// The network breaks: a TCP reset.
    pub async fn reset(self) {
        self.reader.abort();
        let _ = self.reader.await;
        let socket: &tokio::net::TcpStream = self.writer.as_ref();
        socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
        self.writer.forget();
    }

    /// Breaks off without a word, as a process that is killed; what was sent still arrives.
    pub fn vanish(self) {
        // The write half closes; what the server says until it closes, too, is read.
        drop(self.writer);
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}
