//! The captions page in a real browser.

mod support;

use serde_json::json;
use stenocast::transcript::{Entry, Gap, GapReason, Speaker, Status};
use support::browser::Browser;
use support::http::*;
use support::wait::until;

fn spoken(speech: &Speech, id: &str, seq: Option<u64>, who: Option<&str>, start_ms: u64, text: &str) -> Entry {
    let Entry::Transcript(mut transcript) = speech.line(id, seq, text) else { unreachable!() };
    transcript.speaker = who.map(|name| Speaker { identity: name.to_lowercase(), name: Some(name.to_owned()) });
    (transcript.start_ms, transcript.end_ms) = (start_ms, start_ms + 2500);
    Entry::Transcript(transcript)
}

fn gap(speech: &Speech, start_ms: u64, end_ms: u64) -> Entry {
    let seq = speech.log.last_seq() + 1;
    let (session, epoch, id) = (speech.log.slug().clone(), speech.epoch(), format!("g{seq}"));
    Entry::Gap(Gap {
        session,
        epoch,
        seq: Some(seq),
        id,
        start_ms,
        end_ms,
        reason: GapReason::SttUnavailable,
        durable: true,
    })
}

/// A little conversation, with a gap in it.
fn converse(speech: &Speech) {
    let lines = [
        ("Anna", "Good morning, everybody. Shall we begin with the release?"),
        ("Anna", "We have two open questions, and I would like to close both of them today."),
        ("Ben", "The first one is mine. The migration ran over night, and every row is where it should be."),
        ("Chloé", "Could you say how long it took? Last time it was close to four hours."),
        ("Ben", "Fifty minutes. We write in batches now."),
        ("Anna", "That is good news. Then the second question: who is on call this weekend?"),
        ("Chloé", "I am, and Ben takes over on Sunday at noon."),
    ];
    for (n, (who, text)) in lines.into_iter().enumerate() {
        if n == 5 {
            speech.publish(gap(speech, 31_000, 43_000));
        }
        let seq = speech.log.last_seq() + 1;
        speech.publish(spoken(speech, &format!("c{seq}"), Some(seq), Some(who), 4000 + 6500 * n as u64, text));
    }
}

#[actix::test]
async fn the_page_shows_words_status_and_gaps_and_survives_a_drop() {
    let server = TestServer::start();
    let mut browser = Browser::start();
    let url = server.url(&format!("/?session=weekly&token={}", token("weekly")));
    browser.act("goto", json!({"url": url})).await;
    browser.badge("waiting").await;
    assert_eq!(browser.eval("location.search").await, "?session=weekly", "the token left the address");
    browser.screenshot("waiting").await;

    let speech = server.begin("weekly");
    speech.status(Status::Live);
    browser.badge("live").await;
    speech.log.show_interim(&spoken(&speech, "c2", None, None, 4000, "Good morning, every"));
    browser.wait("document.querySelector('#interims .interim .text')?.textContent === 'Good morning, every'").await;
    assert_eq!(browser.seqs().await, [] as [u64; 0]);
    converse(&speech);
    browser.wait("document.querySelectorAll('#finals .line').length === 7").await;
    assert_eq!(browser.eval("document.querySelectorAll('#interims .line').length").await, 0, "its final has come");
    assert!(browser.eval("document.querySelector('.marker.gap').textContent").await.as_str().unwrap().contains("12 s"));
    let voices = browser.eval("[...document.querySelectorAll('#finals .line')].map(n => n.dataset.voice)").await;
    assert_eq!((&voices[0], &voices[2]), (&voices[1], &voices[4]), "one colour per speaker");
    let different: std::collections::HashSet<_> = [0, 2, 3].map(|n| voices[n].to_string()).into();
    assert_eq!(different.len(), 3, "and not the same one: {voices}");
    let names = browser.eval("document.querySelectorAll('#finals .name').length").await;
    assert_eq!(names, 6, "a name at each turn");

    let interim = spoken(&speech, "open", None, Some("Anna"), 52_000, "Perfect. Then I think that we are");
    speech.log.show_interim(&interim);
    browser.wait("document.querySelectorAll('#interims .line').length === 1").await;
    browser.screenshot("light").await;
    browser.is_accessible().await;
    browser.act("scheme", json!({"scheme": "dark"})).await;
    browser.wait("document.documentElement.dataset.theme === 'dark'").await;
    browser.screenshot("dark").await;
    browser.is_accessible().await;
    browser.act("press", json!({"key": "t"})).await;
    assert_eq!(browser.eval("document.documentElement.dataset.theme").await, "light");

    // The connection breaks; what is said meanwhile comes later, once.
    let before = browser.seqs().await;
    cut_all(&server).await;
    speech.publish(spoken(&speech, "c10", Some(10), Some("Ben"), 60_000, "Sorry, I was away for a moment."));
    browser.wait("document.querySelectorAll('#finals .line').length === 8").await;
    let after = browser.seqs().await;
    assert_eq!((&after[..before.len()], after.last()), (&before[..], Some(&10)), "nothing twice, nothing lost");
    speech.status(Status::Reconnecting);
    browser.badge("reconnecting").await;
    speech.end();
    browser.badge("ended").await;
    browser.no_problems().await;
    server.stop().await;
}

/// Ends all viewers' connections as a broken network would; the page comes back by itself.
async fn cut_all(server: &TestServer) {
    let upgrades = ["/api/realtime/transcribe", "101"];
    let joined = || server.state.metrics.http_requests_total.with_label_values(&upgrades).get();
    let before = joined();
    server.state.viewers.cut_all();
    until("back", async || joined() > before).await;
}

