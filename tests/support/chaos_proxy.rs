//! A TCP proxy that fails on command, and may be far away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const NO_LIMIT: i64 = i64::MAX;
/// Pieces that are on their way at most, in each direction.
const PIECES: usize = 1024;
const PIECE_BYTES: usize = 16 << 10;

/// Stands before a server; connect to [`Self::addr`] instead. Ends when dropped.
pub struct ChaosProxy {
    pub addr: SocketAddr,
    state: Arc<State>,
    listener: tokio::task::JoinHandle<()>,
}

struct State {
    target: SocketAddr,
    refusing: AtomicBool,
    /// Goes up with each cut: connections of an older one end.
    cuts: watch::Sender<u64>,
    up: Way,
    down: Way,
    accepted: AtomicUsize,
    /// Pieces that came late by chance.
    late: AtomicUsize,
}

/// One direction.
struct Way {
    /// Goes up with each freeze: on connections of an older one nothing passes any more.
    freezes: AtomicU64,
    delay_ms: AtomicU64,
    /// Of a thousand pieces so many are late by `late_ms`, and so is what comes after them.
    late_per_mille: AtomicU64,
    late_ms: AtomicU64,
    /// Bytes that may still pass before the connection is cut.
    left: AtomicI64,
    /// Bytes that came to be carried.
    came: AtomicU64,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            freezes: AtomicU64::default(),
            delay_ms: AtomicU64::default(),
            late_per_mille: AtomicU64::default(),
            late_ms: AtomicU64::default(),
            left: AtomicI64::new(NO_LIMIT),
            came: AtomicU64::default(),
        }
    }
}

impl ChaosProxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            refusing: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
            up: Way::default(),
            down: Way::default(),
            accepted: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
        });
        let serving = state.clone();
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                serving.accepted.fetch_add(1, Ordering::SeqCst);
                if !serving.refusing.load(Ordering::SeqCst) {
                    tokio::spawn(serving.clone().serve(client));
                }
            }
        });
        Self { addr, state, listener }
    }

    /// Cuts every connection and refuses new ones.
    pub fn break_off(&self) {
        self.state.refusing.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub fn restore(&self) {
        self.state.refusing.store(false, Ordering::SeqCst);
    }

    /// Cuts every connection, and what is on its way is lost; new connections are taken.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|n| *n += 1);
    }

    /// Nothing passes any more on the connections of now, and nobody is told; new ones work.
    pub fn freeze(&self) {
        self.state.up.freezes.fetch_add(1, Ordering::SeqCst);
        self.freeze_answers();
    }

    /// The same for the answers alone: the server does its work, and nobody is told.
    pub fn freeze_answers(&self) {
        self.state.down.freezes.fetch_add(1, Ordering::SeqCst);
    }

    /// Cuts all connections once the clients have sent `bytes` more: in the middle of a request.
    pub fn cut_after_sent(&self, bytes: i64) {
        self.state.up.left.store(bytes, Ordering::SeqCst);
    }

    /// Cuts all connections once the server has answered `bytes` more: it has done the work, nobody is told.
    pub fn cut_after_answered(&self, bytes: i64) {
        self.state.down.left.store(bytes, Ordering::SeqCst);
    }

    /// Every piece of an answer comes so much later.
    pub fn delay_answers(&self, delay: Duration) {
        self.state.down.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// The server is so far away: each direction takes half of it. Order and bandwidth stay as they are.
    pub fn round_trip(&self, round_trip: Duration) {
        for way in [&self.state.up, &self.state.down] {
            way.delay_ms.store(round_trip.as_millis() as u64 / 2, Ordering::SeqCst);
        }
    }

    /// Of a thousand writes, in either direction, so many come late, as after a lost packet: what follows waits for them.
    pub fn late_writes(&self, per_mille: u64, late: Duration) {
        for way in [&self.state.up, &self.state.down] {
            way.late_per_mille.store(per_mille, Ordering::SeqCst);
            way.late_ms.store(late.as_millis() as u64, Ordering::SeqCst);
        }
    }

    /// How often connections were cut so far, those in the middle of something included.
    pub fn cuts(&self) -> u64 {
        *self.state.cuts.borrow()
    }

    /// Bytes that the clients have sent so far.
    pub fn asked(&self) -> u64 {
        self.state.up.came.load(Ordering::SeqCst)
    }

    /// Connections accepted so far, refused ones included.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Writes that came late so far.
    pub fn late(&self) -> usize {
        self.state.late.load(Ordering::SeqCst)
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

impl State {
    async fn serve(self: Arc<Self>, mut client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let Ok(mut server) = TcpStream::connect(self.target).await else {
            return;
        };
        // A proxy that waits for more would be a delay of its own.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let was_reset = tokio::select! {
            was_reset = self.pass(client_reads, server_writes, &self.up) => was_reset,
            was_reset = self.pass(server_reads, client_writes, &self.down) => was_reset,
            _ = cuts.changed() => false,
        };
        if was_reset {
            let nothing_more = Some(Duration::ZERO);
            let _ = socket2::SockRef::from(&client).set_linger(nothing_more);
            let _ = socket2::SockRef::from(&server).set_linger(nothing_more);
        }
    }

    /// Carries one direction to its end; true when that was a reset.
    async fn pass(&self, mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, way: &Way) -> bool {
        let (sender, mut on_their_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
        let born = way.freezes.load(Ordering::SeqCst);
        let reading = async move {
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let read = from.read(&mut buffer).await;
                if way.freezes.load(Ordering::SeqCst) != born {
                    return std::future::pending().await;
                }
                let end = match read {
                    Ok(read @ 1..) => {
                        way.came.fetch_add(read as u64, Ordering::SeqCst);
                        sender.send((Instant::now() + self.way_takes(way), buffer[..read].to_vec())).await
                    }
                    Ok(_) => return (false, sender),
                    Err(_) => return (true, sender),
                };
                if end.is_err() {
                    return (false, sender);
                }
            }
        };
        let writing = async {
            while let Some((due, piece)) = on_their_way.recv().await {
                tokio::time::sleep_until(due).await;
                if !self.write(&piece, &mut to, way).await {
                    return;
                }
            }
        };
        // The end itself takes the way as well: what is before it arrives first.
        let reading = async {
            let (was_reset, sender) = reading.await;
            tokio::time::sleep(self.way_takes(way)).await;
            drop(sender);
            was_reset
        };
        tokio::pin!(reading, writing);
        tokio::select! {
            was_reset = &mut reading => {
                writing.await;
                was_reset
            }
            () = &mut writing => false,
        }
    }

    fn way_takes(&self, way: &Way) -> Duration {
        let mut ms = way.delay_ms.load(Ordering::SeqCst);
        if rand::rng().random_range(0..1000) < way.late_per_mille.load(Ordering::SeqCst) {
            self.late.fetch_add(1, Ordering::SeqCst);
            ms += way.late_ms.load(Ordering::SeqCst);
        }
        Duration::from_millis(ms)
    }

    /// False when the connection is over.
    async fn write(&self, piece: &[u8], to: &mut (impl AsyncWriteExt + Unpin), way: &Way) -> bool {
        let limit = way.left.load(Ordering::SeqCst);
        let allowed = piece.len().min(limit.max(0) as usize);
        if to.write_all(&piece[..allowed]).await.is_err() {
            return false;
        }
        if limit != NO_LIMIT {
            way.left.fetch_sub(allowed as i64, Ordering::SeqCst);
        }
        if allowed < piece.len() {
            way.left.store(NO_LIMIT, Ordering::SeqCst);
            self.cuts.send_modify(|n| *n += 1);
            return false;
        }
        true
    }
}
