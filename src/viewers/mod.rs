//! Everything that viewers share, whatever brings it to them (WebSocket or server-sent events): who may come in, what each one
//! receives, and who is cut off. No HTTP and no actor lives here.
//!
//! `registry` knows all viewers, `stuck` cuts those that do not read, `admission` lets one in, `feed` is what one receives,
//! `delivery_latency` counts and times it, `client_message` is what one may say; `fragments`, `meter` and `socket_guard`
//! bound what its socket may cost.

pub mod admission;
pub mod client_message;
pub mod delivery_latency;
pub mod feed;
pub mod fragments;
pub mod meter;
pub mod registry;
pub mod socket_guard;
mod stuck;

pub use admission::{Admission, Full};
pub use delivery_latency::Delivery;
pub use feed::{Feed, FeedItem, Resume};
pub use meter::Meter;
pub use registry::{Place, Viewer, Viewers};
pub use socket_guard::SocketGuard;
