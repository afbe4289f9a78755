//! The name of a room: what publishers publish to and viewers subscribe to.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest slug accepted, in bytes.
pub const MAX_SLUG_BYTES: usize = 128;

/// A validated room name: `^[A-Za-z0-9._~-]{1,128}$`, neither `.` nor `..`.
///
/// The alphabet is the RFC 3986 "unreserved" set, so a slug never needs escaping in a URL, and it equals
/// the LiveKit room name, which is the only link between a token, an egress and an RTMP path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slug(Arc<str>);

/// Why a string is not a [`Slug`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlugError {
    #[error("the room name is empty; 1 to {MAX_SLUG_BYTES} characters of A-Z a-z 0-9 . _ ~ - are allowed")]
    Empty,
    #[error("the room name has {0} bytes; 1 to {MAX_SLUG_BYTES} characters of A-Z a-z 0-9 . _ ~ - are allowed")]
    TooLong(usize),
    #[error("the room name has the character {0:?}; only A-Z a-z 0-9 . _ ~ - are allowed")]
    Character(char),
    #[error("the room name must not be \".\" or \"..\"")]
    Dots,
}

impl Slug {
    pub fn parse(text: &str) -> Result<Self, SlugError> {
        if text.is_empty() {
            return Err(SlugError::Empty);
        }
        if text.len() > MAX_SLUG_BYTES {
            return Err(SlugError::TooLong(text.len()));
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '-');
        if let Some(bad) = text.chars().find(|c| !allowed(c)) {
            return Err(SlugError::Character(bad));
        }
        if text == "." || text == ".." {
            return Err(SlugError::Dots);
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Slug {
    type Error = SlugError;
    fn try_from(text: String) -> Result<Self, SlugError> {
        Self::parse(&text)
    }
}

impl std::str::FromStr for Slug {
    type Err = SlugError;
    fn from_str(text: &str) -> Result<Self, SlugError> {
        Self::parse(text)
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0.as_ref().to_owned()
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_livekit_rooms_are_called() {
        for good in ["demo", "team-sync-2026", "A.b_c~d-9", "...", &"x".repeat(128)] {
            assert_eq!(Slug::parse(good).map(String::from), Ok(good.to_owned()));
        }
    }

    #[test]
    fn refuses_everything_else_with_the_reason() {
        assert_eq!(Slug::parse(""), Err(SlugError::Empty));
        assert_eq!(Slug::parse("."), Err(SlugError::Dots));
        assert_eq!(Slug::parse(".."), Err(SlugError::Dots));
        assert_eq!(Slug::parse("a/b"), Err(SlugError::Character('/')));
        assert_eq!(Slug::parse("a b"), Err(SlugError::Character(' ')));
        assert_eq!(Slug::parse("é"), Err(SlugError::Character('é')));
        assert_eq!(Slug::parse(&"x".repeat(129)), Err(SlugError::TooLong(129)));
    }
}
