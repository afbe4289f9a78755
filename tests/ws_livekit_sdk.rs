//! Tokens minted by LiveKit's own server SDK open the door unchanged.

mod support;

use std::collections::HashMap;
use std::process::Command;

use serde_json::json;
use support::http::*;
use support::npm;

#[actix::test]
async fn tokens_of_livekit_server_sdk_are_taken_as_they_are() {
    let place = npm::install("livekit");
    let output = Command::new("node").args(["mint.mjs", KEY, SECRET, "demo"]).current_dir(place).output();
    let output = output.expect("node is needed; run `apt-get install nodejs npm` (Node 20 or newer)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tokens: HashMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();

    let server = TestServer::start();
    let speech = server.begin("demo");
    speech.say(1);
    for (name, status) in
        [("viewer", 101), ("plain", 101), ("admin", 403), ("deaf", 403), ("elsewhere", 403), ("lister", 403)]
    {
        let bearer = format!("Bearer {}", tokens[name]);
        match Client::open(ws_request(&server, "session=demo", &[("authorization", &bearer)])).await {
            Ok(mut client) => {
                assert_eq!(status, 101, "{name}");
                assert_eq!(client.seqs(2).await, [1, 1], "hello and the line");
            }
            Err(refusal) => assert_eq!(refusal.status, status, "{name}: {refusal:?}"),
        }
    }
    let line = json!({"id": "a", "isFinal": true, "text": "Hello.", "startMs": 0, "endMs": 900});
    let body = json!({"session": "demo", "transcript": line}).to_string();
    assert_eq!(server.post(Some(&tokens["admin"]), body.clone()).await.0, 202);
    assert_eq!(server.post(Some(&tokens["viewer"]), body).await.0, 403);
    server.stop().await;
}
