//! Starting and stopping everything.
