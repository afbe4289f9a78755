//! The connection: made at start without a server there, kept, and told to whoever wants to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, Context, stream::Stream};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::sync::{Notify, watch};

use super::names::{LOG, ROOMS};
use super::streams::ensure;
use crate::bus::log_server::{Link, ServerError};
use crate::config::NatsConfig;
use crate::metrics::Metrics;

/// Longest wait for an answer of the server.
pub const ANSWER: Duration = Duration::from_secs(2);
/// A connection without a sign of life is given up after three of these.
const PING: Duration = Duration::from_secs(5);
/// Time between two attempts: 20 to 500 ms.
const DELAY_MS: (u64, u64) = (20, 500);
/// Before the streams are looked at again, where the server was not able.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The same, where a person has to do something.
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(10);

/// State of the connection, for the library's callbacks and for ours.
pub struct Health {
    pub link: watch::Sender<Link>,
    /// Counts the connections that were made.
    pub connects: watch::Sender<u32>,
    /// Why a person has to see to it.
    unusable: Mutex<Option<String>>,
    /// Nothing but a newer program helps.
    is_halted: AtomicBool,
    pub metrics: Arc<Metrics>,
}

impl Health {
    fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            link: watch::Sender::new(Link::Connecting),
            connects: watch::Sender::new(0),
            unusable: Mutex::new(None),
            is_halted: AtomicBool::new(false),
            metrics,
        }
    }

    pub fn count(&self, kind: &str) {
        self.metrics.bus_errors_total.with_label_values(&[kind]).inc();
    }

    /// Nothing more is read or written: what is in the log would be misunderstood.
    pub fn halt(&self, why: String) {
        if !self.is_halted.swap(true, Ordering::SeqCst) {
            tracing::error!(
                error = why,
                "the log of NATS cannot be read by this program; this node takes part no more"
            );
            self.count("protocol");
        }
        self.set_unusable(why);
    }

    fn set_unusable(&self, why: String) {
        *self.unusable.lock() = Some(why.clone());
        self.set(Link::Away(why));
    }

    /// Tells of a change; true when it is one.
    fn set(&self, link: Link) -> bool {
        self.metrics.bus_up.set((link == Link::Up).into());
        self.link.send_if_modified(|now| {
            let is_new = *now != link;
            *now = link;
            is_new
        })
    }

    fn up(&self) -> bool {
        if self.is_halted.load(Ordering::SeqCst) {
            return false;
        }
        *self.unusable.lock() = None;
        self.set(Link::Up)
    }

    pub fn unusable(&self) -> Option<String> {
        self.unusable.lock().clone()
    }

    fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => self.connects.send_modify(|n| *n += 1),
            Event::Disconnected => {
                tracing::warn!("NATS is away; it is tried again, and what is to be written waits");
                self.count("disconnected");
                self.away("the connection to NATS broke".to_owned());
            }
            Event::ClientError(error) if *self.link.borrow() != Link::Up => {
                if self.away(format!("NATS cannot be reached: {error}")) {
                    tracing::warn!(%error, "NATS cannot be reached; it is tried again");
                }
            }
            Event::ServerError(error) => {
                tracing::warn!(%error, "NATS refused something");
                self.count("server");
            }
            Event::ClientError(error) => {
                tracing::warn!(%error, "the NATS client reports a fault");
                self.count("client");
            }
            Event::SlowConsumer(_) => {
                tracing::warn!("messages of NATS came faster than they were taken; some were dropped");
                self.count("slow_consumer");
            }
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::Draining | Event::Closed => tracing::debug!(reason = %event, "the NATS client ends"),
        }
    }

    /// Tells that calls make no sense now; a node that is halted says so for ever.
    fn away(&self, why: String) -> bool {
        if self.is_halted.load(Ordering::SeqCst) {
            return false;
        }
        *self.unusable.lock() = None;
        self.set(Link::Away(why))
    }
}

/// What every call and every stream needs.
pub struct Connection {
    pub client: Client,
    pub js: Context,
    pub log: Stream<()>,
    pub rooms: Stream<()>,
    pub health: Arc<Health>,
    pub config: NatsConfig,
    /// Wakes the keeper: something is not as it should be on the server.
    doubt: Notify,
}

/// The user and the password in a server's URL.
fn named_in(server: &ServerAddr) -> Option<(String, String)> {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((plain(server.username()?), plain(server.password()?)))
}

/// A name without a password is a token.
fn token_in(server: &ServerAddr) -> Option<String> {
    let name = server.username().filter(|_| server.password().is_none())?;
    Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
}

