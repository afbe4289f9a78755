//! The Gladia-compatible service: its resume rules and its fault switches, with the marker engine.

mod support;

use std::io::ErrorKind::ConnectionReset;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use stenocast::gladia::wire::{ServerEnvelope, ServerMessage};
use stenocast::local_stt::{self, EngineKind, Limits, SttOptions, SttService, marker};
use support::wait::{DEADLINE, until};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message, protocol::frame::coding::CloseCode};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// 100 ms of audio, in bytes.
const CHUNK: usize = 3200;

fn options() -> SttOptions {
    SttOptions {
        host: "127.0.0.1".to_owned(),
        port: 0,
        model_dir: "unused".into(),
        threads: 1,
        max_sessions: 4,
        engine: EngineKind::Marker,
        faults: true,
        keep_audio: true,
        limits: Limits::default(),
    }
}

async fn service() -> SttService {
    local_stt::serve(options()).await.unwrap()
}

async fn http(method: &str, url: &str, body: Option<Value>) -> (u16, Vec<u8>) {
    let client = awc::Client::default().request(method.parse().unwrap(), url);
    let sent = match body {
        Some(body) => client.send_json(&body).await,
        None => client.send().await,
    };
    let mut response = sent.unwrap();
    (response.status().as_u16(), response.body().limit(1 << 24).await.unwrap().to_vec())
}

