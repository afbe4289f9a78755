//! Who may publish what: `rtmp://host/live/{slug}`, with a key when the server has a secret.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use crate::config::Secret;
use crate::transcript::Slug;
use crate::transcript::slug::SlugError;

/// The only RTMP application.
pub const APP: &str = "live";

/// The longest part of a wrong application that is said again.
const MAX_APP_CHARS: usize = 64;

/// A publisher's target, taken from the application, the stream name and the URL of the connection, all of which
/// may carry a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub slug: Slug,
    key: Option<Secret>,
    /// Unix time in seconds.
    exp: Option<String>,
}

/// Why a publish is refused. The text goes to the publisher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("publish to rtmp://host/{APP}/<room>; the application {0:?} is unknown")]
    App(String),
    #[error("publish to rtmp://host/{APP}/<room>; a room's name has no slash, but {0:?} was asked for")]
    Nested(String),
    #[error("publish to rtmp://host/{APP}/<room>: {0}")]
    Slug(#[from] SlugError),
    #[error("a publish key is required: append ?key=... to the stream name")]
    KeyMissing,
    #[error("the publish key does not fit this room")]
    KeyWrong,
    #[error("the publish key has expired")]
    KeyExpired,
}

impl TargetError {
    /// The label in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::App(_) | Self::Nested(_) => "app",
            Self::Slug(_) => "slug",
            Self::KeyMissing => "key_missing",
            Self::KeyWrong => "key_wrong",
            Self::KeyExpired => "key_expired",
        }
    }
}

impl Target {
    /// From the `app` and the `tcUrl` of connect and the stream name of publish. What people paste too much (blanks,
    /// slashes at the ends, percent-encoding) makes no difference, nor does the case of the application.
    pub fn parse(app: &str, name: &str, tc_url: &str) -> Result<Self, TargetError> {
        let query_of = |text| str::split_once(text, '?').unwrap_or((text, ""));
        let ((app, app_query), (name, name_query), (_, url_query)) = (query_of(app), query_of(name), query_of(tc_url));
        let (app, name) = (trimmed(app), trimmed(name));
        let shown = |text: &str| text.chars().take(MAX_APP_CHARS).collect();
        match app.split_once('/') {
            _ if app.eq_ignore_ascii_case(APP) => {}
            Some((first, _)) if first.eq_ignore_ascii_case(APP) => return Err(TargetError::Nested(shown(app))),
            _ => return Err(TargetError::App(shown(app))),
        }
        let value = |wanted: &str| {
            let items = [name_query, app_query, url_query].into_iter().flat_map(|query| query.split('&'));
            let value = items.filter_map(|item| item.split_once('=')).find(|(name, _)| *name == wanted)?.1.trim();
            (!value.is_empty()).then_some(value)
        };
        let slug = Slug::parse(&percent_decode_str(name).decode_utf8_lossy())?;
        Ok(Self { slug, key: value("key").map(Secret::new), exp: value("exp").map(str::to_owned) })
    }

    /// Checks the publish key; anybody may publish when the server has no `secret`.
    pub fn authorise(&self, secret: Option<&Secret>, now: SystemTime) -> Result<(), TargetError> {
        let Some(secret) = secret else { return Ok(()) };
        let key = self.key.as_ref().ok_or(TargetError::KeyMissing)?;
        let given = hex::decode(key.expose()).map_err(|_| TargetError::KeyWrong)?;
        let exp = match &self.exp {
            None => None,
            Some(text) => Some(text.parse::<u64>().map_err(|_| TargetError::KeyWrong)?),
        };
        // In constant time.
        keyed(secret, &self.slug, exp).verify_slice(&given).map_err(|_| TargetError::KeyWrong)?;
        let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if exp.is_some_and(|exp| exp <= now_s) {
            return Err(TargetError::KeyExpired);
        }
        Ok(())
    }
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c == '/' || c.is_whitespace())
}

/// The publish key of a room, in hex: HMAC-SHA256 of the slug, or of `slug:exp` with `exp` (unix time in seconds).
/// A publisher appends `?key={key}` (and `&exp={exp}`) to its stream name.
pub fn publish_key(secret: &Secret, slug: &Slug, exp: Option<u64>) -> String {
    hex::encode(keyed(secret, slug, exp).finalize().into_bytes())
}

