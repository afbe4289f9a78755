//! Right-to-left lines that ended up with their full stop on the wrong side, grey on grey, screen readers that read out an
//! hour of history, words that stayed on the page although they were never said.

use serde_json::{Value, json};
use stenocast::transcript::{Entry, Gap, GapReason, Speaker, Status};

use crate::support::browser::Browser;
use crate::support::http::{Speech, TestServer, token};

/// Each text on the page with its contrast and what it would be read against, computed from what the browser shows.
const CONTRASTS: &str = r#"(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, n) => c * a + below[n] * (1 - a));
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const [r, g, b, a] = rgba(getComputedStyle(node).backgroundColor);
    return a === 1 ? [r, g, b] : over([r, g, b, a], ground(node.parentElement));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (style, node) => {
    const below = ground(node);
    let opacity = 1;
    for (let at = node; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
    const [r, g, b, a] = rgba(style.color);
    const [low, high] = [luminance(over([r, g, b, a * opacity], below)), luminance(below)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility() || node.closest("svg, .unseen")) continue;
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const name = `${node.tagName}#${node.id}.${node.className} ${node.textContent.trim().slice(0, 30)}`;
    if (own) found.push([contrast(getComputedStyle(node), node), name]);
    if (node.placeholder) found.push([contrast(getComputedStyle(node, "::placeholder"), node), `placeholder ${name}`]);
  }
  return found;
})()"#;

const STATUSES: [&str; 10] = [
    "connecting",
    "live",
    "waiting",
    "reconnecting",
    "catching_up",
    "stalled",
    "degraded",
    "suspended",
    "ended",
    "refused",
];

/// Nothing on the page is below what WCAG 2 asks of text (AA).
async fn assert_readable(browser: &mut Browser, what: &str) {
    for theme in ["light", "dark"] {
        browser.eval(&format!("void (document.documentElement.dataset.theme = '{theme}')")).await;
        for status in STATUSES {
            browser.eval(&format!("void (document.querySelector('#badge').dataset.status = '{status}')")).await;
            let found: Vec<(f64, String)> = serde_json::from_value(browser.eval(CONTRASTS).await).unwrap();
            assert!(found.len() > 3, "{what}, {theme}: only {found:?}");
            let weak: Vec<_> = found.iter().filter(|(contrast, _)| *contrast < 4.5).collect();
            assert!(weak.is_empty(), "{what}, {theme}, {status}: {weak:?}");
        }
    }
}

fn spoken(speech: &Speech, id: &str, seq: Option<u64>, who: Option<&str>, span: (u64, u64), text: &str) -> Entry {
    let Entry::Transcript(mut line) = speech.line(id, seq, text) else { unreachable!() };
    line.speaker = who.map(|name| Speaker { identity: name.to_lowercase(), name: Some(name.to_owned()) });
    (line.start_ms, line.end_ms) = span;
    line.language = None;
    Entry::Transcript(line)
}

fn gap(speech: &Speech) -> Entry {
    let seq = speech.log.last_seq() + 1;
    Entry::Gap(Gap {
        session: speech.log.slug().clone(),
        epoch: speech.epoch(),
        seq: Some(seq),
        id: format!("g{seq}"),
        start_ms: 1000,
        end_ms: 4000,
        reason: GapReason::SttUnavailable,
        durable: true,
    })
}

async fn open(browser: &mut Browser, server: &TestServer) {
    let url = server.url(&format!("/?session=demo&token={}", token("demo")));
    browser.act("goto", json!({"url": url})).await;
}

#[actix::test]
async fn every_text_can_be_read_in_both_themes() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": server.url("/")})).await;
    browser.wait("!document.querySelector('#door').hidden").await;
    browser.act("fill", json!({"selector": "#session", "text": "demo"})).await;
    browser.act("fill", json!({"selector": "#token", "text": "no token"})).await;
    browser.act("press", json!({"key": "Enter"})).await;
    browser.wait("!document.querySelector('#refusal').hidden").await;
    assert_readable(&mut browser, "the door").await;
    browser.act("goto", json!({"url": "about:blank"})).await;

    open(&mut browser, &server).await;
    browser.badge("live").await;
    assert_readable(&mut browser, "before the first word").await;
    // More voices than colours.
    for n in 1..=10u64 {
        let seq = speech.log.last_seq() + 1;
        speech.publish(spoken(
            &speech,
            &format!("v{n}"),
            Some(seq),
            Some(&format!("Voice {n}")),
            (n, n),
            "Some words.",
        ));
    }
    speech.publish(gap(&speech));
    speech.log.show_interim(&spoken(&speech, "open", None, None, (90, 99), "Perhaps"));
    browser.wait("document.querySelectorAll('.interim').length === 1").await;
    // Whatever can be shown, and the smallest text: its button is off.
    browser
        .eval("void document.querySelectorAll('#jump, #note, #leave').forEach((node) => { node.hidden = false; })")
        .await;
    browser.eval("void (document.querySelector('#note').textContent = 'A note.')").await;
    browser.eval("void (document.querySelector('#unread').textContent = '5')").await;
    for _ in 0..3 {
        browser.act("press", json!({"key": "-"})).await;
    }
    assert_readable(&mut browser, "the captions").await;
    server.stop().await;
}

