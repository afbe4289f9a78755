//! Prepares a connection's socket before any HTTP: its options, and a second handle to end it from outside.

use std::any::Any;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::viewers::SocketGuard;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use socket2::{SockRef, Socket};

/// Bytes that the kernel takes for a viewer that does not read. The default would hide minutes of transcript.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Longest time that sent bytes may stay unacknowledged, in units of `WS_STALL_MS`. The sweep of the viewers comes
/// first; this is for peers that vanish from a quiet room.
const UNACKNOWLEDGED_STALLS: u32 = 2;

/// The hook of `HttpServer::on_connect`.
pub fn on_connect(connection: &dyn Any, data: &mut Extensions, stall: Duration) {
    let Some(stream) = connection.downcast_ref::<TcpStream>() else {
        return;
    };
    let socket = SockRef::from(stream);
    let options = [
        socket.set_tcp_nodelay(true),
        socket.set_send_buffer_size(SEND_BUFFER_BYTES),
        socket.set_tcp_user_timeout(Some(stall * UNACKNOWLEDGED_STALLS)),
    ];
    if let Some(error) = options.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "socket option refused");
    }
    match stream.as_fd().try_clone_to_owned() {
        Ok(fd) => {
            data.insert(Arc::new(SocketGuard::new(Socket::from(fd))));
        }
        Err(error) => tracing::warn!(%error, "socket could not be duplicated; is the limit of open files reached?"),
    }
}
