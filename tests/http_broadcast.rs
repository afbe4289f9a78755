//! POST broadcast: who may, what is taken, and what each refusal says.

mod support;

use serde_json::{Value, json};
use stenocast::actors::session_registry::{BroadcastAck, BroadcastRefusal};
use support::http::*;

fn line(id: &str) -> Value {
    json!({"id": id, "isFinal": true, "text": "Hello.", "startMs": 0, "endMs": 900})
}

fn post() -> String {
    json!({"session": "demo", "transcript": line("a")}).to_string()
}

#[actix::test]
async fn good_posts_are_202_with_the_answer_of_the_session() {
    let server = TestServer::start();
    let ack = BroadcastAck { accepted: 2, duplicates: 1, seq: 41 };
    *server.hub.answer.lock() = Some(Ok(ack));
    let body = json!({"session": "demo", "transcripts": [line("a"), line("b"), line("a")]});
    let (status, answer) = server.post(Some(BROADCAST_TOKEN), body.to_string()).await;
    assert_eq!((status, answer), (202, json!({"accepted": 2, "duplicates": 1, "seq": 41})));
    {
        let posts = server.hub.posts.lock();
        assert_eq!((posts[0].slug.as_str(), posts[0].entries.len()), ("demo", 3));
    }
    let counted = |result| server.state.metrics.broadcast_entries_total.with_label_values(&[result]).get();
    assert_eq!((counted("accepted"), counted("duplicate")), (2, 1));
    server.stop().await;
}

#[actix::test]
async fn the_broadcast_token_or_a_room_admin_is_needed() {
    let server = TestServer::start();
    for (bearer, status) in [
        (None, 401),
        (Some("nonsense".to_owned()), 401),
        (Some(format!("{BROADCAST_TOKEN}x")), 401),
        (Some(ADMIN_TOKEN.to_owned()), 401),
        (Some(token("demo")), 403),
        (Some(room_admin("other")), 403),
        (Some(room_admin("demo")), 202),
        (Some(BROADCAST_TOKEN.to_owned()), 202),
    ] {
        assert_eq!(server.post(bearer.as_deref(), post()).await.0, status, "{bearer:?}");
    }
    assert_eq!(server.hub.posts.lock().len(), 2);
    server.stop().await;
}

#[actix::test]
async fn a_sessions_row_is_taken_from_nodes_alone_and_only_where_it_is_sound() {
    let server = TestServer::start();
    let epoch = stenocast::transcript::Epoch::now_v7();
    let row = |more: Value| {
        let mut row = json!({"epoch": epoch, "slug": "demo", "startedAt": "2026-11-22T12:00:00Z", "state": "live"});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"session": "demo", "transcripts": [], "record": row}).to_string()
    };
    for (bearer, more, status) in [
        (BROADCAST_TOKEN.to_owned(), json!({"losses": {"decode_error": 40}, "language": "en"}), 202),
        (room_admin("demo"), json!({}), 403),
        (BROADCAST_TOKEN.to_owned(), json!({"slug": "other"}), 422),
        (BROADCAST_TOKEN.to_owned(), json!({"state": "x".repeat(5000)}), 422),
        (BROADCAST_TOKEN.to_owned(), json!({"language": "e\u{0}n"}), 422),
        (BROADCAST_TOKEN.to_owned(), json!({"losses": {"weather": 1}}), 422),
    ] {
        let (got, answer) = server.post(Some(&bearer), row(more.clone())).await;
        assert_eq!(got, status, "{more}: {answer}");
        assert!(answer.to_string().len() < 1000, "{answer}");
    }
    server.stop().await;
}

#[actix::test]
async fn bodies_are_checked_and_the_field_is_named() {
    let server = TestServer::start();
    let mut wrong = line("b");
    wrong["endMs"] = json!("late");
    let long = json!({"session": "demo", "transcript": {"id": "a", "isFinal": true, "text": "x".repeat(16_385), "startMs": 0, "endMs": 1}});
    for (body, status, part) in [
        ("{".to_owned(), 400, "not JSON"),
        (json!({"session": "demo", "transcripts": [line("a"), wrong]}).to_string(), 422, "transcripts[1].endMs"),
        (json!({"transcript": line("a")}).to_string(), 422, "session"),
        (long.to_string(), 422, "transcript.text"),
        (json!({"session": "demo", "transcripts": vec![line("a"); 1001]}).to_string(), 422, "1000"),
        (" ".repeat((1 << 20) + 1), 413, "1048576"),
    ] {
        let (got, answer) = server.post(Some(BROADCAST_TOKEN), body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(got == status && message.contains(part), "{got} {message}");
    }
    assert!(server.hub.posts.lock().is_empty());
    let exactly = format!("{}{}", post(), " ".repeat((1 << 20) - post().len()));
    assert_eq!(server.post(Some(BROADCAST_TOKEN), exactly).await.0, 202);
    server.stop().await;
}

#[actix::test]
async fn a_body_without_a_length_is_limited_too() {
    let server = TestServer::start();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let request = format!(
        "POST /api/realtime/transcribe/broadcast HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Authorization: Bearer {BROADCAST_TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(17)
    );
    let answer = server.raw(&request).await;
    assert!(answer.starts_with("http/1.1 413") && answer.contains("too_large"), "{answer}");
    server.stop().await;
}

#[actix::test]
async fn the_sessions_refusals_have_their_status() {
    let server = TestServer::start();
    for (refusal, status, expected, reason) in [
        (BroadcastRefusal::Hole { expected: 7 }, 409, Some(7), Some("hole")),
        (BroadcastRefusal::HasOrigin { expected: 9 }, 409, Some(9), Some("has_origin")),
        (BroadcastRefusal::Ended { expected: 3 }, 409, Some(3), Some("ended")),
        (BroadcastRefusal::Draining, 503, None, None),
        (BroadcastRefusal::Unavailable, 503, None, None),
    ] {
        *server.hub.answer.lock() = Some(Err(refusal));
        let (got, answer) = server.post(Some(BROADCAST_TOKEN), post()).await;
        let told = (got, answer["expected"].as_u64(), answer["reason"].as_str());
        assert_eq!(told, (status, expected, reason));
    }
    server.stop().await;
}

#[actix::test]
async fn other_methods_are_405() {
    let server = TestServer::start();
    let (status, body) = server.get_json("/api/realtime/transcribe/broadcast", None).await;
    assert_eq!((status, body["error"]["code"].as_str()), (405, Some("method_not_allowed")));
    server.stop().await;
}
