//! The address at which a Track Egress brings one microphone's audio: it names the room, the track and the participant,
//! and is signed for exactly those, until it expires.
//!
//! An egress sends no header of ours, so the signature stands in the query, and LiveKit shows the URL to whoever may list
//! egresses. Therefore it lives for minutes: an egress dials as it starts, once, and a new one gets a new URL.
//!
//! `key` is the HMAC-SHA256, in hex, under an API secret, of `track-egress`, the slug, the track, `exp` and the identity,
//! each on a line of its own. Only the identity may have any character, and it comes last.

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

use super::keys::KeyRing;
use crate::config::Secret;
use crate::transcript::Slug;
use crate::transcript::clean::MAX_NAME_BYTES;

/// From the making of a URL to the last moment at which an egress may dial it.
pub const LIFETIME: TimeDelta = TimeDelta::minutes(5);
/// Longest id of a track; LiveKit's have 14 characters.
const MAX_TRACK_BYTES: usize = 64;

/// One microphone in one room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Microphone {
    pub slug: Slug,
    /// LiveKit's id of the track.
    pub track: String,
    /// Identity of the participant who speaks there.
    pub identity: String,
}

/// Why a URL opens nothing. The text never holds a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrackUrlError {
    #[error("the track is no id of LiveKit's; allowed: 1 to {MAX_TRACK_BYTES} characters of A-Z a-z 0-9 _ -")]
    Track,
    #[error("identity is not one of 1 to {MAX_NAME_BYTES} bytes")]
    Identity,
    #[error("exp is not a time in seconds since 1970")]
    Expiry,
    #[error("key is not the signature of this room, track, identity and exp")]
    Key,
    #[error("the URL has expired; each egress needs one of its own")]
    Expired,
}

impl TrackUrlError {
    /// The URL is one, and proves nothing (any more).
    pub fn is_unauthorized(self) -> bool {
        matches!(self, Self::Key | Self::Expired)
    }
}

impl Microphone {
    /// Checks what the signature does not tell: the shapes.
    pub fn new(slug: Slug, track: &str, identity: &str) -> Result<Self, TrackUrlError> {
        let is_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !(1..=MAX_TRACK_BYTES).contains(&track.len()) || !track.chars().all(is_id) {
            return Err(TrackUrlError::Track);
        }
        if !(1..=MAX_NAME_BYTES).contains(&identity.len()) {
            return Err(TrackUrlError::Identity);
        }
        Ok(Self { slug, track: track.to_owned(), identity: identity.to_owned() })
    }

    /// The URL for its egress, valid for [`LIFETIME`] from `now` on. `public_url` is `HTTP_PUBLIC_URL`.
    pub fn url(&self, public_url: &str, now: DateTime<Utc>, keys: &KeyRing) -> String {
        let exp = (now + LIFETIME).timestamp();
        let key = hex::encode(self.keyed(&keys.signer().1, exp).finalize().into_bytes());
        let base = match public_url.strip_prefix("http") {
            Some(rest) => format!("ws{rest}"),
            None => public_url.to_owned(),
        };
        let identity = utf8_percent_encode(&self.identity, NON_ALPHANUMERIC);
        format!("{base}/api/egress/track/{}/{}?identity={identity}&exp={exp}&key={key}", self.slug, self.track)
    }

    /// Checks the query of a URL against all keys that are valid now.
    pub fn verify(&self, exp: &str, key: &str, now: DateTime<Utc>, keys: &KeyRing) -> Result<(), TrackUrlError> {
        let exp: i64 = exp.parse().map_err(|_| TrackUrlError::Expiry)?;
        let given = hex::decode(key).map_err(|_| TrackUrlError::Key)?;
        // Each comparison is in constant time.
        let is_signed = keys.pairs().iter().any(|(_, secret)| self.keyed(secret, exp).verify_slice(&given).is_ok());
        match is_signed {
            false => Err(TrackUrlError::Key),
            true if exp <= now.timestamp() => Err(TrackUrlError::Expired),
            true => Ok(()),
        }
    }