impl Connection {
    /// Begins to connect; nothing has to be there yet.
    pub async fn open(config: NatsConfig, node: &str, metrics: Arc<Metrics>) -> Result<Self, ServerError> {
        let unusable = |error: &dyn std::fmt::Display| ServerError::Unusable(format!("NATS cannot be used: {error}"));
        let parse = |url: &crate::config::Secret| url.expose().parse::<ServerAddr>();
        let servers: Vec<_> = config.urls.iter().map(parse).collect::<Result<_, _>>().map_err(|e| unusable(&e))?;
        let health = Arc::new(Health::new(metrics));
        let told = health.clone();
        let mut options = ConnectOptions::new()
            .name(format!("stenocast {node}"))
            .retry_on_initial_connect()
            .ping_interval(PING)
            .request_timeout(Some(ANSWER))
            .reconnect_delay_callback(delay)
            .event_callback(move |event| {
                told.on_event(&event);
                std::future::ready(())
            });
        if let Some(ca) = &config.ca {
            options = options.require_tls(true).add_root_certificates(ca.clone());
        }
        // The library does not take them from the URL: its servers would be asked without any.
        if let Some((user, password)) = servers.iter().find_map(named_in) {
            options = options.user_and_password(user, password);
        }
        if let Some(token) = servers.iter().find_map(token_in) {
            options = options.token(token);
        }
        if let Some(creds) = &config.creds {
            options = options.credentials_file(creds).await.map_err(|e| unusable(&e))?;
        }
        let client = options.connect(servers).await.map_err(|e| unusable(&e))?;
        let mut js = jetstream::new(client.clone());
        js.set_timeout(ANSWER);
        let log = js.get_stream_no_info(LOG).await.map_err(|e| unusable(&e))?;
        let rooms = js.get_stream_no_info(ROOMS).await.map_err(|e| unusable(&e))?;
        Ok(Self { client, js, log, rooms, health, config, doubt: Notify::new() })
    }

    /// Says whether calls make sense now. Nothing is sent while they do not: it would lie in the client's queue and arrive
    /// late.
    pub fn check(&self) -> Result<(), ServerError> {
        if let Some(why) = self.health.unusable() {
            return Err(ServerError::Unusable(why));
        }
        match &*self.health.link.borrow() {
            Link::Up if self.client.connection_state() == State::Connected => Ok(()),
            Link::Up => Err(ServerError::Away("the connection to NATS broke".to_owned())),
            Link::Connecting => Err(ServerError::Away("NATS was not reached yet".to_owned())),
            Link::Away(why) => Err(ServerError::Away(why.clone())),
        }
    }

    /// The server has no stream or consumer where one should be.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until calls make sense.
    pub async fn until_up(&self) {
        let mut link = self.health.link.subscribe();
        let _ = link.wait_for(|link| *link == Link::Up).await;
    }

    /// Waits until they do not any more.
    pub async fn until_away(&self) {
        let mut link = self.health.link.subscribe();
        let _ = link.wait_for(|link| *link != Link::Up).await;
    }

    /// Looks at the server after each connect, and whenever in doubt, until it is as it should be.
    pub async fn keep(self: Arc<Self>) {
        let mut connects = self.health.connects.subscribe();
        loop {
            let pause = self.look().await.err();
            tokio::select! {
                _ = connects.changed() => {}
                () = self.doubt.notified() => {}
                () = async { tokio::time::sleep(pause.unwrap_or_default()).await }, if pause.is_some() => {}
            }
        }
    }

    /// One look; where it fails, the time to the next one.
    async fn look(&self) -> Result<(), Duration> {
        if self.client.connection_state() != State::Connected {
            return Err(LOOK_AGAIN);
        }
        match ensure(&self.client, &self.js, &self.config).await {
            Ok(()) => {
                if self.health.up() {
                    let server = self.client.server_info();
                    tracing::info!(server = server.server_name, version = server.version, "connected to NATS");
                }
                Ok(())
            }
            Err(ServerError::Away(why)) => {
                if self.health.away(why.clone()) {
                    tracing::warn!(error = why, "NATS is there and not ready");
                }
                Err(LOOK_AGAIN)
            }
            Err(ServerError::Unusable(why)) => {
                if self.health.unusable().as_ref() != Some(&why) {
                    tracing::error!(error = why, "NATS cannot be used as it is");
                    self.health.count("unusable");
                }
                self.health.set_unusable(why);
                Err(LOOK_AGAIN_LATER)
            }
        }
    }
}

/// Longer with each attempt, and not the same for all nodes.
fn delay(attempts: usize) -> Duration {
    let (least, most) = DELAY_MS;
    let longest = (least << attempts.min(5)).min(most);
    Duration::from_millis(rand::random_range(least..=longest.max(least)))
}
