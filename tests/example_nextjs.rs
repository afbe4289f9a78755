//! The example `examples/nextjs`: built from the registry, and its captions panel driven in Chromium.

mod support;

use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use stenocast::transcript::{Entry, Gap, GapReason, Speaker, Status};
use support::app::viewer_token;
use support::browser::Browser;
use support::chaos_proxy::ChaosProxy;
use support::http::{BROADCAST_TOKEN, KEY, SECRET, Speech, TestServer};
use support::nextjs::NextJs;
use support::server::Server;
use support::wait::until;

const LINES: &str = "[...document.querySelectorAll('.lines .line:not(.interim)')]";

/// The app, whose stenocast is here.
fn settings<'a>(stenocast: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let own = [("LIVEKIT_API_KEY", KEY), ("LIVEKIT_API_SECRET", SECRET), ("STENOCAST_URL", stenocast)];
    own.into_iter().chain(more.iter().copied()).collect()
}

/// A server that any page may ask: the app's port is not known before it runs.
fn server() -> TestServer {
    TestServer::with(&[("CORS_ORIGINS", "*"), ("ROOM_HISTORY", "5000")])
}

/// Joins a room as its readers do.
async fn join(browser: &mut Browser, app: &NextJs, room: &str, name: &str) {
    browser.act("goto", json!({"url": app.url})).await;
    fill(browser, room, name).await;
    browser.wait(&format!("location.pathname === '/rooms/{room}' && document.querySelector('.captions')")).await;
}

async fn fill(browser: &mut Browser, room: &str, name: &str) {
    browser.act("fill", json!({"selector": "input[name=room]", "text": room})).await;
    browser.act("fill", json!({"selector": "input[name=name]", "text": name})).await;
    browser.act("click", json!({"selector": "button[type=submit]"})).await;
}

async fn status(browser: &mut Browser, status: &str) {
    browser.wait(&format!("document.querySelector('.status')?.dataset.status === '{status}'")).await;
}

async fn lines(browser: &mut Browser, count: usize) {
    browser.wait(&format!("{LINES}.length === {count}")).await;
}

async fn texts(browser: &mut Browser) -> Vec<String> {
    let texts = browser.eval(&format!("{LINES}.map((line) => line.querySelector('.text').textContent)")).await;
    serde_json::from_value(texts).unwrap()
}

fn spoken(speech: &Speech, id: &str, seq: Option<u64>, who: Option<(&str, &str)>, text: &str) -> Entry {
    let Entry::Transcript(mut line) = speech.line(id, seq, text) else { unreachable!() };
    line.speaker = who.map(|(identity, name)| Speaker { identity: identity.into(), name: Some(name.into()) });
    Entry::Transcript(line)
}

fn say(speech: &Speech, who: Option<(&str, &str)>, text: &str) {
    let seq = speech.log.last_seq() + 1;
    speech.publish(spoken(speech, &format!("u{seq}"), Some(seq), who, text));
}

fn lose(speech: &Speech, ms: u64) {
    let seq = speech.log.last_seq() + 1;
    let (session, epoch, id) = (speech.log.slug().clone(), speech.epoch(), format!("g{seq}"));
    let reason = GapReason::SttUnavailable;
    speech.publish(Entry::Gap(Gap {
        session,
        epoch,
        seq: Some(seq),
        id,
        start_ms: 0,
        end_ms: ms,
        reason,
        durable: true,
    }));
}

/// Upgrades that the server has answered with 101.
fn upgrades(server: &TestServer) -> u64 {
    server.state.metrics.http_requests_total.with_label_values(&["/api/realtime/transcribe", "101"]).get()
}