    fn keyed(&self, secret: &Secret, exp: i64) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes keys of any length");
        let Self { slug, track, identity } = self;
        mac.update(format!("track-egress\n{slug}\n{track}\n{exp}\n{identity}").as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn ring(pairs: &[(&str, &str)]) -> KeyRing {
        KeyRing::new(pairs.iter().map(|(key, secret)| ((*key).to_owned(), Secret::new(*secret))).collect())
    }

    fn microphone(track: &str, identity: &str) -> Result<Microphone, TrackUrlError> {
        Microphone::new(Slug::parse("team-sync").unwrap(), track, identity)
    }

    fn query(url: &str) -> HashMap<String, String> {
        let uri: actix_web::http::Uri = url.parse().unwrap();
        let pairs = actix_web::web::Query::<HashMap<String, String>>::from_query(uri.query().unwrap());
        pairs.unwrap().into_inner()
    }

    #[test]
    fn a_url_opens_its_track_until_it_expires() {
        let (keys, now) = (ring(&[("a", "one")]), DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let anna = microphone("TR_AMbc12", "anna & ben/+ü\n").unwrap();
        let url = anna.url("https://captions.example.com/steno", now, &keys);
        assert!(url.starts_with("wss://captions.example.com/steno/api/egress/track/team-sync/TR_AMbc12?identity="));
        assert!(anna.url("http://localhost:3050", now, &keys).starts_with("ws://localhost:3050/api/egress/"));
        let query = query(&url);
        assert_eq!(query["identity"], "anna & ben/+ü\n");
        let at = |microphone: &Microphone, seconds: i64| {
            microphone.verify(&query["exp"], &query["key"], now + TimeDelta::seconds(seconds), &keys)
        };
        assert_eq!((at(&anna, 0), at(&anna, 299)), (Ok(()), Ok(())));
        assert_eq!(at(&anna, 300), Err(TrackUrlError::Expired));
        for other in [microphone("TR_AMbc13", &anna.identity), microphone("TR_AMbc12", "anna")] {
            assert_eq!(at(&other.unwrap(), 0), Err(TrackUrlError::Key));
        }
        let elsewhere = Microphone::new(Slug::parse("other").unwrap(), &anna.track, &anna.identity).unwrap();
        assert_eq!(at(&elsewhere, 0), Err(TrackUrlError::Key));
        let later: i64 = query["exp"].parse::<i64>().unwrap() + 1;
        assert_eq!(anna.verify(&later.to_string(), &query["key"], now, &keys), Err(TrackUrlError::Key));
    }

    #[test]
    fn a_url_of_an_older_key_opens_while_that_key_is_valid() {
        let (old, both, new) = (ring(&[("a", "one")]), ring(&[("b", "two"), ("a", "one")]), ring(&[("b", "two")]));
        let (anna, now) = (microphone("TR_1", "anna").unwrap(), Utc::now());
        let query = query(&anna.url("http://localhost", now, &old));
        let verify = |keys| anna.verify(&query["exp"], &query["key"], now, keys);
        assert_eq!([verify(&old), verify(&both), verify(&new)], [Ok(()), Ok(()), Err(TrackUrlError::Key)]);
    }

    #[test]
    fn what_is_no_url_of_ours_is_told_why() {
        let (keys, anna) = (ring(&[("a", "one")]), microphone("TR_1", "anna").unwrap());
        let verify = |exp, key| anna.verify(exp, key, Utc::now(), &keys);
        assert_eq!(verify("soon", "00"), Err(TrackUrlError::Expiry));
        assert_eq!(verify("99999999999999999999", "00"), Err(TrackUrlError::Expiry));
        assert_eq!([verify("9999999999", ""), verify("9999999999", "é")], [Err(TrackUrlError::Key); 2]);
        for track in ["", "TR 1", "a/b", &"x".repeat(65)] {
            assert_eq!(microphone(track, "anna"), Err(TrackUrlError::Track), "{track}");
        }
        assert_eq!(microphone("TR_1", ""), Err(TrackUrlError::Identity));
        assert_eq!(microphone("TR_1", &"x".repeat(MAX_NAME_BYTES + 1)), Err(TrackUrlError::Identity));
        assert!([TrackUrlError::Track, TrackUrlError::Expiry].iter().all(|error| !error.is_unauthorized()));
    }

    /// Vector computed with `printf 'track-egress\nroom\nTR_1\n1800000300\nanna' | openssl dgst -sha256 -hmac one`.
    #[test]
    fn keys_are_those_of_openssl() {
        let anna = Microphone::new(Slug::parse("room").unwrap(), "TR_1", "anna").unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let url = anna.url("http://localhost", now, &ring(&[("a", "one")]));
        assert_eq!(query(&url)["key"], "e5e6d5563071b74032982b1829064854a7fb0eacb89b1b067ed83c9e17736b3f");
    }
}
