//! A whole server in this process, on free ports and a temporary directory.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use stenocast::actors::supervision::Observe;
use stenocast::app::App;
use stenocast::config::{Config, Secret};
use stenocast::livekit::token;
use stenocast::transcript::Slug;

use super::wait::{DEADLINE, until};

/// See the module. Dropping it without [`TestApp::stop`] leaves the threads to the end of the process.
pub struct TestApp {
    pub app: App,
    pub dir: tempfile::TempDir,
}

/// API key and secret of every test server.
pub const KEY: (&str, &str) = ("testkey", "test-secret-0123456789");

/// The settings of a test server; `more` overrides them.
pub fn settings(dir: &std::path::Path, more: &[(&str, &str)]) -> HashMap<String, String> {
    let defaults = [
        ("PORT", "0"),
        ("HOST", "127.0.0.1"),
        ("RTMP_PORT", "0"),
        ("RTMP_OPEN", "true"),
        ("WORKERS", "2"),
        ("LIVEKIT_API_KEY", KEY.0),
        ("LIVEKIT_API_SECRET", KEY.1),
        ("DATA_DIR", dir.to_str().expect("a UTF-8 path")),
    ];
    let all = defaults.iter().chain(more);
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

impl TestApp {
    pub async fn start(more: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary directory"), more).await
    }

    /// On a directory that another server has left.
    pub async fn start_in(dir: tempfile::TempDir, more: &[(&str, &str)]) -> Self {
        let config = Config::load(&settings(dir.path(), more), false).expect("a valid configuration");
        let app = App::start(config).await.expect("the server starts");
        Self { app, dir }
    }

    pub fn rtmp_url(&self, slug: &str) -> String {
        format!("rtmp://{}/live/{slug}", self.app.rtmp_addr().expect("ingest is on"))
    }

    pub fn token(&self, slug: &str) -> String {
        viewer_token(slug)
    }

    /// The actor tree.
    pub async fn tree(&self) -> Value {
        serde_json::to_value(self.app.root().send(Observe::default()).await.expect("the root lives"))
            .expect("plain fields")
    }

    /// The state of one session, or null. An actor that is too busy to answer is asked again.
    pub async fn session(&self, slug: &str) -> Value {
        let answer = async || {
            let tree = self.tree().await;
            if let Some(sessions) = tree["sessionRegistry"]["state"]["sessions"].as_array() {
                match sessions.iter().find(|s| s["session"] == slug) {
                    None => return Ok(Value::Null),
                    Some(state) if state["children"].is_object() => return Ok(state.clone()),
                    Some(_) => {}
                }
            }
            Err(format!("{tree:#}"))
        };
        until("the session's actors answer", answer).await
    }

    /// Waits until the session's state satisfies the condition.
    pub async fn session_until(&self, slug: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let state = async || {
            let state = self.session(slug).await;
            if condition(&state) { Ok(state) } else { Err(format!("the session is {state:#}")) }
        };
        until(what, state).await
    }

    /// Texts of the finals that the database has of the newest session.
    pub async fn stored_finals(&self, slug: &str) -> Vec<String> {
        let slug = Slug::parse(slug).expect("a slug");
        let entries = self.app.stored_entries(&slug).await.expect("the database answers");
        let text = |entry| match entry {
            stenocast::transcript::Entry::Transcript(line) => Some(line.text),
            _ => None,
        };
        entries.into_iter().filter_map(text).collect()
    }

    /// Ends the session once its publisher's last byte was read; its last words are recognised first.
    pub async fn end(&self, slug: &str) {
        self.session_until(slug, "the publisher is gone", |s| s["children"]["rtmpConnection"].is_null()).await;
        let end = stenocast::actors::session_registry::EndSession {
            slug: Slug::parse(slug).expect("a slug"),
            reason: "test_over".into(),
            deadline: tokio::time::Instant::now() + DEADLINE,
        };
        assert!(self.app.root().send(end).await.expect("the root lives"), "there is a session {slug}");
    }

    pub async fn stop(self) -> tempfile::TempDir {
        let report = self.app.shutdown().await;
        assert!(report.is_released, "the data directory is still in use");
        self.dir
    }
}

/// A token that reads `slug`.
pub fn viewer_token(slug: &str) -> String {
    token(slug, false)
}

/// A token that also speaks for others in `slug`.
pub fn admin_token(slug: &str) -> String {
    token(slug, true)
}

fn token(slug: &str, is_admin: bool) -> String {
    let room = Slug::parse(slug).expect("a slug");
    token::mint(KEY.0, &Secret::new(KEY.1), "tester", None, &room, Duration::from_secs(3600), is_admin)
}
