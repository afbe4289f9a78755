//! LiveKit's protocols: access tokens and the keys that sign them, its server API, its webhooks, the addresses of Track Egress.

pub mod api;
pub mod keys;
pub mod model;
pub mod token;
pub mod track_url;