#[actix::test]
async fn reading_back_stops_the_scrolling_and_the_page_stays_small() {
    let server = TestServer::with(&[("ROOM_HISTORY", "5000")]);
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    let url = server.url(&format!("/?session=demo&token={}", token("demo")));
    browser.act("goto", json!({"url": url})).await;
    browser.badge("live").await;
    speech.say(100);
    let at_end = "(() => { const m = document.querySelector('#captions'); \
                  return m.scrollTop > 500 && m.scrollHeight - m.scrollTop - m.clientHeight < 2; })()";
    browser.wait("document.querySelectorAll('#finals .line').length === 100").await;
    browser.wait(at_end).await;
    browser.eval("document.querySelector('#captions').scrollTop = 200").await;
    browser.wait("!document.querySelector('#jump').hidden").await;
    speech.say(5);
    browser.wait("document.querySelector('#unread').textContent === '5'").await;
    assert_eq!(browser.eval("document.querySelector('#captions').scrollTop").await, 200);
    browser.screenshot("reading-back").await;
    browser.act("click", json!({"selector": "#jump"})).await;
    browser.wait(at_end).await;
    assert_eq!(browser.eval("document.querySelector('#jump').hidden").await, true);
    speech.say(1500);
    let last =
        format!("document.querySelector('#finals .line:last-child')?.dataset.seq === '{}'", speech.log.last_seq());
    browser.wait(&last).await;
    let blocks = browser.eval("document.querySelector('#finals').childElementCount").await.as_u64().unwrap();
    assert!(blocks <= 400, "{blocks}");
    browser.wait(at_end).await;
    let size = "getComputedStyle(document.querySelector('.column')).fontSize";
    let normal = browser.eval(size).await;
    browser.act("press", json!({"key": "+"})).await;
    assert_ne!(browser.eval(size).await, normal);
    browser.wait(at_end).await;
    browser.act("size", json!({"width": 390, "height": 780})).await;
    browser.wait(at_end).await;
    let overflow = "document.documentElement.scrollWidth <= innerWidth";
    assert_eq!(browser.eval(overflow).await, true, "no sideways scrolling on a phone");
    browser.screenshot("phone").await;
    browser.no_problems().await;
    server.stop().await;
}

/// The picker offers the languages that the log has; a choice is remembered, and puts each translation under its line.
#[actix::test]
async fn a_reader_chooses_a_language() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": server.url(&format!("/?session=demo&token={}", token("demo")))})).await;
    browser.badge("live").await;
    let seq = speech.log.last_seq() + 1;
    speech.publish(spoken(&speech, "c1", Some(seq), Some("Anna"), 4000, "Good morning, everybody."));
    browser.wait("document.querySelectorAll('#finals .line').length === 1").await;
    assert_eq!(browser.eval("document.querySelector('#language').hidden").await, true);
    speech.translate("c1", "fr");
    speech.translate("c1", "de");
    speech.translate("never-said", "it");
    let offered = "[...document.querySelectorAll('#language option')].map((o) => o.value).join()";
    browser.wait(&format!("{offered} === ',fr,de' && !document.querySelector('#language').hidden")).await;
    let shown = "[...document.querySelectorAll('.translation')].map((n) => `${n.lang}:${n.textContent}`).join()";
    assert_eq!(browser.eval(shown).await, "");
    let choose = |code: &str| {
        format!(
            "(() => {{ const s = document.querySelector('#language'); s.value = '{code}'; \
             s.dispatchEvent(new Event('change')); }})()"
        )
    };
    browser.eval(&choose("fr")).await;
    browser.wait(&format!("{shown} === 'fr:fr of c1'")).await;
    let seq = speech.log.last_seq() + 1;
    speech.publish(spoken(&speech, "c2", Some(seq), Some("Ben"), 9000, "The first one is mine."));
    speech.translate("c2", "de");
    speech.translate("c2", "fr");
    browser.wait(&format!("{shown} === 'fr:fr of c1,fr:fr of c2'")).await;
    browser.screenshot("translated").await;
    browser.eval(&choose("de")).await;
    browser.wait(&format!("{shown} === 'de:de of c1,de:de of c2'")).await;
    browser.eval(&choose("")).await;
    browser.wait(&format!("{shown} === ''")).await;
    browser.no_problems().await;
    server.stop().await;
}

#[actix::test]
async fn the_door_asks_for_what_is_missing_and_says_what_was_refused() {
    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.status(Status::Live);
    speech.say(1);
    let mut browser = Browser::start();
    browser.act("goto", json!({"url": server.url("/")})).await;
    browser.wait("!document.querySelector('#door').hidden").await;
    browser.screenshot("door").await;
    browser.act("fill", json!({"selector": "#session", "text": "demo"})).await;
    browser.act("fill", json!({"selector": "#token", "text": "no token at all"})).await;
    browser.act("press", json!({"key": "Enter"})).await;
    browser.wait("document.querySelector('#refusal').textContent.includes('not a JWT')").await;
    browser.act("fill", json!({"selector": "#token", "text": token("other")})).await;
    browser.act("press", json!({"key": "Enter"})).await;
    browser.wait("document.querySelector('#refusal').textContent.includes('another room')").await;
    browser.screenshot("refused").await;
    browser.is_accessible().await;
    browser.act("fill", json!({"selector": "#token", "text": token("demo")})).await;
    browser.act("press", json!({"key": "Enter"})).await;
    browser.badge("live").await;
    browser.wait("document.querySelectorAll('#finals .line').length === 1").await;
    // The tab remembers; a reload goes straight in.
    browser.act("goto", json!({"url": server.url("/?session=demo")})).await;
    browser.wait("document.querySelectorAll('#finals .line').length === 1").await;
    browser.no_problems().await;
    server.stop().await;
}
