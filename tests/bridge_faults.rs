//! The real `GladiaBridge` on a real session core against a recogniser that misbehaves on real sockets. Whatever
//! happens, the text is that of the undisturbed run: nothing lost, nothing twice, in order.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use serde_json::Value;
use stenocast::actors::Crash;
use stenocast::actors::Shutdown;
use stenocast::actors::gladia_bridge::{BridgeParams, Finish, GladiaBridge};
use stenocast::actors::session_core::SessionCore;
use stenocast::actors::supervision::Observe;
use stenocast::actors::supervision::{ChildDown, ChildKind, Exit, Lifeline};
use stenocast::audio::PcmChunk;
use stenocast::config::{Config, Secret};
use stenocast::gladia::endpoint::SttEndpoint;
use stenocast::gladia::policy::Timing;
use stenocast::metrics::Metrics;
use stenocast::transcript::{GapReason, Slug, TranscriptEvent};
use support::marked_speech::{BYTES_PER_MS, Script, word_text};
use support::parent::Parent;
use support::recogniser::{Mishap, Recogniser, TOKEN};
use support::wait::DEADLINE;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

const CHUNK_MS: u64 = 100;
const KEY: &str = "key-s3cret";

/// Time spans are a tenth of the real ones, delays between attempts a hundredth. Not so the spans after which a peer is
/// given up: the machine may be busy.
fn timing() -> Timing {
    let [ack_timeout, stop_timeout, connect_timeout] = [2, 5, 10].map(Duration::from_secs);
    Timing { delay_percent: 1, ack_timeout, stop_timeout, connect_timeout, ..Timing::scaled(10) }
}

/// A session with its bridge, and a room that takes everything.
struct Rig {
    core: Arc<SessionCore>,
    bridge: Addr<GladiaBridge>,
    downs: mpsc::UnboundedReceiver<ChildDown>,
    parent: Addr<Parent>,
    endpoint: watch::Sender<Option<String>>,
    slots: Arc<Semaphore>,
    server: Recogniser,
    generation: u64,
    script: Script,
    pushed_ms: u64,
    /// Silence at the end of what is said, so that the recogniser closes the last utterance by itself.
    rest_ms: u64,
    items: Arc<parking_lot::Mutex<Vec<TranscriptEvent>>>,
    _data: tempfile::TempDir,
}

impl Rig {
    async fn new(configure: impl FnOnce(&mut Config)) -> Self {
        Self::with_slots(configure, 4).await
    }

