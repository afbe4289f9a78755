//! A recogniser with Gladia's protocol in this process, that hears [`marked_speech`](super::marked_speech) and misbehaves
//! as it is told, by counts of bytes and requests and never by the clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, http};

use super::marked_speech::{BYTES_PER_MS, Ear, Said, word_text};

/// How a connection goes wrong, after `after` bytes on it.
#[derive(Debug, Clone, Copy)]
pub enum Mishap {
    /// The next `unheard` bytes are received and never counted; then the connection is reset.
    Reset {
        after: u64,
        unheard: u64,
    },
    /// The next `uncounted` bytes are heard and counted, but neither acknowledged nor answered; then it is reset.
    LostAcks {
        after: u64,
        uncounted: u64,
    },
    /// Nothing more is read or said, and the connection stays.
    Hang {
        after: u64,
    },
    Close {
        after: u64,
        code: u16,
    },
    /// Audio is acknowledged, and no text comes any more.
    Mute {
        after: u64,
    },
    /// As Reset, and acknowledged audio without final text is forgotten.
    Amnesia {
        after: u64,
    },
    /// `stop_recording` is read and forgotten; the connection is dropped.
    LoseStop,
}

/// What the server saw and is going to do.
#[derive(Default)]
pub struct Book {
    /// Statuses of the next POSTs, with Retry-After; then 201.
    pub posts: VecDeque<(u16, Option<u64>)>,
    /// Statuses of the next upgrades; then 101.
    pub upgrades: VecDeque<u16>,
    /// Of the next connections; then none.
    pub mishaps: VecDeque<Mishap>,
    /// Every final is said twice.
    pub twice: bool,
    /// Every other final waits for the one after it.
    pub swapped: bool,
    /// Requests as they came.
    pub requests: Vec<Value>,
    pub keys: Vec<Option<String>>,
    pub refused_posts: usize,
    pub sessions: Vec<Session>,
    pub keep_alives: usize,
    pub largest_frame: usize,
}

#[derive(Default)]
pub struct Session {
    pub ear: Ear,
    pub connections: usize,
    pub stops: usize,
    pub is_over: bool,
    late: Option<Said>,
}

/// See the module.
pub struct Recogniser {
    pub base_url: String,
    pub book: Arc<Mutex<Book>>,
}

/// The part of a token that must show nowhere.
pub const TOKEN: &str = "t0ken-s3cret";

impl Recogniser {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let book = Arc::new(Mutex::new(Book::default()));
        let (base, shared) = (base_url.clone(), book.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, base.clone(), shared.clone()));
            }
        });
        Self { base_url, book }
    }
}

async fn serve(stream: TcpStream, base: String, book: Arc<Mutex<Book>>) {
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(4) => break,
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    if &first == b"POST" { post(stream, &base, &book).await } else { upgrade(stream, book).await }
}

async fn post(mut stream: TcpStream, base: &str, book: &Mutex<Book>) {
    let mut request = Vec::new();
    let (head, body) = loop {
        let mut piece = [0; 4096];
        match stream.read(&mut piece).await {
            Ok(n) if n > 0 => request.extend_from_slice(&piece[..n]),
            _ => return,
        }
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = header(head, "content-length").and_then(|v| v.parse::<usize>().ok()).unwrap_or(0);
            if body.len() >= length {
                break (head.to_owned(), body.to_owned());
            }
        }
    };
    let reply = answer(&head, &body, base, &mut book.lock());
    let _ = stream.write_all(reply.as_bytes()).await;
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|l| l.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