#[actix::test]
async fn words_names_gaps_and_status_are_shown_once_and_in_order_over_cuts() {
    let server = server();
    let proxy = ChaosProxy::start(server.addr).await;
    let stenocast = format!("http://{}", proxy.addr);
    let app = NextJs::start(&settings(&stenocast, &[])).await;
    let mut browser = Browser::start();

    // A room that LiveKit would take, and we do not.
    browser.act("goto", json!({"url": app.url})).await;
    fill(&mut browser, "équipe du lundi", "Anna").await;
    browser.wait("document.querySelector('.problem').textContent.includes('Try “equipe-du-lundi”')").await;
    browser.is_accessible().await;
    browser.act("goto", json!({"url": format!("{}/rooms/my%20room", app.url)})).await;
    browser.wait("document.querySelector('.card a').getAttribute('href') === '/rooms/my-room'").await;

    join(&mut browser, &app, "weekly", "<b>Anna</b> & co").await;
    status(&mut browser, "waiting").await;
    let speech = server.begin("weekly");
    speech.status(Status::Live);
    status(&mut browser, "live").await;
    let anna = Some(("anna", "<b>Anna</b>"));
    speech.log.show_interim(&spoken(&speech, "u2", None, anna, "Good morn"));
    browser.wait("document.querySelector('.interim .text')?.textContent === 'Good morn'").await;
    assert_eq!(browser.eval("document.querySelector('.interim .name').textContent").await, "<b>Anna</b>");
    say(&speech, anna, "Good morning.");
    lines(&mut browser, 1).await;
    assert_eq!(browser.eval("document.querySelectorAll('.interim').length").await, 0, "its final has come");
    assert_eq!(browser.eval("document.querySelector('.line .name').textContent").await, "<b>Anna</b>");
    say(&speech, Some(("noor", "نور\u{202e}")), "مرحبا.");
    lose(&speech, 12_000);
    browser.wait("document.querySelector('.gap')?.textContent.startsWith('12 s without text')").await;
    assert_eq!(browser.eval("document.querySelectorAll('.line .name').length").await, 2, "a name at each turn");
    let directions = browser.eval(&format!("{LINES}.map((line) => getComputedStyle(line).direction)")).await;
    assert_eq!(directions, json!(["ltr", "rtl"]));
    let news = "[...document.querySelectorAll('[role=log] p')].map((p) => p.textContent)";
    browser.wait(&format!("{news}.length === 3")).await;
    assert_eq!(browser.eval(news).await[0], "<b>Anna</b>: Good morning.");
    browser.screenshot("nextjs").await;
    browser.is_accessible().await;
    browser.act("scheme", json!({"scheme": "dark"})).await;
    browser.is_accessible().await;

    // The line breaks, and once more for a while; what is said meanwhile comes later, once.
    proxy.cut();
    say(&speech, anna, "You were cut off.");
    lines(&mut browser, 3).await;
    proxy.break_off();
    status(&mut browser, "reconnecting").await;
    say(&speech, None, "Somebody said this meanwhile.");
    proxy.restore();
    lines(&mut browser, 4).await;
    status(&mut browser, "live").await;
    let said = ["Good morning.", "مرحبا.", "You were cut off.", "Somebody said this meanwhile."];
    assert_eq!(texts(&mut browser).await, said);

    // However long it lasts, the page stays small, and at its end.
    for n in 1..=1500 {
        say(&speech, None, &format!("line {n}"));
    }
    browser.wait(&format!("{LINES}.at(-1).querySelector('.text').textContent === 'line 1500'")).await;
    let blocks = browser.eval("document.querySelectorAll('.lines > p').length").await.as_u64().unwrap();
    assert!(blocks <= 400, "{blocks}");
    let at_end = "(() => { const l = document.querySelector('.lines'); \
                  return l.scrollTop > 500 && l.scrollHeight - l.scrollTop - l.clientHeight < 2; })()";
    browser.wait(at_end).await;
    browser.eval("document.querySelector('.lines').scrollTop = 100").await;
    browser.wait("document.querySelector('.to-end')").await;
    say(&speech, None, "This is not read yet.");
    browser.wait(&format!("{LINES}.at(-1).querySelector('.text').textContent === 'This is not read yet.'")).await;
    assert_eq!(browser.eval(at_end).await, false);
    browser.act("click", json!({"selector": ".to-end"})).await;
    browser.wait(at_end).await;
    browser.act("size", json!({"width": 390, "height": 780})).await;
    browser.wait(at_end).await;
    assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true);
    speech.end();
    status(&mut browser, "ended").await;
    browser.no_problems().await;
    server.stop().await;
}

/// React's strict mode connects, leaves and connects again; a page that differs from what the server has made is said.
#[actix::test]
async fn a_page_in_development_is_one_viewer() {
    let server = server();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let stenocast = server.url("");
    let app = NextJs::develop(&settings(&stenocast, &[])).await;
    let mut browser = Browser::start();
    join(&mut browser, &app, "demo", "Anna").await;
    status(&mut browser, "live").await;
    say(&speech, None, "Once.");
    lines(&mut browser, 1).await;
    until("one viewer", async || server.state.viewers.len() == 1).await;
    // The name is this tab's: the server makes the page without it.
    browser.act("goto", json!({"url": format!("{}/rooms/demo", app.url)})).await;
    lines(&mut browser, 1).await;
    until("one viewer", async || server.state.viewers.len() == 1).await;
    browser.no_problems().await;
    server.stop().await;
}

#[actix::test]
async fn a_token_is_renewed_before_it_ends_and_the_connection_stays() {
    let server = server();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let stenocast = server.url("");
    let app = NextJs::start(&settings(&stenocast, &[("TOKEN_TTL_S", "15")])).await;
    let mut browser = Browser::start();
    join(&mut browser, &app, "demo", "Anna").await;
    status(&mut browser, "live").await;
    // The third token is asked for after the first has ended.
    let asked = "performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('/api/token')).length";
    browser.wait(&format!("{asked} >= 3")).await;
    say(&speech, None, "Still here.");
    lines(&mut browser, 1).await;
    assert_eq!((upgrades(&server), server.state.metrics.ws_bad_messages_total.get()), (1, 0));
    // Nobody gives a token any more: the server's word is shown, and what was said stays.
    drop(app);
    status(&mut browser, "reconnecting").await;
    assert_eq!(texts(&mut browser).await, ["Still here."]);
    server.stop().await;
}