fn keyed(secret: &Secret, slug: &Slug, exp: Option<u64>) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
    mac.update(slug.as_str().as_bytes());
    if let Some(exp) = exp {
        mac.update(format!(":{exp}").as_bytes());
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW_S: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    #[test]
    fn the_query_is_split_from_name_and_app() {
        let slug = |app, name| Target::parse(app, name, "").map(|t| t.slug.to_string());
        assert_eq!(slug("live", "demo"), Ok("demo".into()));
        assert_eq!(slug("live/", "demo?key=ab&exp=1"), Ok("demo".into()));
        assert_eq!(slug("live?key=ab", "demo"), Ok("demo".into()));
        assert_eq!(slug("vod", "demo"), Err(TargetError::App("vod".into())));
        assert_eq!(slug("", "demo"), Err(TargetError::App(String::new())));
        assert_eq!(slug("live", ""), Err(TargetError::Slug(SlugError::Empty)));
        assert_eq!(slug("live", "a/b"), Err(TargetError::Slug(SlugError::Character('/'))));
        assert_eq!(slug("live", "a b"), Err(TargetError::Slug(SlugError::Character(' '))));
        let nested = slug("live/a", "b").unwrap_err();
        assert!(nested.to_string().contains("no slash") && nested.as_str() == "app", "{nested}");
    }

    #[test]
    fn what_people_paste_too_much_makes_no_difference() {
        for (app, name) in [
            ("LIVE", "demo"),
            ("/live//", "demo"),
            ("live", "/demo/"),
            ("live", " demo\r\n"),
            ("live/", "d%65mo"),
            ("live", "demo ?key=ab"),
        ] {
            assert_eq!(Target::parse(app, name, "").map(|t| t.slug.to_string()), Ok("demo".into()), "{app:?} {name:?}");
        }
    }

    #[test]
    fn a_key_opens_its_room_until_it_expires() {
        let secret = Secret::new("top");
        let demo = Slug::parse("demo").unwrap();
        let check = |app: &str, name: &str| Target::parse(app, name, "").unwrap().authorise(Some(&secret), now());
        let key = publish_key(&secret, &demo, None);
        assert_eq!(check("live", &format!("demo?key={key}")), Ok(()));
        assert_eq!(check(&format!("live?key={key}"), "demo"), Ok(()));
        assert_eq!(check("live", &format!("demo?key={key}%20")), Err(TargetError::KeyWrong));
        assert_eq!(check("live", &format!("demo?key= {key}\n")), Ok(()));
        assert_eq!(check("live", "demo?key="), Err(TargetError::KeyMissing));
        let url = format!("rtmp://host/live?key={key}");
        assert_eq!(Target::parse("live", "demo", &url).unwrap().authorise(Some(&secret), now()), Ok(()));
        assert_eq!(check("live", &format!("other?key={key}")), Err(TargetError::KeyWrong));
        assert_eq!(check("live", "demo"), Err(TargetError::KeyMissing));
        assert_eq!(check("live", "demo?key=zz"), Err(TargetError::KeyWrong));
        assert_eq!(check("live", &format!("demo?key={key}&exp={}", NOW_S + 9)), Err(TargetError::KeyWrong));

        let soon = NOW_S + 60;
        let dated = publish_key(&secret, &demo, Some(soon));
        assert_eq!(check("live", &format!("demo?key={dated}&exp={soon}")), Ok(()));
        assert_eq!(check("live", &format!("demo?key={dated}&exp={}", soon + 1)), Err(TargetError::KeyWrong));
        let past = publish_key(&secret, &demo, Some(NOW_S));
        assert_eq!(check("live", &format!("demo?key={past}&exp={NOW_S}")), Err(TargetError::KeyExpired));
    }

    #[test]
    fn without_a_secret_anybody_may_publish() {
        assert_eq!(Target::parse("live", "demo", "").unwrap().authorise(None, now()), Ok(()));
    }

    /// Vector computed with `printf %s demo | openssl dgst -sha256 -hmac top`.
    #[test]
    fn keys_are_those_of_openssl() {
        let key = publish_key(&Secret::new("top"), &Slug::parse("demo").unwrap(), None);
        assert_eq!(key, "63234b1d5598cbde95f862ac0b4d28b9b2ca8b0f1e439cc01ea6b4ba3b16160e");
    }
}