fn answer(head: &str, body: &str, base: &str, book: &mut Book) -> String {
    book.requests.push(serde_json::from_str(body).unwrap_or_default());
    book.keys.push(header(head, "x-gladia-key").map(str::to_owned));
    let (status, retry_after) = book.posts.pop_front().unwrap_or((201, None));
    let mut extra = retry_after.map_or(String::new(), |s| format!("Retry-After: {s}\r\n"));
    let json = if status == 201 {
        let n = book.sessions.len();
        book.sessions.push(Session::default());
        let url = format!("{}/v2/live?token={TOKEN}-{n}", base.replace("http://", "ws://"));
        json!({ "id": format!("session-{n}"), "created_at": "2026-11-22T11:46:27.201Z", "url": url })
    } else {
        book.refused_posts += 1;
        json!({ "statusCode": status, "message": "not now", "request_id": "G-1", "path": "/v2/live", "timestamp": "" })
    };
    extra.push_str("Connection: close\r\nContent-Type: application/json\r\n");
    let json = json.to_string();
    format!("HTTP/1.1 {status} x\r\n{extra}Content-Length: {}\r\n\r\n{json}", json.len())
}

async fn upgrade(stream: TcpStream, book: Arc<Mutex<Book>>) {
    let mut number = None;
    #[allow(clippy::result_large_err)] // the callback's type is tungstenite's
    let inspect = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let query = request.uri().query().unwrap_or("");
        let n: usize = query.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
        let mut book = book.lock();
        let gone = book.sessions.get(n).is_none_or(|s| s.is_over);
        let status = book.upgrades.pop_front().filter(|s| *s != 101).or(gone.then_some(403));
        if let Some(status) = status {
            if status == 403 && !gone {
                book.sessions[n].is_over = true;
            }
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = http::StatusCode::from_u16(status).unwrap();
            return Err(refusal);
        }
        number = Some(n);
        Ok(response)
    };
    let config = WebSocketConfig::default().max_frame_size(Some(1 << 20)).max_message_size(Some(1 << 20));
    let Ok(socket) = tokio_tungstenite::accept_hdr_async_with_config(stream, inspect, Some(config)).await else {
        return;
    };
    let number = number.expect("an accepted session has a number");
    let (mishap, turn) = {
        let mut book = book.lock();
        book.sessions[number].connections += 1;
        let mishap = book.mishaps.pop_front();
        (mishap, book.sessions[number].connections)
    };
    Connection { socket, book, number, turn, mishap, received: 0 }.run().await;
}

struct Connection {
    socket: WebSocketStream<TcpStream>,
    book: Arc<Mutex<Book>>,
    number: usize,
    /// Which connection of the session; the newest replaces the others.
    turn: usize,
    mishap: Option<Mishap>,
    received: u64,
}

/// What becomes of the connection.
enum Next {
    GoOn,
    /// What is on its way to the client is lost with it.
    Reset,
    /// What is on its way arrives.
    Drop,
    Hang,
    Close(u16),
}

impl Connection {
    async fn run(mut self) {
        while let Some(Ok(message)) = self.socket.next().await {
            let (replies, next) = match message {
                Message::Binary(pcm) => self.audio(&pcm),
                Message::Text(text) if text.contains("stop_recording") => self.stop(),
                Message::Text(_) => {
                    self.book.lock().keep_alives += 1;
                    continue;
                }
                Message::Close(frame) => {
                    if frame.is_some_and(|f| f.code == CloseCode::Normal) {
                        self.book.lock().sessions[self.number].is_over = true;
                    }
                    return;
                }
                _ => continue,
            };
            for reply in replies {
                if self.socket.send(Message::text(reply.to_string())).await.is_err() {
                    return;
                }
            }
            match next {
                Next::GoOn => {}
                Next::Reset => {
                    let _ = socket2::SockRef::from(self.socket.get_ref()).set_linger(Some(Duration::ZERO));
                    return;
                }
                Next::Drop => return,
                Next::Hang => std::future::pending().await,
                Next::Close(code) => {
                    self.book.lock().sessions[self.number].is_over = code == 1000 || (4400..4500).contains(&code);
                    let frame = CloseFrame { code: code.into(), reason: "".into() };
                    let _ = self.socket.close(Some(frame)).await;
                    while let Some(Ok(_)) = self.socket.next().await {}
                    return;
                }
            }
        }
    }

