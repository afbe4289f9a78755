//! Reads and writes of the recogniser's connection, each a step that can be dropped: a frame is fed whole or not at all.

use std::future::pending;
use std::time::Duration;

use awc::error::WsProtocolError;
use awc::ws::{CloseCode, Frame, Message};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};

use crate::gladia::client::{Inlet, Outlet};
use crate::gladia::machine::Outgoing;

/// Keep-alive: a valid message with no audio, as idle connections are dropped.
const KEEP_ALIVE_TEXT: &str = r#"{"type":"audio_chunk","data":{"chunk":""}}"#;
const STOP_TEXT: &str = r#"{"type":"stop_recording"}"#;
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// The next frame, and what it stands for.
#[derive(Clone)]
pub(super) enum ReadyFrame {
    Pong(Bytes),
    Out(Outgoing),
}

/// Ends the recogniser's session with the connection: close code 1000 means that.
pub(super) async fn say_goodbye(mut outlet: Outlet) {
    let goodbye = outlet.send(Message::Close(Some(CloseCode::Normal.into())));
    // Whether it arrives makes no difference here: the session times out otherwise.
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
}

pub(super) async fn read(inlet: &mut Option<Inlet>) -> Option<Result<Frame, WsProtocolError>> {
    match inlet {
        Some(inlet) => inlet.next().await,
        None => pending().await,
    }
}

pub(super) enum Wrote {
    Fed,
    Flushed,
}

/// One step of writing. Dropped before it is done, it has fed nothing.
pub(super) async fn write(
    outlet: &mut Option<Outlet>,
    frame: Option<ReadyFrame>,
    is_dirty: bool,
) -> Result<Wrote, WsProtocolError> {
    let Some(outlet) = outlet else {
        return pending().await;
    };
    let message = match frame {
        Some(ReadyFrame::Pong(payload)) => Message::Pong(payload),
        Some(ReadyFrame::Out(Outgoing::Audio(pcm))) => Message::Binary(pcm),
        Some(ReadyFrame::Out(Outgoing::KeepAlive)) => Message::Text(KEEP_ALIVE_TEXT.into()),
        Some(ReadyFrame::Out(Outgoing::Stop)) => Message::Text(STOP_TEXT.into()),
        None if is_dirty => return outlet.flush().await.map(|()| Wrote::Flushed),
        None => return pending().await,
    };
    outlet.feed(message).await.map(|()| Wrote::Fed)
}
