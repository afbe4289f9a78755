//! Viewers and strangers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::watcher::{Connection, Seen, Shared};
use crate::harness::{Fault, PLAIN, Recovery};
use crate::support::app::viewer_token;
use crate::support::server::request_as;

const NEVER_READ: usize = 100;
/// Posts of LINES lines of `LINE_BYTES` each.
const POSTS: usize = 10;
const LINES: usize = 50;
const LINE_BYTES: usize = 15_000;
const BROADCAST_TOKEN: &str = "drill";
const HERD: usize = 2000;
/// Attackers of each kind.
const STRANGERS: usize = 30;
/// How long the herd watches before it is cut.
const BEFORE: Duration = Duration::from_secs(2);
/// A stranger's connection that is still open then is a problem.
const PATIENCE: Duration = Duration::from_secs(20);

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "100 viewers that never read",
        alone: true,
        settings: &[("WS_STALL_MS", "2000"), ("WS_PING_MS", "1000"), ("BROADCAST_TOKEN", BROADCAST_TOKEN)],
        proof: &[r#"ws_closed_total{code="stalled"}"#],
        markers: 14,
        inject: |rig| {
            Box::pin(async {
                let http = rig.server().http;
                let mut sockets = Vec::new();
                for _ in 0..NEVER_READ {
                    sockets.push(never_read(http).await);
                }
                let begun = Instant::now();
                // What is said in a minute would fit into the sockets' buffers: long lines fill them.
                for n in 0..POSTS {
                    post_long_lines(http, n).await;
                }
                let left = rig.viewers_down_to(rig.fault.bystanders + 1).await;
                if left > rig.fault.bystanders + 1 {
                    rig.note(format!("{left} viewers are still there"));
                }
                drop(sockets);
                Recovery::Took(begun.elapsed())
            })
        },
        ..PLAIN
    },
    Fault {
        name: "2,000 viewers that reconnect at once",
        alone: true,
        markers: 24,
        inject: |rig| {
            Box::pin(async {
                let http = rig.server().http;
                let (done, herd) = tokio::sync::oneshot::channel();
                // On a thread of its own, so that the herd's work is not in the bystanders' figures.
                std::thread::spawn(move || done.send(actix_rt::System::new().block_on(stampede(http))));
                let (took, problems) = herd.await.expect("the herd comes back");
                problems.into_iter().for_each(|problem| rig.note(problem));
                Recovery::Took(took)
            })
        },
        ..PLAIN
    },
    Fault {
        name: "hostile RTMP, WS and HTTP bytes",
        quick: true,
        // Random bytes may announce a frame that never comes: silence ends that one.
        settings: &[("RTMP_HANDSHAKE_TIMEOUT_MS", "2000"), ("RTMP_PUBLISH_TIMEOUT_MS", "2000"), ("WS_PING_MS", "3000")],
        inject: |rig| {
            Box::pin(async {
                let (http, rtmp) = (rig.server().http, rig.server().rtmp);
                let attacks = (0..STRANGERS).flat_map(|n| {
                    let random: Vec<u8> = (0..4096).map(|_| rand::random()).collect();
                    [
                        attack(rtmp, random.clone()),
                        attack(rtmp, [vec![3; 1537], random.clone(), random.clone()].concat()),
                        attack(rtmp, after_handshake(n)),
                        attack(http, random.clone()),
                        attack(http, b"GET /%00/../../etc HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_vec()),
                        attack(http, [upgrade(), random].concat()),
                    ]
                });
                let left = join_all(attacks).await;
                let open = left.iter().filter(|closed| !**closed).count();
                if open > 0 {
                    rig.note(format!("{open} hostile connections are still open"));
                }
                Recovery::NextFinal
            })
        },
        ..PLAIN
    },
];

fn upgrade() -> Vec<u8> {
    let token = viewer_token("victim");
    let head = format!(
        "GET /api/realtime/transcribe?session=victim&token={token} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    head.into_bytes()
}

async fn never_read(http: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut stream = socket.connect(http).await.expect("the server listens");
    stream.write_all(&upgrade()).await.expect("written");
    stream
}

async fn post_long_lines(http: SocketAddr, n: usize) {
    let line = |i| json!({"id": format!("long-{n}-{i}"), "isFinal": true, "text": "x".repeat(LINE_BYTES), "startMs": 0, "endMs": 0});
    let body = json!({"session": "victim", "transcripts": (0..LINES).map(line).collect::<Vec<_>>()}).to_string();
    let path = "/api/realtime/transcribe/broadcast";
    let (status, answer) = request_as(http, BROADCAST_TOKEN, "POST", path, &body).await.expect("it answers");
    assert_eq!(status, 202, "{answer}");
}

/// A good handshake, then chunks of rising nonsense: deep AMF0, huge lengths, unknown types.
fn after_handshake(n: usize) -> Vec<u8> {
    let deep = [3, 0, 1, b'a'].repeat(2000);
    let head = [3, 0, 0, 0, 0xff, 0xff, 0xff, [20, 17, 18, 8, 99][n % 5], 1, 0, 0, 0];
    [vec![3; 1537], vec![3; 1536], head.to_vec(), deep].concat()
}

/// True when the server has ended the connection (or the stranger's turn is over with an answer).
async fn attack(to: SocketAddr, bytes: Vec<u8>) -> bool {
    let assault = async {
        let Ok(mut socket) = TcpStream::connect(to).await else { return };
        if socket.write_all(&bytes).await.is_ok() {
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
        }
    };
    tokio::time::timeout(PATIENCE, assault).await.is_ok()
}

/// All join, all are cut, all come back at once; each has every entry in order. Gives the time of their return.
async fn stampede(http: SocketAddr) -> (Duration, Vec<String>) {
    let herd: Vec<_> = (0..HERD).map(|_| Shared::default()).collect();
    let join = |seen: &Shared| Connection::open(http, "victim", seen.clone());
    let mut connections = join_all(herd.iter().map(join)).await;
    let failed = |c: &Result<Connection, _>| c.as_ref().err().map(|error| format!("the herd: {error}"));
    let mut problems: Vec<String> = connections.iter().filter_map(failed).collect();
    join_all(connections.iter_mut().flatten().map(|connection| connection.read_for(BEFORE))).await;
    drop(connections);
    let begun = Instant::now();
    let back = join_all(herd.iter().map(join)).await;
    let took = begun.elapsed();
    problems.extend(back.iter().filter_map(failed));
    join_all(back.into_iter().flatten().map(Connection::until_ended)).await;
    let complete = |seen: &Seen| seen.has_status("ended") && seen.problems.is_empty();
    let bad = herd.iter().filter(|seen| !complete(&seen.borrow())).count();
    if bad > 0 {
        let example = herd.iter().find(|seen| !complete(&seen.borrow())).map(|seen| seen.borrow().problems.clone());
        problems.push(format!("{bad} of {HERD} viewers have not everything in order: {example:?}"));
    }
    problems.truncate(10);
    (took, problems)
}
