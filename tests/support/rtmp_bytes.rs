//! The RTMP bytes of a client without a library: it knows the handshake, three commands and little else.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest chunk of a message, RTMP's default (section 5.4.1 of its specification).
const CHUNK_BYTES: usize = 128;

/// C0 and C1 of a plain client, S0 to S2 read, C2.
pub async fn handshake(to: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(to).await.expect("the server listens");
    let hello = [&[3][..], &[1; 1536]].concat();
    socket.write_all(&hello).await.expect("written");
    let mut answer = vec![0; 1 + 2 * 1536];
    socket.read_exact(&mut answer).await.expect("S0 to S2");
    socket.write_all(&hello[1..]).await.expect("written");
    socket
}

/// A message of time 0.
pub fn message(kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    message_at(0, kind, stream, payload)
}

/// A message as chunks on chunk stream 3.
pub fn message_at(timestamp_ms: u32, kind: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let (time, length) = (timestamp_ms.min(0xFF_FFFF).to_be_bytes(), (payload.len() as u32).to_be_bytes());
    let extended = timestamp_ms.to_be_bytes();
    let extended = if timestamp_ms < 0xFF_FFFF { &[][..] } else { &extended };
    let mut bytes = vec![3, time[1], time[2], time[3], length[1], length[2], length[3], kind, stream, 0, 0, 0];
    bytes.extend(extended);
    for (n, part) in payload.chunks(CHUNK_BYTES).enumerate() {
        if n > 0 {
            bytes.push(0xC3);
            bytes.extend(extended);
        }
        bytes.extend(part);
    }
    bytes
}

/// AMF0's string.
pub fn text(text: &str) -> Vec<u8> {
    [&[2, 0, text.len() as u8][..], text.as_bytes()].concat()
}

fn number() -> Vec<u8> {
    [&[0][..], &1f64.to_be_bytes()].concat()
}

/// connect to the app `live`.
pub fn connect() -> Vec<u8> {
    let app = [&[3, 0, 3][..], b"app", &text("live"), &[0, 0, 9]].concat();
    message(20, 0, &[text("connect"), number(), app].concat())
}

/// connect, createStream and publish of `live/{name}`.
pub fn publish(name: &str) -> Vec<u8> {
    let create = [text("createStream"), number(), vec![5]].concat();
    let publish = [text("publish"), number(), vec![5], text(name), text("live")].concat();
    [connect(), message(20, 0, &create), message(20, 1, &publish)].concat()
}
