use serde_json::json;

use super::*;

/// The messages of Gladia's schema and captures, one per line.
const SAMPLES: &str = include_str!("samples.jsonl");

/// JSON numbers compare by value: 0 and 0.0 are the same time.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

#[test]
fn every_sample_survives_reading_and_writing() {
    let mut kinds = std::collections::BTreeSet::new();
    for line in SAMPLES.lines() {
        let before: Value = serde_json::from_str(line).unwrap();
        let envelope: ServerEnvelope = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let after = serde_json::to_value(&envelope).unwrap();
        assert!(same(&before, &after), "\n{before}\n{after}");
        assert_eq!(envelope.message.kind(), before["type"]);
        assert!(!matches!(envelope.message, ServerMessage::Unknown(_)), "{line}");
        kinds.insert(envelope.message.kind().to_owned());
    }
    // All but `error`, which is not in the schema.
    assert_eq!(kinds.len(), KNOWN_TYPES.len() - 1, "{kinds:?}");
}

#[test]
fn an_unknown_type_keeps_its_name_and_costs_nothing() {
    let line = r#"{"type":"post_chapterization","session_id":"s","created_at":"t","error":null,"data":{"results":[]}}"#;
    let envelope: ServerEnvelope = serde_json::from_str(line).unwrap();
    assert_eq!(envelope.message, ServerMessage::Unknown(UnknownMessage { kind: "post_chapterization".into() }));
    assert_eq!(envelope.session_id, "s");
    assert_eq!(serde_json::to_value(&envelope).unwrap()["type"], "post_chapterization");
}

#[test]
fn a_known_type_of_a_wrong_shape_is_an_error_and_not_unknown() {
    for line in [
        r#"{"type":"transcript","session_id":"s","created_at":"t","data":{"id":"0"}}"#,
        r#"{"type":"audio_chunk","session_id":"s","created_at":"t","data":{"byte_range":[0]}}"#,
        r#"{"session_id":"s"}"#,
        r#"[]"#,
    ] {
        assert!(serde_json::from_str::<ServerEnvelope>(line).is_err(), "{line}");
    }
}

