//! Session: one recogniser session; it outlives the connections of its client.
//!
//! Owns the engine's streams, the byte positions and the results. Receives [`Attach`] and [`Frame`]s from its socket,
//! events from the engine; sends messages through [`Outgoing`]. Ends when its text is delivered, or nobody came back.
//!
//! Resume rules (what Gladia's SDKs rely on): what was not acknowledged is forgotten when the connection ends, and the
//! next byte continues at the last acknowledged one; acknowledgements never go down; a second connection replaces the
//! first; `stop_recording` is remembered; results made in between are delivered on return.

mod breaking;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::breaking::{Break, ServiceStops};
use super::super::engine::{Event, SAMPLE_RATE};
use super::Service;
use super::breaker::Breaker;
use super::faults::Lasting;
use super::gate::Valve;
use super::intake::Intake;
use super::outgoing::{Connection, Outgoing};
use super::registry::Ticket;
use super::request::Accepted;
use super::results::{Finished, Results};
use super::socket::ToSocket;
use crate::gladia::wire::{Acknowledgment, Recorded, ServerMessage, StopAck};

/// Audio that may wait for the engine before its client is made to wait, in samples (60 s).
const MAX_BACKLOG: usize = 60 * SAMPLE_RATE;
/// Interval in which a waiting client's turn is checked.
const BACKLOG_CHECK: Duration = Duration::from_millis(20);
const CLOSE_DONE: u16 = 1000;
const CLOSE_IDLE: u16 = 4408;
const CLOSE_REPLACED: u16 = 4409;

/// From a socket that has just opened; an error of the mailbox means that the session is over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Attach {
    pub number: u64,
    pub socket: Recipient<ToSocket>,
    pub breaker: Option<Breaker>,
    pub valve: Arc<Valve>,
}

/// From a socket; one that is not the present one is ignored.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Frame {
    pub number: u64,
    pub input: Input,
}

pub enum Input {
    Audio(Bytes),
    Stop,
    /// The connection has ended, with this close code of the client.
    Gone(Option<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Recording,
    /// No more audio; the engine finishes.
    Finishing,
    /// The last message is on its way.
    Ended,
}

/// One session of a client: audio in, messages out, over any number of connections.
pub struct Session {
    service: Arc<Service>,
    ticket: Ticket,
    results: Results,
    out: Outgoing,
    intake: Intake,
    unfinished: usize,
    phase: Phase,
    close_code: u16,
    /// The client will not come back.
    abandoned: bool,
    filed: bool,
    announced: bool,
    half_open: bool,
    faults: Lasting,
    valve: Arc<Valve>,
    created: Instant,
    /// Last sign of life of the client: audio, or the end of its connection.
    last_input: Instant,
    timers: Timers,
}

#[derive(Default)]
struct Timers {
    release: Option<SpawnHandle>,
    acknowledge: Option<SpawnHandle>,
    backlog: Option<SpawnHandle>,
}

impl Session {
    pub fn new(service: Arc<Service>, ticket: Ticket, accepted: Accepted) -> Self {
        let format = accepted.format;
        let out = Outgoing::new(ticket.id.clone(), accepted.messages.clone());
        let results = Results::new(ticket.id.clone(), accepted, service.about.language);
        let intake = Intake::new(format, service.options.keep_audio);
        let faults = service.faults.lock().lasting;
        Self {
            out,
            results,
            intake,
            faults,
            unfinished: format.channels as usize,
            phase: Phase::Recording,
            close_code: CLOSE_DONE,
            abandoned: false,
            filed: false,
            announced: false,
            half_open: false,
            valve: Arc::default(),
            created: Instant::now(),
            last_input: Instant::now(),
            timers: Timers::default(),
            service,
            ticket,
        }
    }

    fn audio(&mut self, bytes: Bytes, ctx: &mut Context<Self>) {
        if self.phase != Phase::Recording {
            let refused = Acknowledgment::refused("recording already stopped");
            return self.out.now(ServerMessage::AudioChunk(refused));
        }
        self.last_input = Instant::now();
        if self.faults.delay_acks_ms == 0 && !self.intake.is_waiting() {
            return self.take(&bytes, ctx);
        }
        self.intake.put_off(bytes, Duration::from_millis(self.faults.delay_acks_ms));
        self.acknowledge_due(ctx);
    }

