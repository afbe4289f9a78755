//! A second handle of a viewer's socket, to end it from outside.

use std::net::Shutdown;

use socket2::Socket;

/// A duplicate of a connection's socket. The connection owns it, so that it is closed with it.
pub struct SocketGuard(Socket);

impl SocketGuard {
    pub fn new(duplicate: Socket) -> Self {
        Self(duplicate)
    }

    /// Ends the connection at once, whatever its buffers hold.
    pub fn shut_down(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
