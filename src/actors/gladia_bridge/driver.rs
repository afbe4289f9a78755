//! The bridge's only loop: keeps POST, socket and timers in step with the machine, one frame after the other.
//!
//! Everything that must not be lost is in the session's core. What this loop holds (a connection, a permit, a request
//! under way) can be dropped at any point; another loop on the same core goes on.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::ws::Item;
use awc::error::WsProtocolError;
use awc::ws::Frame;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::socket::{ReadyFrame, Wrote, read, say_goodbye, write};
use crate::actors::session_core::SessionCore;
use crate::config::Secret;
use crate::gladia::client::{Client, Inlet, MAX_ERROR_CHARS, MAX_MESSAGE_BYTES, Outlet};
use crate::gladia::endpoint::SttEndpoint;
use crate::gladia::heard::{Reading, read as read_message};
use crate::gladia::lenient::Odd;
use crate::gladia::machine::{Input, Outgoing, Phase, RecogniserMessage, SttMachine};
use crate::gladia::policy::Fault;
use crate::metrics::Metrics;
use crate::transcript::Status;
use crate::transcript::{TranscriptEvent, Utterance};

/// To the loop.
#[derive(Debug)]
pub enum Command {
    Finish { deadline: Instant, done: oneshot::Sender<()> },
}

/// A step that takes time, for which the machine waits.
enum Work {
    Endpoint(String),
    Slot(OwnedSemaphorePermit),
    Opened(Result<(String, Secret), Fault>),
    Connected(Result<(Outlet, Inlet), Fault>),
}

/// The loop that keeps POST, socket and timers in step with the machine.
pub struct Driver {
    pub core: Arc<SessionCore>,
    pub endpoint: SttEndpoint,
    pub slots: Arc<Semaphore>,
    pub client: Client,
    /// Shared with the actor, which shows its state; never borrowed over an await.
    pub machine: Rc<RefCell<SttMachine>>,
    pub commands: mpsc::UnboundedReceiver<Command>,
}

/// The connection and the timers that the loop holds.
#[derive(Default)]
struct Io {
    revision: u64,
    work: Option<LocalBoxFuture<'static, Work>>,
    outlet: Option<Outlet>,
    inlet: Option<Inlet>,
    /// Something is in the outlet's buffer.
    is_dirty: bool,
    pong: Option<Bytes>,
    fragments: BytesMut,
    base_url: Option<String>,
    permit: Option<OwnedSemaphorePermit>,
    session_gauge: Option<GaugeGuard>,
    waiters: Vec<oneshot::Sender<()>>,
    ready_frame: Option<ReadyFrame>,
    /// Types and fields of messages that were odd, and have been warned of.
    warned: HashSet<(&'static str, &'static str)>,
}

impl Driver {
    /// Runs until the session is finished and everything is in the room, or for ever.
    pub async fn run(mut self) {
        let mut held = Io::default();
        self.input(Input::Tick);
        loop {
            self.follow(&mut held);
            self.deliver();
            if self.machine.borrow().phase() == Phase::Done && self.core.ledger().front().is_none() {
                break;
            }
            self.next_frame(&mut held);
            let now = Instant::now();
            let wake_at = self.machine.borrow().wake_at(now);
            tokio::select! {
                // What has come is read before the clock is asked who is late: the machine may have stood still.
                biased;
                work = some(&mut held.work) => self.worked(&mut held, work),
                Some(Command::Finish { deadline, done }) = self.commands.recv() => {
                    held.waiters.push(done);
                    self.input(Input::Finish { deadline });
                }
                wrote = write(&mut held.outlet, held.ready_frame.clone(), held.is_dirty) => self.wrote(&mut held, wrote),
                frame = read(&mut held.inlet) => self.received(&mut held, frame),
                () = self.core.pcm_ready.notified() => self.input(Input::Tick),
                Ok(()) = self.endpoint.base_url.changed() => self.endpoint_changed(&held),
                () = tokio::time::sleep_until(wake_at) => self.input(Input::Tick),
            }
        }
        for done in held.waiters.drain(..) {
            let _ = done.send(());
        }
        // A second Finish finds everything done.
        while let Some(Command::Finish { done, .. }) = self.commands.recv().await {
            let _ = done.send(());
        }
    }

    fn input(&self, input: Input) {
        let mut ledger = self.core.ledger();
        self.machine.borrow_mut().handle(&mut ledger, Instant::now(), input);
        ledger.report(&self.core.metrics);
    }

