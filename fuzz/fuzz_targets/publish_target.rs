//! Application and stream name of a publisher: the slug is one by the rule in the contract, and with a secret only the
//! right key for that very room, not expired, lets anybody in.
//!
//! Input: the application, a line feed, the stream name; behind another line feed the URL of the connection.

#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use libfuzzer_sys::fuzz_target;
use stenocast::rtmp::publish_key;
use stenocast::rtmp::target::{Target, TargetError};
use stenocast::transcript::Slug;
use stenocast_fuzz::secret;

/// The seeds' keys expire one second later.
const NOW_S: u64 = 1_800_000_000;

/// `^[A-Za-z0-9._~-]{1,128}$`, neither `.` nor `..`.
fn is_slug(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && text != "." && text != ".."
}

fuzz_target!(|text: &str| {
    let mut lines = text.splitn(3, '\n');
    let [app, name, url] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let slug = name.split('?').next().unwrap_or_default();
    assert_eq!(Slug::parse(slug).is_ok(), is_slug(slug));
    let target = match Target::parse(app, name, url) {
        Ok(target) => target,
        Err(error) => {
            let nested = matches!(error, TargetError::App(_) | TargetError::Nested(_));
            assert!(!app.starts_with("live") || !is_slug(slug) || nested);
            assert!(error.to_string().len() < 1024, "a short answer");
            return;
        }
    };
    assert!(is_slug(target.slug.as_str()));
    assert!(!is_slug(slug) || target.slug.as_str() == slug);
    assert_eq!(target.authorise(None, UNIX_EPOCH), Ok(()));
    if target.authorise(Some(&secret()), UNIX_EPOCH + Duration::from_secs(NOW_S)).is_ok() {
        let query = format!("{name}&{app}&{url}").to_lowercase();
        let expiries = query.split(['&', '?']).filter_map(|item| item.strip_prefix("exp=")?.trim().parse().ok());
        let mut keys = std::iter::once(None).chain(expiries.map(Some)).filter(|exp| exp.is_none_or(|exp| exp > NOW_S));
        assert!(keys.any(|exp| query.contains(&publish_key(&secret(), &target.slug, exp))), "no key of this room");
    }
});
