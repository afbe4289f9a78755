//! `followLiveKit` of the client module: who speaks in a LiveKit call reaches the server, and nobody for longer.

mod support;

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use stenocast::transcript::{SpeakerSource, SpeakerUpdate};
use support::browser::Browser;
use support::http::{TestServer, token};
use support::js_client::JsClient;
use support::nextjs::NextJs;
use support::wait::until;

/// What the server was told of a room's speakers.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<SpeakerUpdate>>>);

impl Heard {
    fn of(server: &TestServer) -> Self {
        let heard = Self::default();
        let sink = heard.0.clone();
        server.room("demo").set_speaker_sink(Some(Arc::new(move |update| sink.lock().push(update))));
        heard
    }

    /// Waits for an update, takes everything up to it, and gives it.
    async fn next(&self, what: &str, is_it: impl Fn(&SpeakerUpdate) -> bool) -> SpeakerUpdate {
        until(what, async || {
            let mut heard = self.0.lock();
            match heard.iter().position(&is_it) {
                Some(at) => Ok(heard.drain(..=at).next_back().unwrap()),
                None => Err(format!("{heard:?}")),
            }
        })
        .await
    }

    async fn speaks(&self) -> SpeakerUpdate {
        let update = self.next("anna speaks", |update| update.identity == "anna" && update.active).await;
        assert_eq!(update.source, SpeakerSource::Viewer("anna".into()));
        update
    }

    async fn is_silent(&self) {
        self.next("anna is silent", |update| update.identity == "anna" && !update.active).await;
    }

    /// Waits for a report of this level, and so for everything that was sent before: nobody was said to speak.
    async fn nothing_before(&self, mark: f32) {
        until("the mark", async || self.0.lock().iter().any(|update| update.level == mark)).await;
        let heard = std::mem::take(&mut *self.0.lock());
        assert!(heard.iter().all(|update| !update.active || update.level == mark), "{heard:?}");
    }
}

#[actix::test]
async fn a_room_of_livekit_client_is_followed() {
    let server = TestServer::start();
    server.begin("demo");
    let heard = Heard::of(&server);
    let livekit = NextJs::livekit_client().await;
    let options = json!({"session": "demo", "token": token("demo"), "url": server.url("")});
    let mut anna = JsClient::in_a_call(&livekit, &options);
    let speak = |level: f64| json!({"command": "speak", "level": level});
    let call = |state: &str| json!({"command": "call", "state": state});
    let mark = |level: f32| json!({"command": "report", "level": level});

    // The name is the token's; one that the server would refuse is not sent.
    anna.order(json!({"command": "name", "name": "ä".repeat(200)})).await;
    anna.order(call("connected")).await;
    anna.order(json!({"command": "connect"})).await;
    anna.state("open").await;
    anna.order(speak(0.5)).await;
    let first = heard.speaks().await;
    assert_eq!((first.level, first.name.as_deref()), (0.5, Some("Anna")));
    // Again and again, since the server forgets it after two seconds; absurd levels are trimmed.
    anna.order(speak(7.0)).await;
    assert_eq!(heard.speaks().await.level, 1.0);
    heard.speaks().await;
    anna.order(speak(0.0)).await;
    heard.is_silent().await;
    anna.order(mark(0.0625)).await;
    heard.nothing_before(0.0625).await;

    // While the call is lost nobody knows; what is left of before does not count afterwards.
    anna.order(speak(0.25)).await;
    heard.speaks().await;
    anna.order(call("reconnecting")).await;
    heard.is_silent().await;
    anna.order(call("connected")).await;
    anna.order(speak(0.25)).await;
    anna.order(mark(0.03125)).await;
    heard.nothing_before(0.03125).await;
    anna.order(speak(0.375)).await;
    heard.speaks().await;

    // A new connection to stenocast knows at once who speaks.
    server.state.viewers.cut_all();
    anna.state("reconnecting").await;
    heard.0.lock().clear();
    anna.state("open").await;
    heard.speaks().await;
    anna.order(json!({"command": "close"})).await;
    heard.is_silent().await;
    anna.order(json!({"command": "listeners"})).await;
    assert_eq!(anna.until("listeners", |_| true).await["count"], 0);
    assert_eq!(server.state.metrics.ws_bad_messages_total.get(), 0);
    server.stop().await;
}

#[actix::test]
async fn a_browser_reports_its_own_participant() {
    let server = TestServer::start();
    server.begin("demo");
    let heard = Heard::of(&server);
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": server.url("/favicon.svg")})).await;
    let follow = |token: String| {
        format!(
            "import('/stenocast.js').then(({{ Stenocast }}) => {{
                globalThis.microphone = {{ isMuted: false }};
                const me = {{ identity: 'anna', isSpeaking: false, audioLevel: 0, getTrackPublication: () => microphone }};
                const listeners = new Set();
                globalThis.room = {{ state: 'connected', localParticipant: me,
                    on: (_, listener) => listeners.add(listener), off: (_, listener) => listeners.delete(listener) }};
                globalThis.speak = (level) => {{
                    Object.assign(me, {{ isSpeaking: level > 0, audioLevel: level }});
                    listeners.forEach((listener) => listener());
                    return listeners.size;
                }};
                globalThis.captions = new Stenocast({{ session: 'demo', token: '{token}' }});
                captions.connect();
                captions.followLiveKit(room);
                return new Promise((done) => captions.addEventListener('hello', () => done()));
            }})"
        )
    };
    browser.eval(&follow(token("demo"))).await;
    browser.eval("speak(0.5)").await;
    for _ in 0..3 {
        heard.speaks().await;
    }
    assert_eq!(browser.eval("captions.followLiveKit(room), speak(0.5)").await, json!(1), "followed once");
    heard.speaks().await;
    // Muted while speaking: LiveKit may never say that it is over.
    browser.eval("microphone.isMuted = true, speak(0.5)").await;
    heard.is_silent().await;
    browser.eval("microphone.isMuted = false, speak(0.25)").await;
    heard.speaks().await;
    browser.eval("room.state = 'disconnected', speak(0.5)").await;
    heard.is_silent().await;
    browser.eval("room.state = 'connected', speak(0.75)").await;
    heard.speaks().await;
    browser.eval("captions.close()").await;
    heard.is_silent().await;
    assert_eq!(browser.eval("speak(1)").await, Value::from(0));
    browser.no_problems().await;
    server.stop().await;
}
