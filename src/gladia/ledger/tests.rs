use super::*;
use crate::config::Secret;
use crate::transcript::GapReason;
use chrono::Utc;
use proptest::prelude::*;

const CHUNK: u64 = bytes(100);

fn limits(window_ms: u64) -> Limits {
    Limits { window: Duration::from_millis(window_ms), max_utterance: Duration::from_secs(15) }
}

fn ledger(window_ms: u64) -> Ledger {
    Ledger::new(limits(window_ms), Box::<MemorySpool>::default(), Arc::new(ReplayBudget::new(u64::MAX)))
}

fn pcm(level: i16) -> bytes::Bytes {
    (0..CHUNK / 2).flat_map(|n| (if n % 2 == 0 { level } else { -level }).to_le_bytes()).collect()
}

/// Pushes `ms` of audio in chunks, loud or silent, right after what is there.
fn push(ledger: &mut Ledger, now: Instant, ms: u64, is_loud: bool) {
    for _ in 0..ms / 100 {
        let start_ms = ledger.end_clock_ms();
        let pcm = pcm(if is_loud { 4000 } else { 0 });
        ledger.push(now, PcmChunk { pcm, start_ms, inserted: !is_loud, arrived: now });
    }
}

fn open(ledger: &mut Ledger, now: Instant) {
    ledger.begin_session(now, "id".into(), Secret::new("ws://token"));
    ledger.connected(now);
}

fn send_all(ledger: &mut Ledger, now: Instant) {
    while let Some(pcm) = ledger.next_audio(1 << 19) {
        ledger.mark_sent(now, pcm.len() as u64);
    }
}

fn said(id: &str, is_final: bool, start_s: f64, end_s: f64) -> Recognised {
    let (id, text) = (id.to_owned(), format!(" {id}"));
    Recognised {
        id,
        is_final,
        is_doubtful: false,
        text,
        start_s,
        end_s,
        language: None,
        confidence: None,
        voice: None,
        words: vec![],
    }
}

fn hear(ledger: &mut Ledger, now: Instant, said: Recognised) -> Verdict {
    ledger.text(now, Utc::now(), &said)
}

/// Everything that is ready, in short.
fn drain(ledger: &mut Ledger) -> Vec<String> {
    let mut items = Vec::new();
    while let Some(item) = ledger.delivered() {
        items.push(match item {
            TranscriptEvent::Interim(u) => format!("? {} {}-{}", u.id, u.start_ms, u.end_ms),
            TranscriptEvent::Final(u) => format!("! {} {}-{}", u.id, u.start_ms, u.end_ms),
            TranscriptEvent::Retracted { id } => format!("x {id}"),
            TranscriptEvent::Gap { start_ms, end_ms, reason, .. } => {
                format!("gap {start_ms}-{end_ms} {}", reason.as_str())
            }
            TranscriptEvent::Status { status, .. } => status.as_str().to_owned(),
            TranscriptEvent::Translation(t) => {
                format!("{} {}-{} {}:{}", t.of, t.start_ms, t.end_ms, t.language, t.text)
            }
        });
    }
    items
}

#[test]
fn audio_is_kept_until_its_text_is_published_and_some_time_at_most() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 10_000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(10_000));
    assert_eq!(l.window.start(), 0, "an acknowledgement alone frees nothing yet");
    hear(&mut l, now, said("a", true, 0.0, 8.0));
    assert_eq!(drain(&mut l), ["! 1.a 0-8000"]);
    assert_eq!(l.window.start(), 0, "nor does a final that nobody has seen");
    l.published("1.a");
    assert_eq!(l.window.start(), bytes(8000 - LEAD_MS));
    push(&mut l, now, 60_000, false);
    send_all(&mut l, now);
    l.acknowledged(bytes(10_000), bytes(70_000));
    // The sound right after a final is its tail.
    assert_eq!(l.window.start(), bytes(8200 - LEAD_MS), "nothing was said to the last two seconds yet");
    hear(&mut l, now, said("b", true, 8.0, 10.0));
    push(&mut l, now, 100, false);
    send_all(&mut l, now);
    l.acknowledged(bytes(70_000), bytes(70_100));
    assert_eq!(l.window.start(), bytes(70_100 - KEEP_ACKED_MS), "silence is kept for so long");
    let account = l.account();
    assert_eq!((account.received_ms, account.inserted_ms, account.acknowledged_ms), (10_000, 60_100, 70_100));
    assert_eq!((account.spoken_ms, account.finalised_ms), (10_000, 8250));
}