    fn acknowledge_due(&mut self, ctx: &mut Context<Self>) {
        let next = loop {
            match self.intake.due(false) {
                Ok(bytes) => self.take(&bytes, ctx),
                Err(next) => break next,
            }
        };
        let timer = next.map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            ctx.run_later(wait, Session::acknowledge_due)
        });
        replace(&mut self.timers.acknowledge, timer, ctx);
    }

    /// Takes audio for good and says so.
    fn take(&mut self, bytes: &[u8], ctx: &mut Context<Self>) {
        let ack = self.intake.take(bytes);
        if !self.faults.lose_acks {
            self.out.now(ServerMessage::AudioChunk(Acknowledgment::ok(ack)));
        }
        if self.faults.session_cap_s.is_some_and(|cap| ack.time_range[1] >= cap) {
            self.finish(CLOSE_DONE);
        }
        self.throttle(ctx);
    }

    /// Stops reading from a client that is far ahead of the engine.
    fn throttle(&mut self, ctx: &mut Context<Self>) {
        let waiting = self.timers.backlog.take().is_some();
        let limit = if waiting { MAX_BACKLOG / 2 } else { MAX_BACKLOG };
        let behind = self.intake.backlog() > limit;
        self.valve.set_open(!behind && !self.half_open);
        if behind {
            self.timers.backlog = Some(ctx.run_later(BACKLOG_CHECK, Session::throttle));
        }
    }

    fn stop_ack(&self) -> ServerMessage {
        let left = self.intake.backlog() as f64 / SAMPLE_RATE as f64;
        let ack = StopAck { recording_duration: self.intake.duration(), recording_left_to_process: left };
        ServerMessage::StopRecording(Acknowledgment::ok(ack))
    }

    fn stop_recording(&mut self, ctx: &mut Context<Self>) {
        while let Ok(bytes) = self.intake.due(true) {
            self.take(&bytes, ctx);
        }
        let ack = self.stop_ack();
        self.out.now(ack);
        self.finish(CLOSE_DONE);
    }

    /// No more audio; when the engine has said the rest, the connection closes with `code`.
    fn finish(&mut self, code: u16) {
        if self.phase != Phase::Recording {
            return;
        }
        self.phase = Phase::Finishing;
        self.close_code = code;
        let data = Recorded { recording_duration: self.intake.duration() };
        self.out.now(ServerMessage::EndRecording { data });
        self.intake.finish();
    }

    fn heard(&mut self, channel: u32, event: Event) {
        if let Some(message) = self.results.message(channel, event) {
            let translations = self.results.translations(&message);
            self.out.result(message, &self.faults);
            return translations.into_iter().for_each(|message| self.out.result(message, &self.faults));
        }
        self.unfinished = self.unfinished.saturating_sub(1);
        if self.unfinished == 0 {
            self.conclude();
        }
    }

    fn conclude(&mut self) {
        self.phase = Phase::Ended;
        self.last_input = Instant::now();
        self.ticket.working_no_more();
        for message in self.results.post_messages(self.intake.duration()) {
            self.out.last(message, &self.faults);
        }
        self.out.last(ServerMessage::EndSession, &self.faults);
    }

    /// Sends what is due, and ends the session when that was all.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        let timer = self.out.release().map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            ctx.run_later(wait, Session::flush)
        });
        replace(&mut self.timers.release, timer, ctx);
        if self.phase != Phase::Ended || !self.out.is_empty() {
            return;
        }
        self.file();
        if let Some(connection) = self.out.connection.take() {
            connection.socket.do_send(ToSocket::Close(self.close_code, "session ended"));
            ctx.stop();
        } else if self.abandoned || !self.out.undelivered() {
            ctx.stop();
        }
    }

    /// Makes the results available to GET.
    fn file(&mut self) {
        if std::mem::replace(&mut self.filed, true) {
            return;
        }
        let (duration, audio) = (self.intake.duration(), self.intake.take_recording());
        let log = std::mem::take(&mut self.out.log);
        let document = self.results.document(Some(duration), &log, audio.is_some());
        let bytes = document.to_string().len();
        let id = self.results.id.clone();
        self.service.registry.finish(Finished { id, document, bytes, audio });
        tracing::info!(session = %self.ticket.id, audio_s = duration, "recogniser session ended");
    }

    /// The connection is over; what it had not been promised is forgotten.
    fn detach(&mut self) -> Option<Connection> {
        self.intake.forget_waiting();
        self.half_open = false;
        self.last_input = Instant::now();
        self.out.connection.take()
    }

    /// Ends what nobody cares for any more. One timer, set again for the next possible moment.
    fn watch(&mut self, ctx: &mut Context<Self>) {
        let limits = self.service.options.limits;
        let connected = self.out.connection.is_some();
        let quiet_until = self.last_input + if connected { limits.idle } else { limits.resume };
        let due = quiet_until.min(self.created + limits.session_max);
        let now = Instant::now();
        let next = if now < due { due } else { now + limits.resume };
        if now >= due {
            match self.phase {
                Phase::Recording => {
                    self.abandoned = !connected;
                    self.finish(if connected && now >= quiet_until { CLOSE_IDLE } else { CLOSE_DONE });
                }
                Phase::Finishing => {}
                Phase::Ended => return ctx.stop(),
            }
        }
        // An idle limit may become the nearer one when a client connects: never sleep longer than that.
        let wait = next.duration_since(now).min(limits.idle);
        ctx.run_later(wait, Session::watch);
    }
}

