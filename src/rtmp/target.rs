//! Who may publish what: `rtmp://host/live/{slug}`, with a key when the server has a secret.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::config::Secret;
use crate::log::Slug;
use crate::log::slug::SlugError;

/// The only RTMP application.
pub const APP: &str = "live";

/// What a publisher asked for, taken from the application and the stream name, both of which may carry a query.
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
            Self::App(_) => "app",
            Self::Slug(_) => "slug",
            Self::KeyMissing => "key_missing",
            Self::KeyWrong => "key_wrong",
            Self::KeyExpired => "key_expired",
        }
    }
}

impl Target {
    /// From the `app` of connect and the stream name of publish.
    pub fn parse(app: &str, name: &str) -> Result<Self, TargetError> {
        let (app, app_query) = app.split_once('?').unwrap_or((app, ""));
        let (slug, name_query) = name.split_once('?').unwrap_or((name, ""));
        if app.trim_end_matches('/') != APP {
            return Err(TargetError::App(app.chars().take(64).collect()));
        }
        let value = |wanted: &str| {
            let items = name_query.split('&').chain(app_query.split('&'));
            items.filter_map(|item| item.split_once('=')).find(|(name, _)| *name == wanted).map(|(_, value)| value)
        };
        Ok(Self { slug: Slug::parse(slug)?, key: value("key").map(Secret::new), exp: value("exp").map(str::to_owned) })
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
        let slug = |app, name| Target::parse(app, name).map(|t| t.slug.to_string());
        assert_eq!(slug("live", "demo"), Ok("demo".into()));
        assert_eq!(slug("live/", "demo?key=ab&exp=1"), Ok("demo".into()));
        assert_eq!(slug("live?key=ab", "demo"), Ok("demo".into()));
        assert_eq!(slug("live/a", "b"), Err(TargetError::App("live/a".into())));
        assert_eq!(slug("vod", "demo"), Err(TargetError::App("vod".into())));
        assert_eq!(slug("live", ""), Err(TargetError::Slug(SlugError::Empty)));
        assert_eq!(slug("live", "a/b"), Err(TargetError::Slug(SlugError::Character('/'))));
    }

    #[test]
    fn a_key_opens_its_room_until_it_expires() {
        let secret = Secret::new("top");
        let demo = Slug::parse("demo").unwrap();
        let check = |app: &str, name: &str| Target::parse(app, name).unwrap().authorise(Some(&secret), now());
        let key = publish_key(&secret, &demo, None);
        assert_eq!(check("live", &format!("demo?key={key}")), Ok(()));
        assert_eq!(check(&format!("live?key={key}"), "demo"), Ok(()));
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
        assert_eq!(Target::parse("live", "demo").unwrap().authorise(None, now()), Ok(()));
    }

    /// Vector computed with `printf %s demo | openssl dgst -sha256 -hmac top`.
    #[test]
    fn keys_are_those_of_openssl() {
        let key = publish_key(&Secret::new("top"), &Slug::parse("demo").unwrap(), None);
        assert_eq!(key, "63234b1d5598cbde95f862ac0b4d28b9b2ca8b0f1e439cc01ea6b4ba3b16160e");
    }
}
