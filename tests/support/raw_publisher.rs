//! A publisher without a library: it says just as much RTMP as it takes, and breaks off when it is told to.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::app::DEADLINE;

/// The largest chunk of a message, RTMP's default.
const CHUNK_BYTES: usize = 128;

/// An FLV audio tag: timestamp in ms and body.
#[derive(Debug, Clone)]
pub struct Tag {
    pub timestamp_ms: u32,
    pub body: Vec<u8>,
}

/// The file as ffmpeg would publish it: first the AAC configuration, then the frames.
pub async fn aac_tags(wav: &Path) -> Vec<Tag> {
    let mut ffmpeg = Command::new("ffmpeg");
    ffmpeg.args(["-v", "error", "-nostdin", "-i"]).arg(wav);
    ffmpeg.args(["-c:a", "aac", "-b:a", "128k", "-ar", "44100", "-ac", "2", "-f", "flv", "pipe:1"]);
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
    /// Reads what the server says to its end.
    reader: tokio::task::JoinHandle<Vec<u8>>,
}

impl RawPublisher {
    /// Publishes `name`; gives the bytes of the refusal where the server closes instead of starting.
    pub async fn publish(to: SocketAddr, name: &str) -> Result<Self, Vec<u8>> {
        let mut socket = TcpStream::connect(to).await.expect("the server listens");
        let hello = [&[3][..], &[1; 1536]].concat();
        socket.write_all(&hello).await.expect("written");
        let mut answer = vec![0; 1 + 2 * 1536];
        socket.read_exact(&mut answer).await.expect("the handshake");
        let app = [&[3, 0, 3][..], b"app", &text("live"), &[0, 0, 9]].concat();
        let commands = [
            hello[1..].to_vec(),
            message(20, 0, 0, &[text("connect"), number(), app].concat()),
            message(20, 0, 0, &[text("createStream"), number(), vec![5]].concat()),
            message(20, 1, 0, &[text("publish"), number(), vec![5], text(name), text("live")].concat()),
        ];
        socket.write_all(&commands.concat()).await.expect("written");
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
        let reader = tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = read.read_to_end(&mut rest).await;
            rest
        });
        Ok(Self { writer, reader })
    }

    /// False when the server is gone.
    pub async fn send(&mut self, tag: &Tag) -> bool {
        self.writer.write_all(&message(8, 1, tag.timestamp_ms, &tag.body)).await.is_ok()
    }

    /// Breaks off without a word, as a process that is killed; what was sent still arrives.
    pub fn vanish(self) {
        // The write half closes; what the server says until it closes, too, is read.
        drop(self.writer);
        drop(self.reader);
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}

/// A message as chunks on chunk stream 3.
fn message(kind: u8, stream: u8, timestamp_ms: u32, payload: &[u8]) -> Vec<u8> {
    assert!(timestamp_ms < 0xFF_FFFF, "no extended timestamps here");
    let (time, length) = (timestamp_ms.to_be_bytes(), (payload.len() as u32).to_be_bytes());
    let mut bytes = vec![3, time[1], time[2], time[3], length[1], length[2], length[3], kind, stream, 0, 0, 0];
    for (n, part) in payload.chunks(CHUNK_BYTES).enumerate() {
        if n > 0 {
            bytes.push(0xC3);
        }
        bytes.extend(part);
    }
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&[2, 0, text.len() as u8][..], text.as_bytes()].concat()
}

fn number() -> Vec<u8> {
    [&[0][..], &1f64.to_be_bytes()].concat()
}
