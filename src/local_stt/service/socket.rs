//! `SttSocket`: one WebSocket of a client.
//!
//! Owns the socket. Receives audio and commands from the client, messages from its [`Session`]; sends [`Frame`]s to
//! it. Ends when either side closes; the session outlives it.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use actix_http::ws::Item;
use actix_web_actors::ws::{self, CloseCode, CloseReason, ProtocolError};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use super::breaker::Breaker;
use super::gate::Valve;
use super::session::{Attach, Frame, Input, Session};
use crate::gladia::wire::{ClientMessage, Fault, MAX_FRAME_BYTES, ServerEnvelope, ServerMessage};

/// Messages that may wait for a client that does not read.
const OUT_CAPACITY: usize = 1024;
/// Longest wait for a client's answer to a close.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// From the session to the client.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum ToSocket {
    Text(ByteString),
    Close(u16, &'static str),
    /// Say nothing more, but stay (a fault).
    Mute,
}

/// One WebSocket of a client.
pub struct Socket {
    pub number: u64,
    pub session: Addr<Session>,
    pub session_id: String,
    pub breaker: Option<Breaker>,
    pub valve: Arc<Valve>,
    /// A message that comes in several frames.
    pub partial: Option<Partial>,
    pub closing: bool,
    pub muted: bool,
    pub told: bool,
}

pub struct Partial {
    is_text: bool,
    bytes: BytesMut,
}

impl Actor for Socket {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(OUT_CAPACITY);
        let attach = Attach {
            number: self.number,
            socket: ctx.address().recipient(),
            breaker: self.breaker.take(),
            valve: self.valve.clone(),
        };
        let attached = self.session.send(attach).into_actor(self);
        ctx.spawn(attached.map(|answer, socket, ctx| {
            if answer.is_err() {
                socket.close(4404, "the session has ended", ctx);
            }
        }));
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.tell(Input::Gone(None));
    }
}

impl Socket {
    fn tell(&mut self, input: Input) {
        if self.told {
            return;
        }
        self.told = matches!(input, Input::Gone(_));
        self.session.do_send(Frame { number: self.number, input });
    }

    fn close(&mut self, code: u16, reason: &'static str, ctx: &mut ws::WebsocketContext<Self>) {
        if std::mem::replace(&mut self.closing, true) {
            return;
        }
        if self.muted {
            return ctx.stop();
        }
        ctx.close(Some(CloseReason { code: CloseCode::from(code), description: Some(reason.to_owned()) }));
        // Closing while the client still sends would reset the connection and lose the close frame.
        ctx.run_later(CLOSE_WAIT, |_, ctx| ctx.stop());
    }

    fn message(&mut self, is_text: bool, bytes: Bytes, ctx: &mut ws::WebsocketContext<Self>) {
        if !is_text {
            return self.tell(Input::Audio(bytes));
        }
        match serde_json::from_slice(&bytes) {
            Ok(ClientMessage::AudioChunk { data }) => self.tell(Input::Audio(data.chunk)),
            Ok(ClientMessage::StopRecording) => self.tell(Input::Stop),
            Err(error) => {
                let data = Fault { message: format!("message not understood: {error}") };
                let envelope = ServerEnvelope::now(&self.session_id, ServerMessage::Error { data });
                ctx.text(serde_json::to_string(&envelope).expect("plain data"));
            }
        }
    }

    fn continuation(&mut self, item: Item, ctx: &mut ws::WebsocketContext<Self>) {
        let (is_text, bytes, first, last) = match item {
            Item::FirstText(bytes) => (true, bytes, true, false),
            Item::FirstBinary(bytes) => (false, bytes, true, false),
            Item::Continue(bytes) => (false, bytes, false, false),
            Item::Last(bytes) => (false, bytes, false, true),
        };
        if first {
            self.partial = Some(Partial { is_text, bytes: BytesMut::new() });
        }
        let Some(partial) = &mut self.partial else { return };
        if partial.bytes.len() + bytes.len() > MAX_FRAME_BYTES {
            return self.close(CloseCode::Size.into(), "message over 1 MiB", ctx);
        }
        partial.bytes.extend_from_slice(&bytes);
        if last && let Some(whole) = self.partial.take() {
            self.message(whole.is_text, whole.bytes.freeze(), ctx);
        }
    }
}

impl StreamHandler<Result<ws::Message, ProtocolError>> for Socket {
    fn handle(&mut self, item: Result<ws::Message, ProtocolError>, ctx: &mut Self::Context) {
        let message = match item {
            Ok(ws::Message::Close(_)) if self.closing => return ctx.stop(),
            Ok(_) if self.closing => return,
            Ok(message) => message,
            Err(_) if self.valve.oversized() => return self.close(CloseCode::Size.into(), "frame over 1 MiB", ctx),
            Err(error) => {
                tracing::debug!(%error, "connection ended");
                return ctx.stop();
            }
        };
        match message {
            ws::Message::Binary(bytes) => self.message(false, bytes, ctx),
            ws::Message::Text(text) => self.message(true, text.into_bytes(), ctx),
            ws::Message::Continuation(item) => self.continuation(item, ctx),
            ws::Message::Ping(payload) => ctx.pong(&payload),
            ws::Message::Pong(_) | ws::Message::Nop => {}
            ws::Message::Close(reason) => {
                self.tell(Input::Gone(reason.as_ref().map(|r| r.code.into())));
                ctx.close(reason);
                ctx.stop();
            }
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<ToSocket> for Socket {
    type Result = ();

    fn handle(&mut self, message: ToSocket, ctx: &mut Self::Context) {
        match message {
            ToSocket::Text(text) if !self.muted && !self.closing => ctx.text(text),
            ToSocket::Text(_) => {}
            ToSocket::Close(code, reason) => self.close(code, reason, ctx),
            ToSocket::Mute => self.muted = true,
        }
    }
}