async fn json_of(method: &str, url: &str, body: Option<Value>) -> (u16, Value) {
    let (status, body) = http(method, url, body).await;
    (status, serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{e}: {body:?}")))
}

async fn fault(service: &SttService, order: Value) -> Value {
    let (status, answer) = json_of("POST", &format!("{}/faults", service.base_url()), Some(order)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn body() -> Value {
    json!({"endpointing": 0.2, "messages_config": {
        "receive_partial_transcripts": true, "receive_lifecycle_events": true, "receive_acknowledgments": true}})
}

fn pcm(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn speech(first: u32, count: u32) -> Vec<u8> {
    pcm(&marker::track(first, count, 1500))
}

/// One session of a client, over as many sockets as it takes.
struct Client {
    id: String,
    url: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Everything received, and how the last socket ended.
    seen: Vec<ServerMessage>,
    closed: Option<Option<u16>>,
}

impl Client {
    async fn open(service: &SttService, body: Value) -> Self {
        let (status, reply) = json_of("POST", &format!("{}/v2/live", service.base_url()), Some(body)).await;
        assert_eq!(status, 201, "{reply}");
        let text = |key: &str| reply[key].as_str().unwrap().to_owned();
        let (id, url) = (text("id"), text("url"));
        let (socket, _) = tokio_tungstenite::connect_async(&url).await.unwrap();
        Self { id, url, socket, seen: Vec::new(), closed: None }
    }

    async fn again(&mut self) {
        self.socket = tokio_tungstenite::connect_async(&self.url).await.unwrap().0;
        self.closed = None;
    }

    async fn send(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK) {
            self.socket.send(Message::binary(chunk.to_vec())).await.unwrap();
        }
    }

    async fn stop(&mut self) {
        self.socket.send(Message::text(r#"{"type":"stop_recording"}"#)).await.unwrap();
    }

    /// Takes one more message, or the end of the socket.
    async fn take(&mut self) {
        let next = tokio::time::timeout(DEADLINE, self.socket.next()).await;
        match next.unwrap_or_else(|_| panic!("nothing came; seen so far: {:?}", self.kinds())) {
            Some(Ok(Message::Text(text))) => {
                let envelope: ServerEnvelope = serde_json::from_str(&text).unwrap();
                assert_eq!(envelope.session_id, self.id);
                self.seen.push(envelope.message);
            }
            Some(Ok(Message::Close(frame))) => self.closed = Some(frame.map(|f| f.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.closed = self.closed.or(Some(None)),
        }
    }

    async fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            assert!(self.closed.is_none(), "closed {:?} too early: {:?}", self.closed, self.kinds());
            self.take().await;
        }
    }

    async fn until_closed(&mut self) -> Option<u16> {
        while self.closed.is_none() {
            self.take().await;
        }
        self.closed.unwrap()
    }

    fn kinds(&self) -> Vec<&str> {
        self.seen.iter().map(ServerMessage::kind).collect()
    }

    fn finals(&self) -> Vec<u32> {
        self.texts(true).iter().map(|t| marker::parse(t).unwrap_or_else(|| panic!("damaged: {t}"))).collect()
    }

    fn texts(&self, finals: bool) -> Vec<String> {
        let text = |m: &ServerMessage| match m {
            ServerMessage::Transcript { data } if data.is_final == finals => Some(data.utterance.text.clone()),
            _ => None,
        };
        self.seen.iter().filter_map(text).collect()
    }

    /// Byte ranges acknowledged, in order.
    fn acks(&self) -> Vec<[u64; 2]> {
        let range = |m: &ServerMessage| match m {
            ServerMessage::AudioChunk(ack) => ack.data.map(|d| d.byte_range),
            _ => None,
        };
        self.seen.iter().filter_map(range).collect()
    }

    fn acknowledged(&self) -> u64 {
        self.acks().last().map_or(0, |r| r[1])
    }
}

async fn wav(service: &SttService, id: &str) -> Vec<u8> {
    let (status, file) = http("GET", &format!("{}/v2/live/{id}/file", service.base_url()), None).await;
    assert_eq!((status, &file[..4]), (200, b"RIFF".as_slice()));
    file[44..].to_vec()
}

#[actix::test]
async fn a_session_from_post_to_close() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    let audio = speech(1, 3);
    client.send(&audio).await;
    client.stop().await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [1, 2, 3]);
    assert!(client.texts(false).contains(&" marker 2".to_owned()), "{:?}", client.texts(false));
    let acks = client.acks();
    assert_eq!(acks[0], [0, CHUNK as u64]);
    assert!(acks.windows(2).all(|w| w[0][1] == w[1][0]), "acknowledgements are contiguous");
    assert_eq!(client.acknowledged(), audio.len() as u64);
    let kinds = client.kinds();
    let place = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("{kind}: {kinds:?}"));
    let order = ["start_recording", "stop_recording", "end_recording", "post_transcript", "post_final_transcript"];
    assert!(order.windows(2).all(|w| place(w[0]) < place(w[1])), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&"end_session"));
    assert!(!kinds.contains(&"start_session"), "the SDKs make that one themselves");

    let (status, document) = json_of("GET", &format!("{}/v2/live/{}", service.base_url(), client.id), None).await;
    assert_eq!((status, document["status"].as_str()), (200, Some("done")));
    assert_eq!(document["result"]["transcription"]["full_transcript"], "marker 1 marker 2 marker 3");
    assert_eq!(wav(&service, &client.id).await, audio);
    let (_, list) = json_of("GET", &format!("{}/v2/live?status=done", service.base_url()), None).await;
    assert_eq!(list["items"][0]["id"], client.id.as_str());
    let delete = format!("{}/v2/live/{}", service.base_url(), client.id);
    assert_eq!(http("DELETE", &delete, None).await.0, 202);
    assert_eq!(http("DELETE", &delete, None).await.0, 404);
    service.stop().await;
}

#[actix::test]
async fn livekit_s_form_of_audio_is_taken() {
    use base64::Engine;
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    for chunk in speech(7, 1).chunks(CHUNK) {
        let chunk = base64::engine::general_purpose::STANDARD.encode(chunk);
        let message = json!({"type": "audio_chunk", "data": {"chunk": chunk}});
        client.socket.send(Message::text(message.to_string())).await.unwrap();
    }
    client.socket.send(Message::text(r#"{"type":"audio_chunk","data":{"chunk":""}}"#)).await.unwrap();
    client.socket.send(Message::text("nonsense")).await.unwrap();
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [7]);
    assert!(client.kinds().contains(&"error"), "nonsense is answered and costs nothing");
    service.stop().await;
}

#[actix::test]
async fn bytes_that_were_not_acknowledged_are_forgotten() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    let audio = speech(20, 4);
    let (first, rest) = audio.split_at(20 * CHUNK);
    client.send(first).await;
    client.until(|c| c.acknowledged() == 20 * CHUNK as u64).await;
    fault(&service, json!({"delay_acks_ms": 3_600_000})).await;
    client.send(&rest[..10 * CHUNK]).await;
    fault(&service, json!({"delay_acks_ms": 0})).await;
    fault(&service, json!({"reset": true})).await;
    assert_eq!(client.until_closed().await, None, "no close frame: a reset");
    client.again().await;
    // The client's rule: send again from the last acknowledged byte.
    client.send(rest).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [20, 21, 22, 23]);
    assert_eq!(client.acks().iter().filter(|r| r[0] == 20 * CHUNK as u64).count(), 1);
    assert_eq!(wav(&service, &client.id).await, audio);
    service.stop().await;
}