    async fn with_slots(configure: impl FnOnce(&mut Config), slots: usize) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::load(&HashMap::new(), true).unwrap();
        config.server.data_dir = data.path().to_owned();
        configure(&mut config);
        let metrics = Arc::new(Metrics::new());
        let core = Arc::new(SessionCore::new(Slug::parse("demo").unwrap(), Arc::new(config), metrics));
        let server = Recogniser::start().await;
        let (endpoint, base_url) = watch::channel(Some(server.base_url.clone()));
        let (parent, downs) = Parent::start();
        let slots = Arc::new(Semaphore::new(slots));
        let endpoint_of = SttEndpoint { base_url, api_key: Some(Secret::new(KEY)) };
        let bridge = start(&core, &endpoint_of, &slots, &parent, 1);
        let items = Arc::new(parking_lot::Mutex::new(Vec::new()));
        actix::spawn(room(core.clone(), items.clone()));
        let script = Script::default();
        Self {
            core,
            bridge,
            downs,
            parent,
            endpoint,
            slots,
            server,
            generation: 1,
            script,
            pushed_ms: 0,
            rest_ms: 600,
            items,
            _data: data,
        }
    }

    /// Says some utterances: a chunk each millisecond, so that the bridge sends them one by one.
    async fn speak(&mut self, utterances: u64) {
        for n in 0..utterances {
            self.script.say(500 + n * 13 % 200, 2 + n % 4, 40);
        }
        let length_ms = self.script.length_ms + self.rest_ms;
        self.script.rest(self.rest_ms + (CHUNK_MS - length_ms % CHUNK_MS) % CHUNK_MS);
        let pcm = self.script.pcm();
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        while self.pushed_ms < self.script.length_ms {
            pace.tick().await;
            let at = (self.pushed_ms * BYTES_PER_MS) as usize;
            let piece = &pcm[at..at + (CHUNK_MS * BYTES_PER_MS) as usize];
            self.core.push_pcm(PcmChunk {
                pcm: Bytes::copy_from_slice(piece),
                start_ms: self.pushed_ms,
                inserted: false,
                arrived: Instant::now(),
            });
            self.pushed_ms += CHUNK_MS;
        }
    }

    /// Stops the bridge by its deadline and waits for the room.
    async fn finish(&self) {
        let finish = Finish { deadline: Instant::now() + DEADLINE };
        tokio::time::timeout(DEADLINE, self.bridge.send(finish)).await.expect("it finishes").unwrap();
        self.until("the room has everything", |rig| rig.core.results.is_empty()).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let answer = async || if is_so(self) { Ok(()) } else { Err(format!("{:?}", self.items.lock())) };
        support::wait::until(what, answer).await;
    }

    async fn observe(&self) -> Value {
        serde_json::to_value(self.bridge.send(Observe::default()).await.unwrap()).unwrap()
    }

    fn words(&self) -> Vec<String> {
        let items = self.items.lock();
        let finals =
            items.iter().filter_map(|i| if let TranscriptEvent::Final(u) = i { Some(u.text.clone()) } else { None });
        finals.flat_map(|t| t.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn statuses(&self) -> Vec<String> {
        let items = self.items.lock();
        let told = items.iter().filter_map(|i| match i {
            TranscriptEvent::Status { status, reason, .. } => {
                Some(format!("{}:{}", status.as_str(), reason.clone().unwrap_or_default()))
            }
            _ => None,
        });
        told.collect()
    }

    fn gaps(&self) -> Vec<(u64, u64, GapReason)> {
        let items = self.items.lock();
        let gaps = items.iter().filter_map(|i| match i {
            TranscriptEvent::Gap { start_ms, end_ms, reason, .. } => Some((*start_ms, *end_ms, *reason)),
            _ => None,
        });
        gaps.collect()
    }

    /// Promise 1.
    fn assert_nothing_lost(&self) {
        let expected: Vec<_> = (0..self.script.words.len() as u64).map(word_text).collect();
        assert_eq!(self.words(), expected);
        assert_eq!(self.gaps(), []);
        let account = self.core.ledger().account();
        assert_eq!((account.lost_ms, account.in_flight_ms), (0, 0), "{account:?}");
        assert_eq!((account.received_ms, account.acknowledged_ms), (self.pushed_ms, self.pushed_ms));
        assert!(account.coverage > 0.95, "{account:?}");
    }

    fn mishaps(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.server.book.lock().mishaps.extend(mishaps);
    }

    fn sessions(&self) -> usize {
        self.server.book.lock().sessions.len()
    }

    fn restart_bridge(&mut self) {
        self.generation += 1;
        let endpoint = SttEndpoint { base_url: self.endpoint.subscribe(), api_key: Some(Secret::new(KEY)) };
        self.bridge = start(&self.core, &endpoint, &self.slots, &self.parent, self.generation);
    }
}

fn start(
    core: &Arc<SessionCore>,
    endpoint: &SttEndpoint,
    slots: &Arc<Semaphore>,
    parent: &Addr<Parent>,
    generation: u64,
) -> Addr<GladiaBridge> {
    let lifeline = Lifeline::new(parent.clone().recipient(), ChildKind::GladiaBridge, generation, core.metrics.clone());
    let params = BridgeParams { core: core.clone(), endpoint: endpoint.clone(), slots: slots.clone(), lifeline };
    GladiaBridge::start_with(params, timing())
}

async fn room(core: Arc<SessionCore>, items: Arc<parking_lot::Mutex<Vec<TranscriptEvent>>>) {
    loop {
        let item = core.results.peek(0).await;
        if let TranscriptEvent::Final(utterance) = &item {
            core.ledger().published(&utterance.id);
        }
        items.lock().push(item);
        core.results.pop();
    }
}

/// Ten utterances with the given mishaps on the first connections.
async fn run_with(mishaps: impl IntoIterator<Item = Mishap>) -> Rig {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps(mishaps);
    rig.speak(10).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    rig
}

const SOME: u64 = 150_000;

#[actix::test]
async fn an_undisturbed_run_needs_one_session_and_one_connection() {
    let rig = run_with([]).await;
    let book = rig.server.book.lock();
    assert_eq!((book.sessions.len(), book.sessions[0].connections, book.sessions[0].stops), (1, 1, 1));
    assert_eq!(book.keys, [Some(KEY.to_owned())]);
    assert_eq!(book.requests[0]["sample_rate"], 16000);
    // The test is a hundred times faster than speech, so a busy machine may have to catch up.
    let told = rig.statuses();
    assert!(told.iter().all(|s| s.starts_with("live:") || s.starts_with("catching_up:")), "{told:?}");
    assert_eq!(rig.core.metrics.stt_messages_ignored_total.get(), 1);
}

#[actix::test]
async fn a_reset_with_unacknowledged_audio_is_resumed_on_the_same_url() {
    let resets = [(SOME, 9600), (SOME, 6400)].map(|(after, unheard)| Mishap::Reset { after, unheard });
    let rig = run_with(resets).await;
    let book = rig.server.book.lock();
    assert!(book.sessions[0].connections >= 2);
    // A reset may take a final with it that was on its way; then a new session hears that speech again.
    let heard = book.sessions[0].ear.heard;
    assert!(book.sessions.len() > 1 || heard == rig.pushed_ms * BYTES_PER_MS, "{heard}");
}

#[actix::test]
async fn audio_heard_twice_after_lost_acknowledgements_is_said_once() {
    for uncounted in [3200, 9600, 48_000] {
        let rig = run_with([Mishap::LostAcks { after: SOME, uncounted }]).await;
        let book = rig.server.book.lock();
        let heard: u64 = book.sessions.iter().map(|session| session.ear.heard).sum();
        assert!(heard > rig.pushed_ms * BYTES_PER_MS, "the mishap did not happen");
    }
}

#[actix::test]
async fn a_connection_that_hangs_is_noticed_and_resumed() {
    let rig = run_with([Mishap::Hang { after: SOME }]).await;
    assert!(rig.server.book.lock().sessions[0].connections >= 2);
    let fault = rig.core.metrics.stt_faults_total.with_label_values(&["no_acknowledgement"]).get();
    assert_eq!(fault, 1);
}

#[actix::test]
async fn a_final_close_code_begins_a_new_session_with_replay() {
    for code in [1000, 1001, 4400, 4403, 4499] {
        let rig = run_with([Mishap::Close { after: SOME, code }]).await;
        assert_eq!(rig.sessions(), 2, "{code}");
    }
    for code in [1011, 1012, 4500] {
        let rig = run_with([Mishap::Close { after: SOME, code }]).await;
        assert_eq!(rig.sessions(), 1, "{code}");
    }
}

#[actix::test]
async fn a_session_that_is_gone_at_the_resume_is_replaced() {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps([Mishap::Reset { after: SOME, unheard: 3200 }]);
    rig.server.book.lock().upgrades.extend([101, 403]);
    rig.speak(10).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.sessions(), 2);
}