fn replace(slot: &mut Option<SpawnHandle>, timer: Option<SpawnHandle>, ctx: &mut Context<Session>) {
    if let Some(old) = std::mem::replace(slot, timer) {
        ctx.cancel_future(old);
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        for channel in 0..self.results.accepted.format.channels {
            let (tx, mut rx) = mpsc::unbounded_channel();
            self.intake.streams.push(self.service.engine.open(self.results.accepted.params, tx));
            let events = stream::poll_fn(move |cx| rx.poll_recv(cx));
            ctx.add_stream(futures_util::StreamExt::map(events, move |event| (channel, event)));
        }
        self.watch(ctx);
        let document = self.results.document(None, &[], false);
        self.service.registry.started(&self.ticket.id, ctx.address(), document);
        tracing::info!(session = %self.ticket.id, "recogniser session begins");
    }
}

impl Handler<Attach> for Session {
    type Result = ();

    fn handle(&mut self, attach: Attach, ctx: &mut Self::Context) {
        let half_open = self.half_open;
        if let Some(old) = self.detach() {
            old.socket.do_send(ToSocket::Close(CLOSE_REPLACED, "replaced by a newer connection"));
            if half_open {
                old.reset();
            }
        }
        let Attach { number, socket, breaker, valve } = attach;
        self.valve = valve;
        self.out.attach(Connection { number, socket, breaker });
        if !std::mem::replace(&mut self.announced, true) {
            self.out.now(ServerMessage::StartRecording);
            self.results.missing_add_ons().into_iter().for_each(|m| self.out.now(m));
        }
        self.throttle(ctx);
        self.flush(ctx);
    }
}

impl Handler<Frame> for Session {
    type Result = ();

    fn handle(&mut self, frame: Frame, ctx: &mut Self::Context) {
        if self.out.connection.as_ref().is_none_or(|c| c.number != frame.number) {
            return;
        }
        match frame.input {
            Input::Audio(bytes) => self.audio(bytes, ctx),
            Input::Stop => self.stop_recording(ctx),
            Input::Gone(code) => {
                self.detach();
                // A client that closes with 1000 has stopped, and does not wait for the rest.
                if code == Some(CLOSE_DONE) {
                    self.abandoned = true;
                    self.finish(CLOSE_DONE);
                }
            }
        }
        self.flush(ctx);
    }
}

impl StreamHandler<(u32, Event)> for Session {
    fn handle(&mut self, (channel, event): (u32, Event), ctx: &mut Self::Context) {
        self.heard(channel, event);
        self.flush(ctx);
    }

    // The default would stop the session.
    fn finished(&mut self, _: &mut Self::Context) {}
}
