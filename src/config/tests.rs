use super::*;

fn load(pairs: &[(&str, &str)], dev: bool) -> Result<Config, ConfigFaults> {
    let values = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::load(&values, dev)
}

#[test]
fn what_nobody_sets_is_as_documented() {
    let c = load(&[], true).unwrap();
    assert_eq!((c.server.port, c.rtmp.port), (8080, 1937));
    assert_eq!(c.server.host.to_string(), "127.0.0.1");
    assert_eq!(c.stt.api_url, DEFAULT_API_URL);
    assert!(c.stt.is_local());
    assert_eq!(c.store.database, DatabaseUrl::Sqlite("./data/stenocast.db".into()));
    assert_eq!(c.auth.keys.len(), 1);
    assert_eq!((c.viewers.history_bytes, c.stt.replay_max_bytes), (4 << 20, 1 << 30));
}

#[test]
fn a_default_that_is_set_changes_nothing() {
    let keys = ("LIVEKIT_KEYS", "a: b");
    let unset = format!("{:?}", load(&[keys], false).unwrap());
    let texts = SETTINGS.iter().filter_map(|s| match s.default {
        DefaultValue::Text(text) => Some((s.name, text)),
        DefaultValue::Unset | DefaultValue::Computed(_) => None,
    });
    let mut count = 0;
    for (name, text) in texts {
        let set = load(&[keys, (name, text)], false).unwrap_or_else(|faults| panic!("{name}={text}: {faults}"));
        assert_eq!(format!("{set:?}"), unset, "{name}={text}");
        count += 1;
    }
    assert!(count > 40, "{count} defaults of the table were compared");
}

#[test]
fn all_faults_are_reported_at_once_and_say_what_is_allowed() {
    let faults =
        load(&[("PORT", "x"), ("SERVER_MODE", "all"), ("AUDIO_CHUNK_MS", "5"), ("BUS", "nats")], false).unwrap_err();
    let text = faults.to_string();
    for part in ["PORT is \"x\"", "both, rtmp, ws", "20 to 1000", "NATS_URL is required", "--dev"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(faults.0.len(), 5);
}

#[test]
fn an_offset_has_two_ends() {
    let offset = |text| load(&[("SPEAKER_OFFSET_MS", text)], true).map(|c| c.viewers.speaker_offset_ms);
    assert_eq!([offset("-10000"), offset("0"), offset("")], [Ok(Some(-10_000)), Ok(Some(0)), Ok(None)]);
    for text in ["10001", "-10001", "-9223372036854775808", "1.5"] {
        assert!(offset(text).is_err(), "{text} is taken");
    }
}

#[test]
fn secrets_never_show() {
    let c = load(
        &[
            ("LIVEKIT_KEYS", "a: s3cret-1, b: s3cret-2"),
            ("DATABASE_URL", "postgres://u:s3cret-3@h/d"),
            ("ADMIN_TOKEN", "s3cret-4"),
        ],
        false,
    )
    .unwrap();
    assert_eq!(c.auth.keys.len(), 2);
    assert!(!format!("{c:?}").contains("s3cret"));
    let faults = load(&[("LIVEKIT_KEYS", "s3cret"), ("DATABASE_URL", "mysql://u:s3cret@h")], false).unwrap_err();
    assert!(!faults.to_string().contains("s3cret"), "{faults}");
}

#[test]
fn what_was_pasted_around_a_key_is_trimmed_and_what_is_inside_is_named() {
    for text in ["abc\n", " abc\t", "\u{feff}abc\r\n", "abc\u{200b}", "\u{a0}abc"] {
        let c = load(&[("GLADIA_API_KEY", text), ("ADMIN_TOKEN", text), ("LIVEKIT_KEYS", &format!("k:{text}"))], false);
        let c = c.unwrap_or_else(|faults| panic!("{text:?}: {faults}"));
        assert_eq!(c.stt.api_key, Some(Secret::new("abc")), "{text:?}");
        assert_eq!(
            (c.auth.admin_token, &c.auth.keys[0].1),
            (Some(Secret::new("abc")), &Secret::new("abc")),
            "{text:?}"
        );
    }
    let tokens = ["GLADIA_API_KEY", "BROADCAST_TOKEN", "ADMIN_TOKEN"];
    let secrets = ["LIVEKIT_API_SECRET", "RTMP_PUBLISH_KEY"];
    let refused = |name: &str, text: &str| {
        let faults = load(&[(name, text), ("LIVEKIT_API_KEY", "k")], true).unwrap_err().to_string();
        assert!(faults.contains(name) && faults.contains("allowed"), "{name} {text:?}: {faults}");
        assert!(!faults.contains("s3c"), "{faults}");
    };
    for text in ["s3c\nret", "\"s3cret\"", "'s3cret'", "s3c\0ret", "s3cret\""] {
        tokens.iter().chain(&secrets).for_each(|name| refused(name, text));
        let faults = load(&[("LIVEKIT_KEYS", &format!("a: {text}"))], true).unwrap_err().to_string();
        assert!(faults.contains("LIVEKIT_KEYS"), "{text:?}: {faults}");
    }
    for text in ["s3c ret", "s3cr\u{fc}t"] {
        tokens.iter().for_each(|name| refused(name, text));
        let pair = [("LIVEKIT_API_KEY", "k"), ("LIVEKIT_API_SECRET", text)];
        assert!(load(&pair, false).is_ok(), "{text:?} signs as well as any");
    }
}

#[test]
fn rtmp_stays_on_loopback_without_a_key() {
    let keys = ("LIVEKIT_KEYS", "a: b");
    assert!(load(&[keys], false).unwrap().rtmp.host.is_loopback());
    assert!(!load(&[keys, ("RTMP_PUBLISH_KEY", "k")], false).unwrap().rtmp.host.is_loopback());
    assert!(!load(&[keys, ("RTMP_OPEN", "true")], false).unwrap().rtmp.host.is_loopback());
    assert!(load(&[keys, ("RTMP_HOST", "0.0.0.0")], false).is_err());
}

/// The README's table is this one. `UPDATE_README=1 cargo test readme` writes it anew.
#[test]
fn the_readme_shows_every_setting() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let begin = readme.find("<!-- configuration table: begin").expect("the begin mark");
    let begin = begin + readme[begin..].find('\n').unwrap() + 1;
    let end = readme.find("<!-- configuration table: end").expect("the end mark");
    let mut table = "| group | name | default | meaning |\n|---|---|---|---|\n".to_owned();
    for s in SETTINGS {
        let default = match s.default.shown() {
            "" => String::new(),
            shown => format!("`{shown}`"),
        };
        table += &format!("| {} | `{}` | {default} | {} |\n", s.group, s.name, s.help.replace('|', "\\|"));
    }
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{}{table}{}", &readme[..begin], &readme[end..])).unwrap();
        return;
    }
    assert_eq!(&readme[begin..end], table, "UPDATE_README=1 cargo test readme mends it");
}