#[actix::test]
async fn a_forgetful_recogniser_hears_the_forgotten_again() {
    let rig = run_with([Mishap::Amnesia { after: SOME }, Mishap::Amnesia { after: SOME / 2 }]).await;
    assert!(rig.sessions() >= 2, "what was forgotten is heard by another session");
}

#[actix::test]
async fn refused_posts_are_waited_out() {
    let plans: [&[(u16, Option<u64>)]; 3] = [
        &[(429, None), (429, Some(0)), (429, None), (429, None), (429, None), (429, None)],
        &[(503, None), (500, None), (502, None)],
        &[(402, None), (402, None)],
    ];
    for plan in plans {
        let mut rig = Rig::new(|_| {}).await;
        rig.server.book.lock().posts.extend(plan);
        rig.speak(4).await;
        rig.finish().await;
        rig.assert_nothing_lost();
        let book = rig.server.book.lock();
        assert_eq!((book.refused_posts, book.sessions.len()), (plan.len(), 1));
    }
}

#[actix::test]
async fn viewers_are_told_why_there_is_no_text_and_that_it_is_back() {
    let mut rig = Rig::new(|_| {}).await;
    rig.server.book.lock().posts.extend([(402, None), (402, None), (402, None)]);
    // The bridge speaks of the connection only while audio flows.
    rig.speak(10).await;
    while !rig.statuses().iter().any(|s| s.starts_with("live") || s.starts_with("catching_up")) {
        rig.speak(1).await;
    }
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.statuses()[0], "degraded:payment_required");
}

#[actix::test]
async fn finals_that_come_twice_or_late_are_published_once_in_order() {
    for (twice, swapped) in [(true, false), (false, true), (true, true)] {
        let mut rig = Rig::new(|_| {}).await;
        (rig.server.book.lock().twice, rig.server.book.lock().swapped) = (twice, swapped);
        rig.speak(10).await;
        rig.finish().await;
        rig.assert_nothing_lost();
        assert_eq!(rig.sessions(), 1);
    }
}

#[actix::test]
async fn sessions_are_replaced_before_the_recogniser_ends_them() {
    let mut rig = Rig::new(|c| c.stt.session_max = Duration::from_millis(150)).await;
    while rig.sessions() < 3 {
        rig.speak(1).await;
    }
    rig.finish().await;
    rig.assert_nothing_lost();
    let book = rig.server.book.lock();
    assert!(book.sessions.iter().all(|s| s.stops == 1 && s.is_over));
    assert!(!rig.statuses().iter().any(|s| s.starts_with("reconnecting")), "{:?}", rig.statuses());
}