#[test]
fn a_resumed_connection_goes_on_at_the_last_acknowledgement() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 1000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(600));
    assert!(!l.acknowledged(0, bytes(300)), "an old acknowledgement never moves back");
    l.connected(now);
    assert_eq!(l.next_audio(usize::MAX).unwrap().len() as u64, bytes(400));
    assert_eq!(l.account().in_flight_ms, 400);
}

#[test]
fn bytes_that_were_counted_twice_do_not_shift_time() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 3000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(2600));
    l.connected(now);
    send_all(&mut l, now);
    // It had counted 300 ms more than we knew, and now counts them again.
    assert!(l.acknowledged(bytes(2900), bytes(3300)));
    assert_eq!(l.account().in_flight_ms, 0);
    push(&mut l, now, 1000, true);
    send_all(&mut l, now);
    l.acknowledged(bytes(3300), bytes(4300));
    hear(&mut l, now, said("a", true, 0.0, 3.3));
    hear(&mut l, now, said("b", true, 3.3, 4.3));
    assert_eq!(drain(&mut l), ["! 1.a 0-3000", "! 1.b 3000-4000"]);
}

#[test]
fn two_connections_without_an_acknowledgement_are_ambiguous() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 1000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    assert!(!l.is_ambiguous(), "one is not");
    l.connected(now);
    assert!(!l.is_ambiguous());
    send_all(&mut l, now);
    assert!(l.is_ambiguous());
    l.acknowledged(0, bytes(100));
    assert!(!l.is_ambiguous());
}

#[test]
fn a_new_session_hears_what_has_no_final_and_says_only_that() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 10_000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(10_000));
    hear(&mut l, now, said("a", true, 0.0, 4.0));
    hear(&mut l, now, said("b", false, 4.2, 6.0));
    drain(&mut l);
    l.begin_session(now, "next".into(), Secret::new("ws://other"));
    assert_eq!(drain(&mut l), ["x 1.b"]);
    assert_eq!(l.account().in_flight_ms, 7000, "from a second before the first final's end");
    l.connected(now);
    send_all(&mut l, now);
    assert_eq!(hear(&mut l, now, said("a", true, 0.0, 1.0)), Verdict::Nothing);
    hear(&mut l, now, said("b", true, 1.2, 5.0));
    assert_eq!(drain(&mut l), ["! 2.b 4200-8000"]);
}

#[test]
fn a_rollover_gives_each_word_to_the_side_of_its_midpoint() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 10_000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(10_000));
    l.plan_cut();
    push(&mut l, now, 2000, true);
    assert!(l.next_audio(1).is_none(), "nothing more goes to the old session");
    let word = |word: &str, start_s, end_s| RecognisedWord { word: word.into(), start_s, end_s, confidence: None };
    let mut last = said("a", true, 8.0, 10.0);
    last.words =
        vec![word(" one", 8.0, 8.9), word(" two", 8.9, 9.05), word(" three", 8.99, 9.5), word(" four", 9.5, 10.0)];
    hear(&mut l, now, last);
    assert_eq!(l.ended(), Verdict::Nothing);
    assert_eq!(drain(&mut l), ["! 1.a 8000-9050"]);
    open(&mut l, now);
    assert_eq!(l.account().in_flight_ms, 3950, "from a second before the end of what was said");
    send_all(&mut l, now);
    let mut first = said("a", true, 0.85, 1.95);
    first.words = vec![word(" two", 0.85, 1.0), word(" three", 0.94, 1.45), word(" four", 1.45, 1.95)];
    hear(&mut l, now, first);
    assert_eq!(drain(&mut l), ["! 2.a 8990-10000"]);
}

#[test]
fn a_final_waits_for_an_earlier_open_one_but_not_for_ever() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 10_000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    hear(&mut l, now, said("a", false, 0.0, 2.0));
    hear(&mut l, now, said("b", true, 3.0, 4.0));
    assert_eq!(drain(&mut l), ["? 1.a 0-2000"]);
    hear(&mut l, now, said("a", true, 0.0, 2.5));
    assert_eq!(drain(&mut l), ["! 1.a 0-2500", "! 1.b 3000-4000"]);
    hear(&mut l, now, said("c", false, 5.0, 6.0));
    hear(&mut l, now, said("d", true, 7.0, 8.0));
    let later = now + Duration::from_secs(3);
    l.tick(later, now);
    assert_eq!(drain(&mut l), ["? 1.c 5000-6000"], "nothing was heard since: the connection may hang");
    l.tick(later, later);
    assert_eq!(drain(&mut l), ["x 1.c", "! 1.d 7000-8000"]);
}

