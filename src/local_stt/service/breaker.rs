//! Ends a connection from outside its actor, which is not polled while the client does not read.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use socket2::{SockAddr, SockAddrStorage, SockRef, Socket};

/// A client that acknowledges nothing for so long is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A second handle on a client's socket.
#[derive(Clone)]
pub struct Breaker(Arc<Socket>);

impl Breaker {
    /// For `HttpServer::on_connect`: sets the socket up and stores its breaker with the connection.
    pub fn install(connection: &dyn Any, data: &mut Extensions) {
        let Some(stream) = connection.downcast_ref::<TcpStream>() else { return };
        let socket = SockRef::from(stream);
        if let Err(error) = socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT)) {
            tracing::debug!(%error, "socket option refused");
        }
        if let Ok(copy) = socket.try_clone() {
            data.insert(Self(Arc::new(copy)));
        }
    }

    /// The client sees a reset at once; the reader here sees an end.
    ///
    /// Connecting a TCP socket to the address family `AF_UNSPEC` disconnects it with a reset (connect(2)). To close it
    /// without lingering would not do: other handles are open, and the HTTP server sends an orderly end first.
    pub fn reset(&self) {
        let storage = SockAddrStorage::zeroed();
        let length = storage.size_of();
        // SAFETY: all zeros is a valid address of the family AF_UNSPEC (0), which has no further fields.
        let nowhere = unsafe { SockAddr::new(storage, length) };
        if let Err(error) = self.0.connect(&nowhere) {
            tracing::debug!(%error, "socket was gone already");
        }
    }
}