#[actix::test]
async fn a_stop_that_is_lost_with_its_connection_is_sent_again() {
    let rig = run_with([Mishap::LoseStop]).await;
    let book = rig.server.book.lock();
    assert_eq!((book.sessions.len(), book.sessions[0].stops), (1, 2));
}

#[actix::test]
async fn a_session_that_is_gone_at_the_stop_is_heard_again_if_it_owes_text() {
    for (rest_ms, sessions) in [(600, 1), (0, 2)] {
        let mut rig = Rig::new(|_| {}).await;
        rig.rest_ms = rest_ms;
        rig.mishaps([Mishap::LoseStop]);
        rig.server.book.lock().upgrades.extend([101, 403]);
        rig.speak(10).await;
        rig.finish().await;
        rig.assert_nothing_lost();
        assert_eq!(rig.sessions(), sessions);
    }
}

#[actix::test]
async fn a_silent_recogniser_is_shown_as_stalled_and_replaced() {
    let mut rig = Rig::new(|c| c.stt.stall = Duration::from_millis(1000)).await;
    rig.mishaps([Mishap::Mute { after: SOME }]);
    rig.speak(10).await;
    rig.until("a stall is shown", |r| r.statuses().iter().any(|s| s == "stalled:stt_stalled")).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.sessions(), 2);
    assert_eq!(rig.core.metrics.stt_stalls_total.get(), 1);
}

#[actix::test]
async fn a_session_that_ends_without_the_text_it_owes_is_heard_again_by_another() {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps([Mishap::Mute { after: SOME }]);
    rig.speak(10).await;
    // Long before a stall would be noticed.
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.sessions(), 2);
    assert_eq!(rig.core.metrics.stt_stalls_total.get(), 0);
}

#[actix::test]
async fn a_recogniser_that_ends_sessions_properly_and_says_nothing_is_never_believed_about_much() {
    let mut rig = Rig::new(|c| c.stt.stall = Duration::from_millis(1000)).await;
    rig.mishaps([Mishap::Mute { after: 0 }, Mishap::Mute { after: 0 }, Mishap::Mute { after: 0 }]);
    rig.speak(10).await;
    rig.until("three sessions have said nothing", |r| r.sessions() >= 4).await;
    rig.finish().await;
    rig.assert_nothing_lost();
}

#[actix::test]
async fn what_two_sessions_say_nothing_about_at_the_end_is_a_gap() {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps([Mishap::Mute { after: 0 }, Mishap::Mute { after: 0 }]);
    rig.speak(10).await;
    rig.finish().await;
    let gaps = rig.gaps().len();
    assert!(gaps > 0 && rig.core.ledger().account().lost_ms > 0);
    assert_eq!(rig.sessions(), 2);
}

#[actix::test]
async fn a_bridge_that_panics_is_followed_by_one_that_resumes() {
    let mut rig = Rig::new(|_| {}).await;
    for generation in 1..=3 {
        rig.speak(3).await;
        rig.until("all text is there", |r| r.words().len() == r.script.words.len()).await;
        rig.until("all is acknowledged", |r| !r.core.ledger().has_work()).await;
        rig.bridge.do_send(Crash);
        let down = rig.downs.recv().await.unwrap();
        assert_eq!((down.generation, down.exit), (generation, Exit::Panicked));
        rig.speak(2).await;
        rig.restart_bridge();
    }
    rig.speak(2).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    let book = rig.server.book.lock();
    assert_eq!((book.sessions.len(), book.sessions[0].connections), (1, 4));
    assert_eq!(rig.core.metrics.stt_sessions.get(), 0);
}

#[actix::test]
async fn a_panic_in_the_middle_of_everything_loses_nothing() {
    let mut rig = Rig::new(|_| {}).await;
    for _ in 0..4 {
        rig.speak(2).await;
        rig.bridge.do_send(Crash);
        assert_eq!(rig.downs.recv().await.unwrap().exit, Exit::Panicked);
        rig.restart_bridge();
    }
    rig.finish().await;
    rig.assert_nothing_lost();
}