#[actix::test]
async fn a_lost_acknowledgement_costs_a_repetition_that_shows() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    let audio = speech(30, 2);
    client.send(&audio[..5 * CHUNK]).await;
    client.until(|c| c.acknowledged() == 5 * CHUNK as u64).await;
    fault(&service, json!({"lose_acks": true})).await;
    client.send(&audio[5 * CHUNK..6 * CHUNK]).await;
    // Pong comes after the chunk was taken.
    client.socket.send(Message::Ping(vec![1].into())).await.unwrap();
    client.take().await;
    fault(&service, json!({"lose_acks": false, "reset": true})).await;
    client.until_closed().await;
    client.again().await;
    client.send(&audio[5 * CHUNK..]).await;
    client.stop().await;
    client.until_closed().await;
    let jump = client.acks().windows(2).find(|w| w[0][1] != w[1][0]).map(|w| [w[0][1], w[1][0]]);
    assert_eq!(jump, Some([5 * CHUNK as u64, 6 * CHUNK as u64]), "the next acknowledgement starts further on");
    assert_eq!(client.acknowledged(), (audio.len() + CHUNK) as u64);
    service.stop().await;
}

#[actix::test]
async fn a_second_connection_replaces_the_first() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    client.send(&speech(1, 1)).await;
    client.until(|c| c.acknowledged() == 15 * CHUNK as u64).await;
    let mut second = tokio_tungstenite::connect_async(&client.url).await.unwrap().0;
    assert_eq!(client.until_closed().await, Some(4409));
    std::mem::swap(&mut client.socket, &mut second);
    client.closed = None;
    client.send(&speech(2, 1)).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [1, 2]);
    service.stop().await;
}

#[actix::test]
async fn a_stop_is_remembered_over_a_drop_and_the_rest_is_delivered() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    fault(&service, json!({"session": client.id, "stall_results_ms": 600_000})).await;
    client.send(&speech(5, 2)).await;
    client.stop().await;
    client.until(|c| c.kinds().contains(&"stop_recording")).await;
    assert!(client.finals().is_empty(), "results are stalled");
    fault(&service, json!({"reset": true})).await;
    client.until_closed().await;
    client.again().await;
    fault(&service, json!({"session": client.id, "stall_results_ms": 0})).await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [5, 6]);
    assert_eq!(client.kinds().last(), Some(&"end_session"));
    service.stop().await;
}

#[actix::test]
async fn closing_with_1000_is_a_stop_and_the_results_stay() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    client.send(&speech(8, 2)).await;
    client.until(|c| c.acknowledged() == 30 * CHUNK as u64).await;
    let frame = tungstenite::protocol::CloseFrame { code: CloseCode::Normal, reason: "".into() };
    client.socket.close(Some(frame)).await.unwrap();
    client.until_closed().await;
    let url = format!("{}/v2/live/{}", service.base_url(), client.id);
    let document =
        until("an answer", async || Some(json_of("GET", &url, None).await.1).filter(|d| d["status"] == "done")).await;
    assert_eq!(document["result"]["transcription"]["full_transcript"], "marker 8 marker 9");
    let refused = tokio_tungstenite::connect_async(&client.url).await.unwrap_err();
    assert_eq!(status(&refused), 403);
    service.stop().await;
}

#[actix::test]
async fn a_reset_is_a_reset() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let service = service().await;
    let client = Client::open(&service, body()).await;
    let path = &client.url[client.url.find("/v2").unwrap()..];
    let mut socket = TcpStream::connect(service.addr()).await.unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    // The session may not know of its new connection yet.
    let reset = until("an answer", async || {
        fault(&service, json!({"reset": true})).await;
        let read = tokio::time::timeout(Duration::from_millis(50), socket.peek(&mut [0; 1])).await;
        read.ok()
    });
    let error = reset.await.expect_err("a reset and not an end");
    assert_eq!(error.kind(), ConnectionReset);
    service.stop().await;
}