#[test]
fn byte_sizes_have_units() {
    assert_eq!(parse_bytes("1GiB"), Some(1 << 30));
    assert_eq!(parse_bytes("5 MB"), Some(5_000_000));
    assert_eq!(parse_bytes("17"), Some(17));
    assert_eq!(parse_bytes("many"), None);
}

#[test]
fn durations_have_units() {
    assert_eq!(parse_duration("90s"), Some(Duration::from_secs(90)));
    assert_eq!(parse_duration("24h"), parse_duration("1d"));
    assert_eq!(parse_duration("30 m"), Some(Duration::from_secs(1800)));
    for text in ["", "24", "h", "-1h", "1.5h", "1w", "99999999999999999999d", "1\u{e9}"] {
        assert_eq!(parse_duration(text), None, "{text:?}");
    }
}

#[test]
fn the_faults_of_nats_settings_come_together_and_hold_no_password() {
    let bad = [
        ("BUS", "nats"),
        ("NATS_URL", "nats://me:s3cret@a:4222,http://me:s3cret@b,me:s3cret@c,nats://me:s3cret@,nats://d:99999/s3cret"),
        ("NATS_REPLICAS", "2"),
        ("NATS_MAX_AGE", "5s"),
        ("NATS_MAX_BYTES", "10"),
        ("NATS_LEASE_MS", "1"),
        ("NATS_CA", "/nowhere/ca.pem"),
        ("NATS_CREDS", "/nowhere/nats.creds"),
    ];
    let faults = load(&bad, true).unwrap_err();
    let text = faults.to_string();
    assert_eq!(faults.0.len(), 10, "{text}");
    let parts =
        ["server 2", "server 3", "server 4", "server 5", "allowed: 1, 3, 5", "from 1m to 3650d", "1MiB or more"];
    for part in parts.iter().chain(&["1000 to 600000", "NATS_CA /nowhere", "NATS_CREDS /nowhere"]) {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("s3cret") && !text.contains("server 1,"), "{text}");
}

#[test]
fn nats_servers_are_a_list_whose_passwords_never_show() {
    let nats = load(&[("BUS", "nats"), ("NATS_URL", "nats://me:s3cret@a:4222, tls://b"), ("NATS_MAX_AGE", "7d")], true);
    let nats = nats.unwrap().split.nats;
    assert_eq!((nats.urls.len(), nats.urls[1].expose()), (2, "tls://b"));
    assert_eq!((nats.replicas, nats.max_age, nats.max_bytes), (1, Duration::from_secs(7 * 86_400), 8 << 30));
    assert!(!format!("{nats:?}").contains("s3cret"));
}