    /// Starts and stops what the machine's phase asks for.
    fn follow(&self, held: &mut Io) {
        loop {
            let machine = self.machine.borrow();
            if machine.revision() == held.revision {
                break;
            }
            held.revision = machine.revision();
            held.work = None;
            if !machine.is_connected() {
                self.leave(held, machine.closes_normally());
            }
            if !machine.has_slot() {
                held.permit = None;
            }
            let phase = machine.phase();
            drop(machine);
            held.work = self.begin(phase, held);
        }
        let is_open = self.core.ledger().session().is_some();
        if is_open != held.session_gauge.is_some() {
            held.session_gauge = is_open.then(|| GaugeGuard::new(&self.core.metrics.stt_sessions));
        }
    }

    fn begin(&self, phase: Phase, held: &Io) -> Option<LocalBoxFuture<'static, Work>> {
        match phase {
            Phase::AwaitingEndpoint => Some(endpoint_of(self.endpoint.base_url.clone()).boxed_local()),
            Phase::AwaitingSlot => Some(slot_of(self.slots.clone()).boxed_local()),
            Phase::Opening => {
                let (client, key) = (self.client.clone(), self.endpoint.api_key.clone());
                let base = held.base_url.clone().unwrap_or_default();
                Some(async move { Work::Opened(client.open(&base, key.as_ref()).await) }.boxed_local())
            }
            Phase::Connecting => {
                let url = self.core.ledger().session()?.url;
                let client = self.client.clone();
                Some(async move { Work::Connected(client.connect(&url).await) }.boxed_local())
            }
            _ => None,
        }
    }

    fn leave(&self, held: &mut Io, normally: bool) {
        held.inlet = None;
        held.pong = None;
        held.is_dirty = false;
        held.ready_frame = None;
        held.fragments.clear();
        if let Some(outlet) = held.outlet.take().filter(|_| normally) {
            actix::spawn(say_goodbye(outlet));
        }
    }

    fn worked(&self, held: &mut Io, work: Work) {
        held.work = None;
        match work {
            Work::Endpoint(base_url) => {
                held.base_url = Some(base_url);
                self.input(Input::EndpointReady);
            }
            Work::Slot(permit) => {
                held.permit = Some(permit);
                self.input(Input::SlotGranted);
            }
            Work::Opened(result) => self.input(Input::Opened(result)),
            Work::Connected(Ok((outlet, inlet))) => {
                (held.outlet, held.inlet) = (Some(outlet), Some(inlet));
                self.input(Input::Connected(Ok(())));
            }
            Work::Connected(Err(fault)) => self.input(Input::Connected(Err(fault))),
        }
    }

    fn endpoint_changed(&self, held: &Io) {
        let base_url = self.endpoint.base_url.borrow().clone();
        if base_url.is_some() && held.base_url.is_some() && base_url != held.base_url {
            self.input(Input::EndpointMoved);
        }
    }

    /// Looks for something to send. A frame stays until it is in the outlet: sending goes on where it was.
    fn next_frame(&self, held: &mut Io) {
        if held.outlet.is_none() || held.ready_frame.is_some() {
            return;
        }
        held.ready_frame = held.pong.take().map(ReadyFrame::Pong).or_else(|| {
            let mut ledger = self.core.ledger();
            self.machine.borrow().outgoing(&mut ledger, Instant::now()).map(ReadyFrame::Out)
        });
    }

    fn wrote(&self, held: &mut Io, wrote: Result<Wrote, WsProtocolError>) {
        match wrote {
            Ok(Wrote::Flushed) => held.is_dirty = false,
            Ok(Wrote::Fed) => {
                held.is_dirty = true;
                if let Some(ReadyFrame::Out(out)) = held.ready_frame.take() {
                    self.sent(&out);
                }
            }
            Err(_) => self.input(Input::Disconnected(Fault::Network("the connection was reset".to_owned()))),
        }
    }

    fn sent(&self, out: &Outgoing) {
        let mut ledger = self.core.ledger();
        self.machine.borrow_mut().sent(&mut ledger, Instant::now(), out);
        if let Outgoing::Audio(pcm) = out {
            let backlog_ms = ledger.backlog_ms();
            tracing::debug!(timestamp = %now_iso(), audio_bytes = pcm.len(), backlog_ms, "Audio chunk sent to Gladia");
        }
    }

    fn received(&self, held: &mut Io, frame: Option<Result<Frame, WsProtocolError>>) {
        match frame {
            Some(Ok(Frame::Text(text) | Frame::Binary(text))) => self.message(held, &text),
            Some(Ok(Frame::Ping(payload))) => held.pong = Some(payload),
            Some(Ok(Frame::Continuation(item))) => self.fragment(held, item),
            Some(Ok(Frame::Close(reason))) => {
                let text = reason.as_ref().and_then(|r| r.description.as_deref()).unwrap_or("");
                let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARS).collect();
                let code = reason.map_or(1005, |r| r.code.into());
                tracing::info!(code, reason = text, "the recogniser closes the connection");
                self.input(Input::Disconnected(Fault::Closed { code }));
            }
            Some(Ok(Frame::Pong(_))) => {}
            Some(Err(WsProtocolError::Io(_))) | None => {
                self.input(Input::Disconnected(Fault::Network("the connection was reset".to_owned())));
            }
            Some(Err(_)) => self.input(Input::Disconnected(Fault::Protocol("a broken WebSocket frame".to_owned()))),
        }
    }

    fn fragment(&self, held: &mut Io, item: Item) {
        let (bytes, is_last) = match item {
            Item::FirstText(bytes) | Item::FirstBinary(bytes) => {
                held.fragments.clear();
                (bytes, false)
            }
            Item::Continue(bytes) => (bytes, false),
            Item::Last(bytes) => (bytes, true),
        };
        if held.fragments.len() + bytes.len() > MAX_MESSAGE_BYTES {
            return self.input(Input::Disconnected(Fault::Protocol("a message is too long".to_owned())));
        }
        held.fragments.extend_from_slice(&bytes);
        if is_last {
            let whole = held.fragments.split();
            self.message(held, &whole);
        }
    }

    fn message(&self, held: &mut Io, text: &[u8]) {
        let metrics = &self.core.metrics;
        match read_message(text) {
            Ok(Reading { kind, heard, odd }) => {
                metrics.stt_messages_total.with_label_values(&[kind]).inc();
                if kind == "unknown" {
                    metrics.stt_messages_ignored_total.inc();
                }
                note_oddities(held, metrics, kind, &odd);
                self.input(Input::Heard(heard));
            }
            Err(error) => {
                metrics.stt_messages_ignored_total.inc();
                warn_once(held, "unknown", "json");
                tracing::debug!(%error, message_bytes = text.len(), "recogniser message not understood");
                self.input(Input::Heard(RecogniserMessage::Other));
            }
        }
    }

    /// Hands results to the room, as many as it takes; the rest stays in the ledger.
    fn deliver(&self) {
        let mut ledger = self.core.ledger();
        while let Some(item) = ledger.front().cloned() {
            let is_known = matches!(&item, TranscriptEvent::Status { status: Status::Live, .. })
                && self.core.results.is_empty()
                && self.core.log.status() == Status::Live;
            if !is_known && self.core.results.try_push(item.clone()).is_err() {
                return;
            }
            if let TranscriptEvent::Final(utterance) = &item {
                self.note_final(utterance);
            }
            ledger.delivered();
        }
    }

    fn note_final(&self, utterance: &Utterance) {
        if let Some(ms) = utterance.stt_ms {
            self.core.metrics.stt_latency_seconds.observe(ms as f64 / 1000.0);
        }
        tracing::info!(
            timestamp = %now_iso(),
            id = utterance.id,
            start_ms = utterance.start_ms,
            end_ms = utterance.end_ms,
            text_bytes = utterance.text.len(),
            stt_ms = utterance.stt_ms,
            "Transcript received from Gladia"
        );
    }
}