    fn audio(&mut self, pcm: &[u8]) -> (Vec<Value>, Next) {
        let before = self.received;
        self.received += pcm.len() as u64;
        let mut book = self.book.lock();
        book.largest_frame = book.largest_frame.max(pcm.len());
        let (twice, swapped) = (book.twice, book.swapped);
        let session = &mut book.sessions[self.number];
        if session.connections != self.turn {
            return (vec![], Next::Reset);
        }
        let past = |after: u64, extra: u64| if self.received >= after + extra { Next::Reset } else { Next::GoOn };
        match self.mishap {
            Some(Mishap::Reset { after, unheard }) if before >= after => (vec![], past(after, unheard)),
            Some(Mishap::Hang { after }) if before >= after => (vec![], Next::Hang),
            Some(Mishap::Close { after, code }) if before >= after => (vec![], Next::Close(code)),
            Some(Mishap::Amnesia { after }) if before >= after => {
                session.ear.forget();
                (vec![], Next::Reset)
            }
            Some(Mishap::LostAcks { after, uncounted }) if before >= after => {
                session.ear.hear(pcm);
                (vec![], past(after, uncounted))
            }
            Some(Mishap::Mute { after }) if before >= after => {
                let start = session.ear.heard;
                session.ear.heard += pcm.len() as u64;
                (vec![ack(start, session.ear.heard)], Next::GoOn)
            }
            _ => {
                let start = session.ear.heard;
                let said = session.ear.hear(pcm);
                let mut replies = vec![ack(start, session.ear.heard)];
                replies.extend(say(session, said, twice, swapped));
                (replies, Next::GoOn)
            }
        }
    }

    fn stop(&mut self) -> (Vec<Value>, Next) {
        let mut book = self.book.lock();
        let (twice, swapped) = (book.twice, book.swapped);
        let session = &mut book.sessions[self.number];
        session.stops += 1;
        match self.mishap {
            Some(Mishap::LoseStop) => return (vec![], Next::Drop),
            Some(Mishap::Hang { .. }) => return (vec![], Next::Hang),
            _ => {}
        }
        let said = session.ear.stop();
        let data = json!({ "recording_duration": 1.0, "recording_left_to_process": 0.0 });
        let mut replies = vec![json!({ "type": "stop_recording", "acknowledged": true, "error": null, "data": data })];
        replies.extend(say(session, said, twice, swapped));
        replies.extend(session.late.take().map(|late| transcript(&late)));
        replies.push(json!({ "type": "post_final_transcript", "data": { "metadata": {} } }));
        replies.push(json!({ "type": "some_new_thing", "data": {} }));
        replies.push(json!({ "type": "end_session" }));
        (replies, Next::Close(1000))
    }
}

fn say(session: &mut Session, said: Vec<Said>, twice: bool, swapped: bool) -> Vec<Value> {
    let mut replies = Vec::new();
    for said in said {
        if said.is_final && swapped && session.late.is_none() {
            session.late = Some(said);
            continue;
        }
        replies.push(transcript(&said));
        if said.is_final {
            replies.extend(twice.then(|| transcript(&said)));
            replies.extend(session.late.take().map(|late| transcript(&late)));
        }
    }
    replies
}

fn ack(start: u64, end: u64) -> Value {
    let time = [seconds(start), seconds(end)];
    let data = json!({ "byte_range": [start, end], "time_range": time });
    json!({ "type": "audio_chunk", "acknowledged": true, "error": null, "data": data })
}

fn transcript(said: &Said) -> Value {
    let words: Vec<_> = said
        .words
        .iter()
        .map(|w| {
            json!({ "word": format!(" {}", word_text(w.n)), "start": seconds(w.start), "end": seconds(w.end), "confidence": 0.9 })
        })
        .collect();
    let (first, last) = (said.words.first().unwrap(), said.words.last().unwrap());
    let utterance = json!({
        "text": said.text(), "start": seconds(first.start), "end": seconds(last.end), "language": "en",
        "confidence": 0.9, "channel": 0, "words": words,
    });
    json!({ "type": "transcript", "session_id": "x", "created_at": "2026-11-22T11:46:27.201Z",
        "data": { "id": said.id, "is_final": said.is_final, "utterance": utterance } })
}

fn seconds(bytes: u64) -> f64 {
    bytes as f64 / (BYTES_PER_MS * 1000) as f64
}