fn status(error: &tungstenite::Error) -> u16 {
    match error {
        tungstenite::Error::Http(response) => response.status().as_u16(),
        other => panic!("{other}"),
    }
}

#[actix::test]
async fn unknown_and_forgotten_sessions_are_refused() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    fault(&service, json!({"session": client.id, "forget": true})).await;
    assert_eq!(client.until_closed().await, None);
    let (without_token, _) = client.url.split_once('?').unwrap();
    for url in [&client.url, without_token, &format!("{without_token}?token=unknown")] {
        assert_eq!(status(&tokio_tungstenite::connect_async(url).await.unwrap_err()), 403);
    }
    assert_eq!(service.sessions(), 0);
    service.stop().await;
}

#[actix::test]
async fn sessions_that_nobody_uses_end() {
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let service = local_stt::serve(SttOptions { limits, ..options() }).await.unwrap();
    let mut idle = Client::open(&service, body()).await;
    assert_eq!(idle.until_closed().await, Some(4408), "connected and silent");
    assert_eq!(idle.kinds().last(), Some(&"end_session"));
    service.stop().await;
}

#[actix::test]
async fn sessions_that_are_not_resumed_end() {
    let limits = Limits { resume: Duration::from_secs(1), ..Limits::default() };
    let service = local_stt::serve(SttOptions { limits, ..options() }).await.unwrap();
    let mut gone = Client::open(&service, body()).await;
    gone.send(&speech(3, 1)).await;
    gone.until(|c| c.acknowledged() == 15 * CHUNK as u64).await;
    fault(&service, json!({"reset": true})).await;
    let url = format!("{}/v2/live/{}", service.base_url(), gone.id);
    let document =
        until("an answer", async || Some(json_of("GET", &url, None).await.1).filter(|d| d["status"] == "done")).await;
    assert_eq!(document["result"]["transcription"]["full_transcript"], "marker 3");
    let expired = until("an answer", async || tokio_tungstenite::connect_async(&gone.url).await.err()).await;
    assert_eq!(status(&expired), 403);
    service.stop().await;
}

#[actix::test]
async fn too_many_sessions_are_refused_and_places_come_back() {
    let service = local_stt::serve(SttOptions { max_sessions: 2, ..options() }).await.unwrap();
    let url = format!("{}/v2/live", service.base_url());
    let mut first = Client::open(&service, body()).await;
    let _second = Client::open(&service, body()).await;
    let (status, error) = json_of("POST", &url, Some(body())).await;
    assert_eq!((status, error["statusCode"].as_u64()), (429, Some(429)));
    first.stop().await;
    first.until_closed().await;
    let _third = Client::open(&service, body()).await;
    service.stop().await;
}

#[actix::test]
async fn bad_requests_are_told_what_is_wrong() {
    let service = service().await;
    let url = format!("{}/v2/live", service.base_url());
    let (status, error) = json_of("POST", &url, Some(json!({"language_config": {"languages": ["fr"]}}))).await;
    assert_eq!(status, 400);
    assert!(error["validation_errors"][0].as_str().unwrap().contains("English only"), "{error}");
    for (method, path) in [("GET", "/v2/nothing"), ("PUT", "/v2/live")] {
        let (status, error) = json_of(method, &format!("{}{path}", service.base_url()), None).await;
        assert_eq!((status, error["message"].as_str().unwrap()), (404, format!("Cannot {method} {path}").as_str()));
    }
    let (status, health) = json_of("GET", &format!("{}/health", service.base_url()), None).await;
    assert_eq!((status, &health["ready"], &health["maxSessions"]), (200, &json!(true), &json!(4)));
    service.stop().await;
    let service = local_stt::serve(SttOptions { faults: false, ..options() }).await.unwrap();
    assert_eq!(http("POST", &format!("{}/faults", service.base_url()), Some(json!({}))).await.0, 404);
    service.stop().await;
}

#[actix::test]
async fn large_frames_pass_up_to_a_mebibyte() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    client.socket.send(Message::binary(vec![0; 1 << 20])).await.unwrap();
    client.until(|c| c.acknowledged() == 1 << 20).await;
    client.socket.send(Message::binary(vec![0; (1 << 20) + 1])).await.unwrap();
    assert_eq!(client.until_closed().await, Some(1009));
    client.again().await;
    client.send(&speech(4, 1)).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [4], "1009 is recoverable");
    service.stop().await;
}