/// What one asks the app's server for a token, as its page does.
async fn ask(app: &NextJs, bearer: Option<&str>, body: Value) -> (u16, Value) {
    let mut request = awc::Client::default().post(format!("{}/api/token", app.url)).timeout(support::wait::DEADLINE);
    if let Some(token) = bearer {
        request = request.bearer_auth(token);
    }
    let mut response = request.send_json(&body).await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[actix::test]
async fn the_token_route_says_what_is_allowed_and_keeps_an_identity() {
    let server = server();
    let stenocast = server.url("");
    let app = NextJs::start(&settings(&stenocast, &[("TOKEN_TTL_S", "60")])).await;
    for (body, part) in [
        (json!({"room": "my room", "name": "Anna"}), "Letters"),
        (json!({"room": "..", "name": "Anna"}), "room"),
        (json!({"room": 7, "name": "Anna"}), "room"),
        (json!(null), "room"),
        (json!({"room": "demo", "name": "  "}), "1 to 60"),
        (json!({"room": "demo", "name": "x".repeat(61)}), "1 to 60"),
    ] {
        let (status, answer) = ask(&app, None, body.clone()).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(status == 400 && error.contains(part), "{body}: {status} {answer}");
    }
    let (status, answer) = ask(&app, None, json!({"room": "demo", "name": "Anna"})).await;
    assert_eq!((status, &answer["stenocastUrl"]), (200, &json!(stenocast)));
    assert!(!answer.to_string().contains(SECRET) && !answer.to_string().contains(KEY), "{answer}");
    let first = answer["token"].as_str().unwrap();
    let claims = |token: &str| server.state.keys.verify(token).unwrap();
    let (status, answer) = ask(&app, Some(first), json!({"room": "other", "name": "Ben"})).await;
    let (old, new) = (claims(first), claims(answer["token"].as_str().unwrap()));
    assert_eq!((status, &old.sub, &old.video.room), (200, &new.sub, &new.video.room));
    for stranger in ["nonsense", &viewer_token("demo")] {
        let (status, answer) = ask(&app, Some(stranger), json!({})).await;
        assert_eq!(status, 401, "{answer}");
    }
    let (_, again) = ask(&app, None, json!({"room": "demo", "name": "Anna"})).await;
    assert_ne!(claims(again["token"].as_str().unwrap()).sub, old.sub, "two tabs are two participants");
    server.stop().await;
}

#[actix::test]
async fn captions_go_on_although_livekit_cannot_be_reached() {
    let server = server();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let stenocast = server.url("");
    // Nothing listens at the discard port.
    let app = NextJs::start(&settings(&stenocast, &[("LIVEKIT_URL", "ws://127.0.0.1:9")])).await;
    let mut browser = Browser::start();
    join(&mut browser, &app, "demo", "Anna").await;
    let problem = "document.querySelector('.problem')?.textContent ?? ''";
    browser.wait(&format!("({problem}).includes('cannot be reached') && ({problem}).includes('captions go on')")).await;
    say(&speech, None, "Captions come.");
    lines(&mut browser, 1).await;
    browser.is_accessible().await;
    browser.act("click", json!({"selector": ".problem button"})).await;
    browser.wait(&format!("({problem}).includes('cannot be reached')")).await;
    assert_eq!(texts(&mut browser).await, ["Captions come."]);
    server.stop().await;
}

async fn post(http: SocketAddr, line: &str) {
    let transcript = json!({"id": line, "text": line, "isFinal": true, "startMs": 0, "endMs": 900,
        "speaker": {"identity": "anna", "name": "Anna"}});
    let url = format!("http://{http}/api/realtime/transcribe/broadcast");
    let post = awc::Client::default().post(url).bearer_auth(BROADCAST_TOKEN);
    let answer = post.send_json(&json!({"session": "demo", "transcript": transcript})).await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
}

#[actix::test]
async fn each_line_comes_once_although_the_server_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |dir: &Path, port: &str| {
        let settings = [
            ("BROADCAST_TOKEN", BROADCAST_TOKEN),
            ("GLADIA_API_URL", "http://127.0.0.1:9"),
            ("CORS_ORIGINS", "*"),
            ("LIVEKIT_API_KEY", KEY),
            ("LIVEKIT_API_SECRET", SECRET),
            ("PORT", port),
        ];
        Server::start(dir, &settings).await
    };
    let server = start(dir.path(), "0").await;
    let http = server.http;
    let stenocast = format!("http://{http}");
    let app = NextJs::start(&settings(&stenocast, &[])).await;
    let mut browser = Browser::start();
    join(&mut browser, &app, "demo", "Ben").await;
    for (n, line) in ["One.", "Two."].into_iter().enumerate() {
        post(http, line).await;
        lines(&mut browser, n + 1).await;
    }
    server.signal(Signal::SIGKILL);
    server.end().await;
    status(&mut browser, "reconnecting").await;
    let server = start(dir.path(), &http.port().to_string()).await;
    post(http, "Three.").await;
    lines(&mut browser, 3).await;
    post(http, "Four.").await;
    lines(&mut browser, 4).await;
    assert_eq!(texts(&mut browser).await, ["One.", "Two.", "Three.", "Four."]);
    browser.no_problems().await;
    drop(server);
}