#[test]
fn reading_tolerates_what_the_sdks_tolerate() {
    let line = r#"{"type":"audio_chunk","acknowledged":true,"data":{"byte_range":[0,2],"time_range":[0,0.1],"new":1}}"#;
    let envelope: ServerEnvelope = serde_json::from_str(line).unwrap();
    let ServerMessage::AudioChunk(ack) = envelope.message else { panic!() };
    assert_eq!(ack.data.unwrap().byte_range, [0, 2]);
    let line = r#"{"type":"transcript","data":{"id":"a","is_final":true,"utterance":{"text":"x","start":0,"end":1}}}"#;
    assert!(serde_json::from_str::<ServerEnvelope>(line).is_ok());
    assert!(serde_json::from_str::<ServerEnvelope>(r#"{"type":"error"}"#).is_ok());
}

#[test]
fn writing_never_leaves_out_a_key_that_the_python_sdk_requires() {
    let utterance = Utterance { words: vec![Word::default()], ..Default::default() };
    let message = ServerMessage::Transcript { data: Transcript { id: "0".into(), is_final: false, utterance } };
    let value = serde_json::to_value(ServerEnvelope::now("s", message)).unwrap();
    for key in ["type", "session_id", "created_at"] {
        assert!(value.get(key).is_some(), "{key}");
    }
    let utterance = &value["data"]["utterance"];
    for key in ["start", "end", "confidence", "channel", "words", "text", "language"] {
        assert!(utterance.get(key).is_some(), "{key}");
    }
    for key in ["word", "start", "end", "confidence"] {
        assert!(utterance["words"][0].get(key).is_some(), "{key}");
    }
    let refused = ServerMessage::AudioChunk(Acknowledgment::refused("quota exceeded"));
    let value = serde_json::to_value(ServerEnvelope::now("s", refused)).unwrap();
    assert_eq!((&value["acknowledged"], &value["data"]), (&json!(false), &Value::Null));
    assert_eq!(value["error"], json!({"message": "quota exceeded"}));
}

#[test]
fn client_messages_read_as_clients_write_them() {
    let chunk: ClientMessage =
        serde_json::from_str(r#"{"type":"audio_chunk","data":{"chunk":"AAEC"}}"#).expect("livekit's form");
    assert_eq!(chunk, ClientMessage::AudioChunk { data: AudioData { chunk: Bytes::from_static(&[0, 1, 2]) } });
    assert_eq!(serde_json::to_value(&chunk).unwrap(), json!({"type":"audio_chunk","data":{"chunk":"AAEC"}}));
    assert!(serde_json::from_str::<ClientMessage>(r#"{"type":"audio_chunk","data":{"chunk":""}}"#).is_ok());
    assert!(serde_json::from_str::<ClientMessage>(r#"{"type":"audio_chunk","data":{"chunk":"*"}}"#).is_err());
    let stop: ClientMessage = serde_json::from_str(r#"{"type": "stop_recording"}"#).unwrap();
    assert_eq!(stop, ClientMessage::StopRecording);
    assert_eq!(serde_json::to_string(&stop).unwrap(), r#"{"type":"stop_recording"}"#);
}

#[test]
fn an_empty_request_is_valid_and_unknown_keys_are_kept() {
    assert_eq!(serde_json::from_str::<LiveRequest>("{}").unwrap(), LiveRequest::default());
    assert_eq!(serde_json::to_string(&LiveRequest::default()).unwrap(), "{}");
    let body = json!({
        "encoding": "wav/pcm", "bit_depth": 16, "sample_rate": 16000, "channels": 1, "model": "solaria-1",
        "endpointing": 0.3, "maximum_duration_without_endpointing": 15.0,
        "language_config": {"languages": ["ru", "en"], "code_switching": true},
        "pre_processing": {"audio_enhancer": false, "speech_threshold": 0.6},
        "realtime_processing": {"words_accurate_timestamps": false},
        "custom_metadata": {"livekit": "1.8.9"},
        "messages_config": {"receive_partial_transcripts": true, "receive_post_processing_events": false},
        "something_new": [1],
    });
    let request: LiveRequest = serde_json::from_value(body.clone()).unwrap();
    assert_eq!(serde_json::to_value(&request).unwrap(), body);
}

#[test]
fn the_answer_to_a_post_hides_its_token_from_debug() {
    let text = r#"{"id":"4","created_at":"2023-12-28T09:04:17.210Z","url":"wss://h/v2/live?token=secret"}"#;
    let reply: LiveReply = serde_json::from_str(text).unwrap();
    assert!(!format!("{reply:?}").contains("secret"));
    assert_eq!(serde_json::to_string(&reply).unwrap(), text);
}

#[test]
fn error_bodies_are_read_in_every_shape() {
    let text = r#"{"timestamp":"t","path":"/v2/live","request_id":"G-1","statusCode":400,"message":"Invalid parameter","validation_errors":["x"]}"#;
    let body: ErrorBody = serde_json::from_str(text).unwrap();
    assert_eq!((body.status_code, body.message.as_str()), (400, "Invalid parameter"));
    assert_eq!(serde_json::to_string(&body).unwrap(), text);
    let list: ErrorBody = serde_json::from_str(r#"{"message":["a","b"]}"#).unwrap();
    assert_eq!(list.message, "a; b");
    assert_eq!(serde_json::from_str::<ErrorBody>("{}").unwrap(), ErrorBody::default());
}

#[test]
fn the_sdks_ranges_decide_what_is_resumable() {
    for (code, resumable) in [
        (1000, false),
        (1001, false),
        (1006, true),
        (1012, true),
        (4399, true),
        (4400, false),
        (4499, false),
        (4500, true),
    ] {
        assert_eq!(is_resumable(code), resumable, "{code}");
    }
}

#[test]
fn the_message_configuration_follows_the_defaults_of_the_socket() {
    let config = MessagesConfig::default();
    let partial = |is_final| ServerMessage::Transcript {
        data: Transcript { id: "0".into(), is_final, utterance: Utterance::default() },
    };
    assert!(config.allows(&partial(true)) && !config.allows(&partial(false)));
    assert!(!config.allows(&ServerMessage::EndSession));
    assert!(config.allows(&ServerMessage::AudioChunk(Acknowledgment::refused("x"))));
    let config = MessagesConfig { receive_lifecycle_events: Some(true), ..config };
    assert!(config.allows(&ServerMessage::EndSession));
}