#[actix::test]
async fn lines_and_names_run_in_their_own_direction() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    // (name, text, direction of the text)
    let lines = [
        ("Anna", "Good morning.", "ltr"),
        ("Anna", "שלום לכולם.", "rtl"),
        ("ليلى", "1. صباح الخير!", "rtl"),
        ("ليلى", "OK, and now in English.", "ltr"),
        ("Anna", "«مرحبا» means hello.", "rtl"),
    ];
    for (n, (who, text, _)) in (1..).zip(lines) {
        speech.publish(spoken(&speech, &format!("r{n}"), Some(n), Some(who), (n, n), text));
    }
    speech.log.show_interim(&spoken(&speech, "open", None, None, (90, 99), "نعم"));
    let mut browser = Browser::start();
    open(&mut browser, &server).await;
    browser.wait("document.querySelectorAll('#finals .line').length === 5").await;
    browser.wait("document.querySelectorAll('#interims .line').length === 1").await;
    let directions = |selector: &str| {
        format!("[...document.querySelectorAll('{selector}')].map((node) => getComputedStyle(node).direction)")
    };
    assert_eq!(browser.eval(&directions("#finals .line .text")).await, json!(lines.map(|(_, _, direction)| direction)));
    assert_eq!(browser.eval(&directions("#interims .line .text")).await, json!(["rtl"]));
    assert_eq!(browser.eval(&directions("#finals .name")).await, json!(["ltr", "rtl", "ltr"]));
    let full_stop = "(() => { const text = document.querySelectorAll('#finals .text')[1].firstChild; const at = document.createRange(); \
        at.setStart(text, text.length - 1); at.setEnd(text, text.length); const stop = at.getBoundingClientRect(); \
        at.setStart(text, 0); at.setEnd(text, 1); return stop.left < at.getBoundingClientRect().left; })()";
    assert_eq!(browser.eval(full_stop).await, true, "a Hebrew line ends on its left");
    server.stop().await;
}

/// What the regions that screen readers read out hold, over the page's whole life.
async fn read_out(browser: &mut Browser) -> Vec<String> {
    serde_json::from_value(browser.eval("window.readOut ?? []").await).unwrap()
}

const LISTEN: &str = "void (() => { window.readOut = []; \
    const live = (node) => node && (node.getAttribute('aria-live') === 'off' ? false : \
      ['polite', 'assertive'].includes(node.getAttribute('aria-live')) || ['log', 'alert'].includes(node.getAttribute('role')) || live(node.parentElement)); \
    new MutationObserver((changes) => changes.forEach(({ target, addedNodes }) => { \
      const node = target.nodeType === 1 ? target : target.parentElement; \
      if (live(node) && !node.closest('[aria-hidden]')) addedNodes.forEach((added) => window.readOut.push(added.textContent)); })) \
      .observe(document.body, { childList: true, subtree: true, characterData: true }); })()";

#[actix::test]
async fn screen_readers_read_out_what_is_new_and_once() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    speech.say(50);
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": server.url("/")})).await;
    browser.wait("!document.querySelector('#door').hidden").await;
    browser.eval(LISTEN).await;
    browser.act("fill", json!({"selector": "#session", "text": "demo"})).await;
    browser.act("fill", json!({"selector": "#token", "text": token("demo")})).await;
    browser.act("press", json!({"key": "Enter"})).await;
    browser.wait("document.querySelectorAll('#finals .line').length === 50").await;
    assert_eq!(read_out(&mut browser).await, [] as [&str; 0], "the history is there to be read, not to be heard");
    for text in ["It", "It is", "It is new"] {
        speech.interim("n1", text);
        browser.wait(&format!("document.querySelector('#interims .text')?.textContent === '{text}'")).await;
    }
    let seq = speech.log.last_seq() + 1;
    speech.publish(spoken(&speech, "n1", Some(seq), Some("Anna"), (1, 2), "It is new."));
    speech.publish(gap(&speech));
    browser.wait("document.querySelectorAll('#finals > *').length === 52").await;
    let gap_text = "3 s without text: the recogniser was out of reach";
    assert_eq!(read_out(&mut browser).await, ["Anna: It is new.", gap_text]);
    // What was missed over a drop is news, as far as anybody wants to listen to it.
    server.state.viewers.cut_all();
    speech.say(20);
    browser.wait("document.querySelectorAll('#finals .line').length === 71").await;
    browser.badge("live").await;
    speech.say(1);
    browser.wait("document.querySelectorAll('#finals .line').length === 72").await;
    let said = read_out(&mut browser).await;
    assert!((3..=2 + 21).contains(&said.len()), "{said:?}");
    let last = format!("line {}", speech.log.last_seq());
    assert_eq!(said.last(), Some(&last));
    assert_eq!(said.iter().filter(|text| **text == last).count(), 1);
    let regions =
        "[...document.querySelectorAll('[aria-live]:not([aria-live=off]), [role=log]')].map((node) => node.id)";
    assert_eq!(browser.eval(regions).await, json!(["news"]));
    server.stop().await;
}

#[actix::test]
async fn what_was_never_said_does_not_stay_on_the_page() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    open(&mut browser, &server).await;
    browser.badge("live").await;
    let interims = |texts: Value| {
        format!(
            "JSON.stringify([...document.querySelectorAll('#interims .text')].map((n) => n.textContent)) === '{texts}'"
        )
    };
    let show = |id: &str, span, text: &str| speech.log.show_interim(&spoken(&speech, id, None, None, span, text));
    show("a", (0, 900), "taken");
    show("b", (0, 900), "overtaken");
    browser.wait(&interims(json!(["taken", "overtaken"]))).await;
    show("a", (0, 900), "");
    browser.wait(&interims(json!(["overtaken"]))).await;
    // The recogniser has gone on: what came before its newest final is over.
    show("c", (1000, 2500), "going on");
    let seq = speech.log.last_seq() + 1;
    speech.publish(spoken(&speech, "d", Some(seq), None, (1000, 2000), "A final."));
    browser.wait(&interims(json!(["going on"]))).await;
    speech.end();
    browser.badge("ended").await;
    browser.wait(&interims(json!([]))).await;
    server.stop().await;
}
