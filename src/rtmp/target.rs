//! What a publisher asks for: `rtmp://host/live/{slug}`, with a publish key when the server has a secret.

use std::time::SystemTime;

use percent_encoding::percent_decode_str;

use super::publish_key;
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
        publish_key::verify(secret, &self.slug, key, self.exp.as_deref(), now)
    }
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c == '/' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn without_a_secret_anybody_may_publish() {
        assert_eq!(Target::parse("live", "demo", "").unwrap().authorise(None, SystemTime::now()), Ok(()));
    }
}