#[actix::test]
async fn fragments_are_joined_and_pings_answered() {
    use tungstenite::protocol::frame::{Frame, coding::Data, coding::OpCode};
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    let audio = speech(6, 1);
    let (head, tail) = audio.split_at(audio.len() / 2);
    let part = |bytes: &[u8], data, last| Message::Frame(Frame::message(bytes.to_vec(), OpCode::Data(data), last));
    client.socket.send(part(head, Data::Binary, false)).await.unwrap();
    client.socket.send(Message::Ping(b"here".to_vec().into())).await.unwrap();
    client.socket.send(part(tail, Data::Continue, true)).await.unwrap();
    let answers = tokio::time::timeout(DEADLINE, async {
        loop {
            if let Message::Pong(payload) = client.socket.next().await.unwrap().unwrap() {
                break payload;
            }
        }
    });
    assert_eq!(answers.await.unwrap().as_ref(), b"here");
    client.stop().await;
    client.until_closed().await;
    assert_eq!(client.finals(), [6]);
    assert_eq!(client.acks(), [[0, audio.len() as u64]]);
    service.stop().await;
}

#[actix::test]
async fn refusals_are_used_up() {
    let service = service().await;
    let url = format!("{}/v2/live", service.base_url());
    fault(&service, json!({"refuse_posts": {"status": 429, "times": 2, "retry_after": 7}})).await;
    let response = awc::Client::default().post(&url).send_json(&body()).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers().get("retry-after").unwrap().as_bytes()),
        (429, &b"7"[..])
    );
    assert_eq!(http("POST", &url, Some(body())).await.0, 429);
    let client = Client::open(&service, body()).await;
    fault(&service, json!({"refuse_upgrades": {"status": 503}})).await;
    assert_eq!(status(&tokio_tungstenite::connect_async(&client.url).await.unwrap_err()), 503);
    assert!(tokio_tungstenite::connect_async(&client.url).await.is_ok());
    service.stop().await;
}

#[actix::test]
async fn finals_can_be_doubled_late_and_out_of_order() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    fault(&service, json!({"duplicate_finals": true})).await;
    client.send(&speech(1, 1)).await;
    client.until(|c| c.finals() == [1, 1]).await;
    fault(&service, json!({"duplicate_finals": false, "reorder_finals": true})).await;
    client.send(&speech(2, 2)).await;
    client.until(|c| c.finals() == [1, 1, 3, 2]).await;
    fault(&service, json!({"reorder_finals": false, "late_finals_ms": 200})).await;
    client.send(&speech(4, 1)).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [1, 1, 3, 2, 4]);
    assert_eq!(client.kinds().last(), Some(&"end_session"), "the end waits for the late ones");
    assert_eq!(http("DELETE", &format!("{}/faults", service.base_url()), None).await.0, 200);
    let mut next = Client::open(&service, body()).await;
    next.send(&speech(1, 1)).await;
    next.stop().await;
    next.until_closed().await;
    assert_eq!(next.finals(), [1]);
    service.stop().await;
}

#[actix::test]
async fn sockets_can_be_closed_by_code_and_left_half_open() {
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    assert_eq!(fault(&service, json!({"close": 4500})).await["sessions"], 1);
    assert_eq!(client.until_closed().await, Some(4500));
    client.again().await;
    fault(&service, json!({"half_open": true})).await;
    client.send(&speech(1, 1)).await;
    client.socket.send(Message::Ping(vec![].into())).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(200), client.socket.next()).await;
    assert!(silent.is_err() || matches!(silent, Ok(Some(Ok(Message::Text(_))))), "{silent:?}");
    client.again().await;
    client.send(&speech(1, 1)).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!((client.finals(), client.acknowledged()), (vec![1], 15 * CHUNK as u64));
    service.stop().await;
}

#[actix::test]
async fn a_session_ends_at_its_cap() {
    let service = service().await;
    fault(&service, json!({"session_cap_s": 2.0})).await;
    let mut client = Client::open(&service, body()).await;
    client.send(&speech(1, 2)).await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.kinds().last(), Some(&"end_session"));
    let accepted = client.acks().len();
    assert!((20..=30).contains(&accepted), "{accepted}");
    service.stop().await;
}