#[test]
fn speech_that_a_resumed_session_forgot_is_noticed_by_the_next_final_and_by_time() {
    for by_time in [false, true] {
        let (mut l, now) = (ledger(600_000), Instant::now());
        push(&mut l, now, 3000, true);
        push(&mut l, now, 1000, false);
        open(&mut l, now);
        send_all(&mut l, now);
        l.acknowledged(0, bytes(4000));
        l.connected(now);
        push(&mut l, now, 3000, true);
        send_all(&mut l, now);
        let verdict = if by_time {
            l.tick(now + Duration::from_secs(20), now)
        } else {
            hear(&mut l, now, said("b", true, 4.0, 7.0))
        };
        assert_eq!(verdict, Verdict::Forgotten);
        l.begin_session(now, "next".into(), Secret::new("ws://other"));
        assert_eq!(l.account().in_flight_ms, 7000);
    }
}

#[test]
fn overflow_is_lost_and_said_once_for_each_stretch() {
    let (mut l, now) = (ledger(5000), Instant::now());
    push(&mut l, now, 40_000, true);
    assert_eq!(drain(&mut l), ["gap 0-30000 stt_unavailable"], "long ones are said in pieces");
    open(&mut l, now);
    assert_eq!(
        drain(&mut l),
        ["gap 30000-35500 stt_unavailable"],
        "with a tenth of the window, to stand clear of its edge"
    );
    send_all(&mut l, now);
    l.acknowledged(0, bytes(4500));
    hear(&mut l, now, said("a", true, 0.5, 1.0));
    assert_eq!(drain(&mut l), ["! 1.a 36000-36500"]);
    let account = l.account();
    assert_eq!((account.lost_ms, account.acknowledged_ms, account.in_flight_ms), (35_500, 4500, 0));
}

#[test]
fn after_an_outage_that_was_longer_than_the_window_audio_may_go_on_before_the_first_acknowledgement() {
    let (mut l, now) = (ledger(5000), Instant::now());
    push(&mut l, now, 8000, true);
    open(&mut l, now);
    for _ in 0..4 {
        send_all(&mut l, now);
        push(&mut l, now, 100, true);
        assert!(!l.has_overflowed(), "the connection would have to be made anew, for ever");
    }
    assert!(l.acknowledged(0, bytes(4500)));
    let lost_ms = l.account().lost_ms;
    l.connected(now);
    assert_eq!(l.account().lost_ms, lost_ms, "nothing more is given up for a connection that was healthy");
}

#[test]
fn text_waits_for_its_place_until_an_acknowledgement_has_told_it() {
    let (mut l, now) = (ledger(60_000), Instant::now());
    push(&mut l, now, 1000, false);
    push(&mut l, now, 1000, true);
    push(&mut l, now, 1000, false);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(500));
    // The recogniser has counted 900 ms, silence all of it, and the acknowledgement of 400 is lost.
    l.connected(now);
    send_all(&mut l, now);
    assert_eq!(hear(&mut l, now, said("a", true, 1.4, 2.4)), Verdict::Nothing);
    assert_eq!(drain(&mut l), [""; 0], "400 ms too late, if it were placed now");
    assert!(l.acknowledged(bytes(900), bytes(1000)));
    assert_eq!(l.place(), Verdict::Taken);
    assert_eq!(drain(&mut l), ["! 1.a 1000-2000"]);
}

#[test]
fn a_word_that_was_heard_one_and_a_half_times_is_heard_again_by_another_session() {
    let (mut l, now) = (ledger(60_000), Instant::now());
    push(&mut l, now, 1000, false);
    push(&mut l, now, 1000, true);
    push(&mut l, now, 1000, false);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(1500));
    l.connected(now);
    send_all(&mut l, now);
    assert!(l.acknowledged(bytes(1800), bytes(1900)), "300 ms of the word are in its count twice");
    assert_eq!(l.place(), Verdict::Forgotten);
    l.begin_session(now, "next".into(), Secret::new("ws://other"));
    assert_eq!((l.account().in_flight_ms, l.place()), (3000, Verdict::Nothing), "all of the word, and its lead");
}

#[test]
fn what_was_acknowledged_and_never_answered_is_lost_when_it_cannot_be_replayed() {
    let (mut l, now) = (ledger(5000), Instant::now());
    push(&mut l, now, 4000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(4000));
    push(&mut l, now, 3000, true);
    l.begin_session(now, "next".into(), Secret::new("ws://other"));
    l.connected(now);
    assert_eq!(drain(&mut l), ["gap 0-2000 window_overflow"]);
    assert_eq!(l.account().lost_ms, 2000);
}