/// Counts each odd message, and says each kind of oddity once in a bridge's life.
fn note_oddities(held: &mut Io, metrics: &Metrics, kind: &'static str, odd: &Odd) {
    if odd.fields().is_empty() {
        return;
    }
    metrics.stt_messages_odd_total.with_label_values(&[kind]).inc();
    for field in odd.fields() {
        warn_once(held, kind, field);
    }
}

fn warn_once(held: &mut Io, kind: &'static str, field: &'static str) {
    if held.warned.insert((kind, field)) {
        tracing::warn!(kind, field, "the recogniser's message is not as its schema has it");
    }
}

fn now_iso() -> String {
    crate::gladia::wire::timestamp()
}

/// The recogniser's address as soon as there is one. Without anybody to say it, that is never.
async fn endpoint_of(mut base_url: watch::Receiver<Option<String>>) -> Work {
    let url = match base_url.wait_for(Option::is_some).await {
        Ok(url) => url.clone(),
        Err(_) => pending().await,
    };
    Work::Endpoint(url.expect("it was waited for"))
}

/// One of the account's concurrent sessions.
async fn slot_of(slots: Arc<Semaphore>) -> Work {
    match slots.acquire_owned().await {
        Ok(permit) => Work::Slot(permit),
        Err(_) => pending().await,
    }
}

async fn some(work: &mut Option<LocalBoxFuture<'static, Work>>) -> Work {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

/// Counts one in a gauge until dropped, panics included.
struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