#[actix::test]
async fn hostile_bytes_cost_only_their_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let service = service().await;
    let mut client = Client::open(&service, body()).await;
    let other = Client::open(&service, body()).await;
    let path = &other.url[other.url.find("/v2").unwrap()..];
    // Unmasked, reserved bits, reserved opcode, a huge length.
    for frame in [&[0x82, 0x01, 0x00][..], &[0xF2, 0x81, 0, 0, 0, 0, 0], &[0x83, 0x80, 0, 0, 0, 0], &[0x82, 0xFF, 0x7F]]
    {
        let mut socket = TcpStream::connect(service.addr()).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&[frame, &[0xFF; 64]].concat()).await.unwrap();
        let read = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut Vec::new())).await;
        assert!(read.is_ok(), "{frame:x?}: the connection is still open");
    }
    client.send(&speech(9, 1)).await;
    client.stop().await;
    assert_eq!(client.until_closed().await, Some(1000));
    assert_eq!(client.finals(), [9]);
    service.stop().await;
}

#[actix::test]
async fn every_channel_is_recognised_by_itself() {
    let service = service().await;
    let mut request = body();
    request["channels"] = json!(2);
    request["sample_rate"] = json!(48_000);
    let mut client = Client::open(&service, request).await;
    let (left, right) = (marker::track(1, 2, 1500), marker::track(51, 2, 1500));
    // Three times each sample: 48 kHz, roughly.
    let frames = left.iter().zip(&right).flat_map(|(l, r)| [*l, *r].repeat(3));
    client.send(&pcm(&frames.collect::<Vec<_>>())).await;
    client.stop().await;
    client.until_closed().await;
    let mut by_channel = vec![Vec::new(); 2];
    for message in &client.seen {
        if let ServerMessage::Transcript { data } = message
            && data.is_final
        {
            assert!(data.id.starts_with(&format!("0{}_", data.utterance.channel)));
            by_channel[data.utterance.channel as usize].push(marker::parse(&data.utterance.text).unwrap());
        }
    }
    assert_eq!(by_channel, [vec![1, 2], vec![51, 52]]);
    service.stop().await;
}

/// One message for each language, behind its final.
#[actix::test]
async fn finals_of_the_marker_engine_are_translated() {
    let service = service().await;
    let mut request = body();
    let config = json!({"target_languages": ["fr", "de"]});
    request["realtime_processing"] = json!({"translation": true, "translation_config": config});
    let mut client = Client::open(&service, request).await;
    client.send(&speech(7, 1)).await;
    client.stop().await;
    client.until_closed().await;
    let mut last_final = None;
    let mut translated = Vec::new();
    for message in &client.seen {
        match message {
            ServerMessage::Transcript { data } if data.is_final => last_final = Some(data.clone()),
            ServerMessage::Translation(add_on) => {
                let (data, of) = (add_on.data.as_ref().unwrap(), last_final.as_ref().unwrap());
                assert_eq!((&data.utterance_id, &data.utterance, &add_on.error), (&of.id, &of.utterance, &None));
                let to = &data.translated_utterance;
                assert_eq!((data.original_language.as_str(), &to.language), ("en", &data.target_language));
                assert_eq!((to.start, to.end, to.words.len()), (of.utterance.start, of.utterance.end, 2));
                translated.push(to.text.clone());
            }
            _ => {}
        }
    }
    assert_eq!(translated, [" marker-fr 7-fr", " marker-de 7-de"]);
    service.stop().await;
}

#[actix::test]
async fn what_is_not_offered_is_said() {
    let service = service().await;
    let mut request = body();
    request["realtime_processing"] = json!({"sentiment_analysis": true});
    request["post_processing"] = json!({"summarization": true});
    let mut client = Client::open(&service, request).await;
    client.send(&speech(1, 1)).await;
    client.stop().await;
    client.until_closed().await;
    let errors = client.seen.iter().filter_map(|m| match m {
        ServerMessage::SentimentAnalysis(add_on) => add_on.error.clone(),
        ServerMessage::PostSummarization(add_on) => add_on.error.clone(),
        _ => None,
    });
    let errors: Vec<String> = errors.map(|e| e.message).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("sentiment_analysis is not offered"), "{errors:?}");
    service.stop().await;
}
