//! Counting of connections, in all and by address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::ended::EndLog;
use crate::metrics::Metrics;

/// Counts connections, in all and by address.
pub struct Connections {
    most: usize,
    most_per_ip: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
    metrics: Arc<Metrics>,
    /// Writes the operator's lines about their ends.
    pub ends: EndLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error("all RTMP connections are in use")]
    InAll,
    #[error("too many RTMP connections from one address")]
    PerIp,
}

impl TooMany {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InAll => "connections",
            Self::PerIp => "connections_per_ip",
        }
    }
}

impl Connections {
    pub fn new(most: usize, most_per_ip: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { most, most_per_ip, open: Mutex::default(), metrics, ends: EndLog::default() })
    }

    /// Counts one more, for as long as the guard lives.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Result<ConnectionGuard, TooMany> {
        let source = source_of(ip);
        let mut open = self.open.lock();
        if open.values().sum::<usize>() >= self.most {
            return Err(TooMany::InAll);
        }
        let count = open.entry(source).or_default();
        if *count >= self.most_per_ip {
            return Err(TooMany::PerIp);
        }
        *count += 1;
        self.metrics.rtmp_connections.inc();
        Ok(ConnectionGuard { connections: self.clone(), source })
    }

    pub fn count(&self) -> usize {
        self.open.lock().values().sum()
    }
}

/// One counted connection.
pub struct ConnectionGuard {
    connections: Arc<Connections>,
    source: IpAddr,
}

impl ConnectionGuard {
    pub fn ends(&self) -> &EndLog {
        &self.connections.ends
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
        self.connections.metrics.rtmp_connections.dec();
    }
}

/// An IPv6 host owns a /64 at least, so that counts as one address.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_in_all_and_by_address() {
        let metrics = Arc::new(Metrics::new());
        let connections = Connections::new(3, 2, metrics.clone());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.admit(ip("10.0.0.1")).unwrap();
        let _mapped = connections.admit(ip("::ffff:10.0.0.1")).unwrap();
        assert_eq!(connections.admit(ip("10.0.0.1")).err(), Some(TooMany::PerIp));
        let _v6 = connections.admit(ip("2001:db8::1")).unwrap();
        assert_eq!(connections.admit(ip("10.0.0.2")).err(), Some(TooMany::InAll));
        assert_eq!(metrics.rtmp_connections.get(), 3);
        drop(first);
        let _again = connections.admit(ip("2001:db8::2")).unwrap();
        assert_eq!(connections.count(), 3);
    }
}
