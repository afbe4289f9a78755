//! A TCP proxy that fails on command.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const NO_LIMIT: i64 = i64::MAX;

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
    /// Goes up with each freeze: on connections of an older one nothing passes any more.
    freezes: AtomicU64,
    delay_ms: AtomicU64,
    /// Bytes that may still pass before the connection is cut.
    upward_left: AtomicI64,
    downward_left: AtomicI64,
    accepted: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl ChaosProxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            target,
            refusing: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
            freezes: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            upward_left: AtomicI64::new(NO_LIMIT),
            downward_left: AtomicI64::new(NO_LIMIT),
            accepted: AtomicUsize::new(0),
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

    /// Cuts every connection; new ones are taken.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|n| *n += 1);
    }

    /// Nothing passes any more on the connections of now, and nobody is told; new ones work.
    pub fn freeze(&self) {
        self.state.freezes.fetch_add(1, Ordering::SeqCst);
    }

    /// Cuts all connections once the clients have sent `bytes` more: in the middle of a request.
    pub fn cut_after_sent(&self, bytes: i64) {
        self.state.upward_left.store(bytes, Ordering::SeqCst);
    }

    /// Cuts all connections once the server has answered `bytes` more: it has done the work, nobody is told.
    pub fn cut_after_answered(&self, bytes: i64) {
        self.state.downward_left.store(bytes, Ordering::SeqCst);
    }

    /// Every piece of an answer comes so much later.
    pub fn delay_answers(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// How often connections were cut so far, those in the middle of something included.
    pub fn cuts(&self) -> u64 {
        *self.state.cuts.borrow()
    }

    /// Connections accepted so far, refused ones included.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
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
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        tokio::select! {
            () = self.pass(client_reads, server_writes, Direction::Up) => {}
            () = self.pass(server_reads, client_writes, Direction::Down) => {}
            _ = cuts.changed() => {}
        }
    }

    async fn pass(
        &self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        direction: Direction,
    ) {
        let mut buffer = vec![0; 16 << 10];
        let left = match direction {
            Direction::Up => &self.upward_left,
            Direction::Down => &self.downward_left,
        };
        let born = self.freezes.load(Ordering::SeqCst);
        loop {
            let Ok(read @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            if self.freezes.load(Ordering::SeqCst) != born {
                return std::future::pending().await;
            }
            if let Direction::Down = direction {
                tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))).await;
            }
            let limit = left.load(Ordering::SeqCst);
            let allowed = read.min(limit.max(0) as usize);
            if to.write_all(&buffer[..allowed]).await.is_err() {
                return;
            }
            if limit != NO_LIMIT {
                left.fetch_sub(allowed as i64, Ordering::SeqCst);
            }
            if allowed < read {
                left.store(NO_LIMIT, Ordering::SeqCst);
                self.cuts.send_modify(|n| *n += 1);
                return;
            }
        }
    }
}
