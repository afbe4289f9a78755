//! The AAC configuration that came last, of any publisher: an app that comes back after a reset may not send it again.

use bytes::Bytes;

use crate::audio::aac::AacConfig;

/// Configurations have two to seven bytes; one that describes its channels one by one has some more.
const MAX_KEPT_BYTES: usize = 256;

/// An AAC configuration.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// The sequence header.
    pub body: Bytes,
    pub aac: AacConfig,
}

/// The session's last known configuration.
#[derive(Debug, Default)]
pub(super) struct KnownConfig {
    last: Option<Config>,
    /// It was taken for a publisher that sent none.
    is_assumed: bool,
}

impl KnownConfig {
    pub fn get(&self) -> Option<&Config> {
        self.last.as_ref()
    }

    pub fn set(&mut self, config: Config) {
        self.last = Some(config);
    }

    /// The configuration for a publisher that sent none.
    pub fn assume(&mut self) -> Option<Config> {
        self.is_assumed |= self.last.is_some();
        self.last.clone()
    }

    /// True once after [`Self::assume`] gave one.
    pub fn take_assumed(&mut self) -> bool {
        std::mem::take(&mut self.is_assumed)
    }

    /// The body for a later process, unless it is absurdly long.
    pub fn body(&self) -> Option<&Bytes> {
        self.last.as_ref().map(|config| &config.body).filter(|body| body.len() <= MAX_KEPT_BYTES)
    }
}