#[test]
fn what_is_acknowledged_and_not_answered_is_heard_again_however_long_the_recogniser_is_silent() {
    let (mut l, now) = (ledger(600_000), Instant::now());
    push(&mut l, now, 100_000, true);
    for session in 0..3 {
        l.begin_session(now, format!("{session}"), Secret::new("ws://other"));
        l.connected(now);
        assert_eq!(l.account().in_flight_ms, 100_000, "all of it");
        send_all(&mut l, now);
        l.acknowledged(0, bytes(100_000));
        assert_eq!(l.window.start(), 0);
    }
    hear(&mut l, now, said("a", true, 0.0, 100.0));
    assert_eq!(drain(&mut l), ["! 3.a 0-100000"]);
    assert_eq!(l.account().lost_ms, 0);
}

#[test]
fn what_falls_out_of_the_window_before_it_was_answered_is_a_gap_and_noise_that_was_answered_is_not() {
    let (mut l, now) = (ledger(60_000), Instant::now());
    push(&mut l, now, 10_000, true);
    push(&mut l, now, 30_000, false);
    push(&mut l, now, 10_000, true);
    open(&mut l, now);
    send_all(&mut l, now);
    l.acknowledged(0, bytes(50_000));
    push(&mut l, now, 15_000, false);
    l.connected(now);
    assert_eq!(drain(&mut l), ["gap 0-5000 window_overflow"]);
    push(&mut l, now, 25_000, false);
    l.announce_loss();
    assert_eq!(drain(&mut l), ["gap 5000-10000 window_overflow"], "the pause is not lost");
    // A session that ends properly has said all there is to say.
    open(&mut l, now);
    send_all(&mut l, now);
    let heard = l.end() - l.cursors.acked();
    l.acknowledged(0, heard);
    assert_eq!(l.ended(), Verdict::Nothing);
    push(&mut l, now, 100_000, false);
    l.announce_loss();
    assert!(!drain(&mut l).iter().any(|t| t.contains("40000")), "the second noise was none");
    assert_eq!(l.check(), Ok(()));
}

#[test]
fn a_restarted_process_goes_on_with_the_recogniser_session() {
    let (mut old, now) = (ledger(600_000), Instant::now());
    push(&mut old, now, 10_000, true);
    open(&mut old, now);
    send_all(&mut old, now);
    old.acknowledged(0, bytes(9000));
    hear(&mut old, now, said("a", true, 0.0, 4.0));
    old.published("1.a");
    let image = serde_json::to_string(&old.checkpoint()).unwrap();
    let image: LedgerImage = serde_json::from_str(&image).unwrap();
    assert!(!format!("{image:?}").contains("token"));
    drop(old);
    let budget = Arc::new(ReplayBudget::new(u64::MAX));
    let mut new = Ledger::restore(now, image, limits(600_000), Box::<MemorySpool>::default(), budget);
    assert_eq!(new.check(), Ok(()));
    assert_eq!(new.session().map(|s| (s.number, s.id)), Some((1, "id".to_owned())));
    new.connected(now);
    assert_eq!(drain(&mut new), ["gap 9000-10000 process_restart"]);
    push(&mut new, now, 2000, true);
    send_all(&mut new, now);
    // It had counted half a second that was never acknowledged.
    assert!(new.acknowledged(bytes(9500), bytes(11_500)));
    assert_eq!(hear(&mut new, now, said("a", true, 0.0, 4.0)), Verdict::Nothing, "published before the restart");
    hear(&mut new, now, said("b", true, 4.1, 9.0));
    hear(&mut new, now, said("c", true, 9.5, 11.5));
    assert_eq!(drain(&mut new), ["! 1.b 4100-9000", "! 1.c 10000-12000"]);
    let account = new.account();
    assert_eq!((account.received_ms, account.lost_ms, account.in_flight_ms), (12_000, 1000, 0));
}

