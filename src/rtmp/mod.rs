//! RTMP ingest, without I/O where it can be: bytes in, events out.

/// A connection that has asked to publish, with everything that its RtmpConnection actor needs to go on.
pub struct Publisher {}
