//! Who talks to the RTMP port without speaking RTMP.

/// So many bytes tell them apart.
const TELLING_BYTES: usize = 8;
/// C0 of every RTMP client (specification 5.2.2).
pub const RTMP_VERSION: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    #[error("a TLS handshake on the RTMP port")]
    Tls,
    #[error("an HTTP request on the RTMP port")]
    Http,
    #[error("an encrypted RTMP handshake")]
    EncryptedRtmp,
    #[error("a PROXY protocol header")]
    ProxyProtocol,
    #[error("not an RTMP handshake: it begins with {0:#04x}, not with 0x03")]
    Other(u8),
}

/// The first bytes of each.
const BEGINNINGS: [(&[u8], Stranger); 15] = [
    (&[0x16, 3], Stranger::Tls),
    (b"GET ", Stranger::Http),
    (b"POST ", Stranger::Http),
    (b"PUT ", Stranger::Http),
    (b"HEAD ", Stranger::Http),
    (b"OPTIONS ", Stranger::Http),
    (b"DELETE ", Stranger::Http),
    (b"PATCH ", Stranger::Http),
    (b"CONNECT ", Stranger::Http),
    (b"TRACE ", Stranger::Http),
    (b"PRI * HT", Stranger::Http),
    (&[6], Stranger::EncryptedRtmp),
    (&[8], Stranger::EncryptedRtmp),
    (b"PROXY ", Stranger::ProxyProtocol),
    (b"\r\n\r\n\0\r\nQ", Stranger::ProxyProtocol),
];

/// A fatal alert (RFC 8446, section 6), so that a TLS client fails at once: `handshake_failure`.
const TLS_ALERT: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 40];

impl Stranger {
    /// `None`: it begins as RTMP does, or too little of it is there.
    pub fn of(input: &[u8]) -> Option<Self> {
        let first = *input.first()?;
        if first == RTMP_VERSION || input.len() < TELLING_BYTES {
            return None;
        }
        let known = BEGINNINGS.iter().find(|(beginning, _)| input.starts_with(beginning));
        Some(known.map_or(Self::Other(first), |(_, stranger)| *stranger))
    }

    /// `reason` in the stranger's own language, where it has one.
    pub fn answer(self, reason: &str) -> Vec<u8> {
        match self {
            Self::Tls => TLS_ALERT.to_vec(),
            Self::Http => format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{reason}\n",
                reason.len() + 1
            )
            .into_bytes(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_apart_by_their_first_bytes() {
        for (input, wanted) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01"[..], Some(Stranger::Tls)),
            (b"GET / HTTP/1.1\r\n", Some(Stranger::Http)),
            (b"POST /open/1 HTTP/1.1\r\n", Some(Stranger::Http)),
            (b"PROXY TCP4 1.2.3.4", Some(Stranger::ProxyProtocol)),
            (b"\r\n\r\n\0\r\nQUIT\n", Some(Stranger::ProxyProtocol)),
            (&[6; 20], Some(Stranger::EncryptedRtmp)),
            (b"SSH-2.0-x", Some(Stranger::Other(b'S'))),
            (&[0; 9], Some(Stranger::Other(0))),
            (b"GET /", None),
            (&[3; 9], None),
            (&[], None),
        ] {
            assert_eq!(Stranger::of(input), wanted, "{input:?}");
        }
        assert!(BEGINNINGS.iter().all(|(beginning, _)| beginning.len() <= TELLING_BYTES));
    }
}