#[test]
fn finals_that_a_restart_cost_are_a_gap() {
    for is_gone in [false, true] {
        let (mut old, now) = (ledger(600_000), Instant::now());
        push(&mut old, now, 4000, true);
        push(&mut old, now, 1000, false);
        push(&mut old, now, 3000, true);
        open(&mut old, now);
        send_all(&mut old, now);
        old.acknowledged(0, bytes(8000));
        hear(&mut old, now, said("a", true, 0.0, 4.0));
        old.published("1.a");
        hear(&mut old, now, said("b", true, 5.0, 6.5));
        let image = old.checkpoint();
        assert_eq!(image.session.as_ref().unwrap().finals, ["a"], "b is not published");
        let budget = Arc::new(ReplayBudget::new(u64::MAX));
        let mut new = Ledger::restore(now, image, limits(600_000), Box::<MemorySpool>::default(), budget);
        if !is_gone {
            new.connected(now);
            push(&mut new, now, 3000, true);
            send_all(&mut new, now);
            assert_eq!(hear(&mut new, now, said("c", true, 8.0, 11.0)), Verdict::Forgotten);
        }
        open(&mut new, now);
        assert_eq!(drain(&mut new), ["gap 5000-8000 process_restart"]);
        assert_eq!(new.account().lost_ms, 3000);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Push(u64, bool),
    Begin,
    Connect,
    Send(usize),
    Acknowledge(u64, u64),
    Text(u8, bool, u64, u64),
    Commit(usize),
    Tick(u64),
    Cut,
    End,
    Drop,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u64..40, any::<bool>()).prop_map(|(n, loud)| Op::Push(n * 100, loud)),
        1 => Just(Op::Begin),
        2 => Just(Op::Connect),
        4 => (1usize..100_000).prop_map(Op::Send),
        4 => (0u64..200_000, 0u64..200_000).prop_map(|(skip, len)| Op::Acknowledge(skip, len)),
        4 => (any::<u8>(), any::<bool>(), 0u64..20_000, 0u64..5_000).prop_map(|(id, f, s, l)| Op::Text(id, f, s, l)),
        3 => (0usize..8).prop_map(Op::Commit),
        2 => (0u64..30_000).prop_map(Op::Tick),
        1 => Just(Op::Cut),
        1 => Just(Op::End),
        1 => Just(Op::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever a recogniser says and whenever: the accounts hold, what is lost is announced to the millisecond, no
    /// final is said twice, and no memory is kept in the end.
    #[test]
    fn the_accounts_hold(ops in prop::collection::vec(op(), 1..120), window_ms in 500u64..60_000) {
        let budget = Arc::new(ReplayBudget::new(1_500_000));
        let mut l = Ledger::new(limits(window_ms), Box::<MemorySpool>::default(), budget.clone());
        let mut now = Instant::now();
        let (mut finals, mut lost_ms, mut pushed_ms) = (Vec::<String>::new(), 0, 0);
        for op in ops {
            match op {
                Op::Push(ms, loud) => { push(&mut l, now, ms, loud); pushed_ms += ms; }
                Op::Begin => { l.begin_session(now, "id".into(), Secret::new("u")); }
                Op::Connect => l.connected(now),
                Op::Send(most) => if let Some(pcm) = l.next_audio(most) {
                    prop_assert!(!pcm.is_empty() && pcm.len() <= most);
                    l.mark_sent(now, pcm.len() as u64);
                },
                Op::Acknowledge(skip, len) => {
                    let from = l.session.as_ref().map_or(0, |session| session.wire_acked) + skip / 4;
                    l.acknowledged(from, from + len);
                }
                Op::Text(id, is_final, start_ms, length_ms) => {
                    let (start, end) = (start_ms as f64 / 1000.0, (start_ms + length_ms) as f64 / 1000.0);
                    hear(&mut l, now, said(&id.to_string(), is_final, start, end));
                }
                Op::Commit(n) => if let Some(id) = finals.get(n).cloned() { l.published(&id) },
                Op::Tick(ms) => {
                    now += Duration::from_millis(ms);
                    l.tick(now, now);
                }
                Op::Cut => l.plan_cut(),
                Op::End => { l.ended(); }
                Op::Drop => l.drop_session(),
            }
            prop_assert_eq!(l.check(), Ok(()));
            prop_assert!(budget.used_bytes() <= 1_500_000);
            while let Some(item) = l.delivered() {
                match item {
                    TranscriptEvent::Gap { start_ms, end_ms, .. } => lost_ms += end_ms - start_ms,
                    TranscriptEvent::Final(u) => {
                        prop_assert!(!finals.contains(&u.id), "{} is final twice", u.id);
                        prop_assert!(u.start_ms <= u.end_ms && u.end_ms <= pushed_ms);
                        finals.push(u.id);
                    }
                    _ => {}
                }
            }
        }
        l.give_up(GapReason::SttUnavailable);
        prop_assert_eq!(l.check(), Ok(()));
        while let Some(item) = l.delivered() {
            if let TranscriptEvent::Gap { start_ms, end_ms, .. } = item {
                lost_ms += end_ms - start_ms;
            }
        }
        let account = l.account();
        prop_assert!(account.lost_ms.abs_diff(lost_ms) <= 20, "{} lost, {lost_ms} announced", account.lost_ms);
        prop_assert_eq!((account.received_ms + account.inserted_ms, account.in_flight_ms), (pushed_ms, 0));
        prop_assert_eq!(budget.used_bytes(), 0);
    }
}
