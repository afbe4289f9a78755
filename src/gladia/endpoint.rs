//! Where the recogniser is.

use tokio::sync::watch;

use crate::config::Secret;

/// The recogniser's address, which may appear and change while sessions run (a local recogniser restarts).
#[derive(Debug, Clone)]
pub struct SttEndpoint {
    /// Without trailing slash; None while there is none.
    pub base_url: watch::Receiver<Option<String>>,
    pub api_key: Option<Secret>,
}