#[actix::test]
async fn without_a_slot_or_an_address_it_waits_and_says_so() {
    let mut rig = Rig::with_slots(|_| {}, 0).await;
    rig.endpoint.send_replace(None);
    rig.speak(3).await;
    assert_eq!(rig.observe().await["state"], "awaiting_endpoint");
    rig.endpoint.send_replace(Some(rig.server.base_url.clone()));
    while !rig.statuses().iter().any(|s| s == "degraded:waiting_for_slot") {
        rig.speak(1).await;
    }
    assert_eq!(rig.observe().await["state"], "awaiting_slot");
    rig.slots.add_permits(1);
    rig.speak(1).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.slots.available_permits(), 1);
}

#[actix::test]
async fn a_recogniser_that_moves_is_found_again() {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps([Mishap::Hang { after: SOME }]);
    rig.speak(5).await;
    let old = std::mem::replace(&mut rig.server, Recogniser::start().await);
    old.book.lock().upgrades.extend([503; 100]);
    rig.endpoint.send_replace(Some(rig.server.base_url.clone()));
    rig.speak(5).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    assert_eq!(rig.sessions(), 1);
}

#[actix::test]
async fn audio_beyond_the_replay_window_is_a_counted_and_announced_gap() {
    let mut rig = Rig::new(|c| c.stt.replay_window = Duration::from_secs(5)).await;
    rig.endpoint.send_replace(None);
    rig.speak(8).await;
    // And a tenth of the window, so that the connection stands clear of its edge.
    let lost_ms = rig.pushed_ms - 4500;
    rig.endpoint.send_replace(Some(rig.server.base_url.clone()));
    rig.finish().await;
    // One, unless the machine stood still for longer than a loss is waited for to end.
    let gaps = rig.gaps();
    assert!(gaps.iter().all(|gap| gap.2 == GapReason::SttUnavailable), "{gaps:?}");
    let edges: Vec<u64> = gaps.iter().flat_map(|gap| [gap.0, gap.1]).collect();
    assert_eq!((edges[0], edges[edges.len() - 1]), (0, lost_ms), "{gaps:?}");
    assert!(edges[1..edges.len() - 1].chunks(2).all(|seam| seam[0] == seam[1]), "{gaps:?}");
    let account = rig.core.ledger().account();
    assert_eq!((account.lost_ms, account.acknowledged_ms, account.received_ms), (lost_ms, 4500, rig.pushed_ms));
    let last = word_text(rig.script.words.len() as u64 - 1);
    assert_eq!(rig.words().last(), Some(&last));
}

#[actix::test]
async fn what_the_deadline_cuts_off_is_a_gap() {
    let mut rig = Rig::new(|_| {}).await;
    rig.endpoint.send_replace(None);
    rig.speak(3).await;
    rig.bridge.send(Finish { deadline: Instant::now() }).await.unwrap();
    rig.until("the room has everything", |r| r.core.results.is_empty()).await;
    assert_eq!(rig.gaps(), [(0, rig.pushed_ms, GapReason::SttUnavailable)]);
    assert_eq!(rig.core.ledger().account().lost_ms, rig.pushed_ms);
}

#[actix::test]
async fn a_quiet_session_is_kept_alive_and_ends_at_once() {
    let mut rig = Rig::new(|_| {}).await;
    rig.speak(2).await;
    rig.until("keep-alives", |r| r.server.book.lock().keep_alives >= 2).await;
    rig.finish().await;
    rig.assert_nothing_lost();
    rig.bridge.send(Shutdown).await.unwrap();
    assert_eq!(rig.downs.recv().await.unwrap().exit, Exit::Normal);
}

#[actix::test]
async fn a_long_backlog_is_sent_in_frames_that_the_recogniser_takes() {
    let mut rig = Rig::new(|_| {}).await;
    rig.endpoint.send_replace(None);
    rig.speak(30).await;
    rig.endpoint.send_replace(Some(rig.server.base_url.clone()));
    rig.finish().await;
    rig.assert_nothing_lost();
    let largest = rig.server.book.lock().largest_frame;
    assert!(largest > 3200 && largest <= 512 * 1024, "{largest}");
}

#[actix::test]
async fn what_is_observed_holds_no_secret() {
    let mut rig = Rig::new(|_| {}).await;
    rig.mishaps([Mishap::Close { after: SOME, code: 4401 }]);
    while rig.sessions() < 2 {
        rig.speak(1).await;
    }
    rig.until("all is sent", |r| !r.core.ledger().has_work()).await;
    let seen = rig.observe().await;
    assert_eq!((&seen["state"], &seen["sttSession"]), (&"streaming".into(), &"session-1".into()));
    assert!(seen["tally"]["lastFault"].as_str().unwrap().contains("4401"));
    assert_eq!(seen["audio"]["lostMs"], 0);
    let text = seen.to_string();
    assert!(!text.contains(TOKEN) && !text.contains(KEY), "{text}");
}
