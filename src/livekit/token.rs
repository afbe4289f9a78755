//! LiveKit access tokens: what a viewer shows at the door, verified as livekit-server does, and minted for people
//! who try the server out.
//!
//! A token is a JWT signed with HS256 and the API secret's raw bytes; `iss` is the API key, so several key and secret
//! pairs can be valid at a time (rotation). `exp` is required, `nbf` respected, both with 60 s leeway. Times are
//! NumericDates (RFC 7519, section 2), which may have a fraction; a null claim or grant counts as absent.
//! Source: livekit-server's auth package and what `livekit-server-sdk` mints.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Secret;
use crate::transcript::Slug;

/// Clock difference that is forgiven, in seconds.
pub const LEEWAY_S: u64 = 60;
/// A longer text is refused without a look: tokens with metadata stay far below.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Longest word on claims that cannot be read.
const MAX_REASON_CHARS: usize = 200;

/// Why a token does not open a door. The text never holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("no token; send Authorization: Bearer, a bearer.{{jwt}} subprotocol, or ?token=")]
    Missing,
    #[error("the token is not a JWT")]
    Malformed,
    #[error("the token's claims cannot be read: {0}")]
    Claims(String),
    #[error("the token is not signed with HS256, the only algorithm allowed")]
    Algorithm,
    #[error("the token's issuer (iss) is not an API key of this server")]
    UnknownIssuer,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has no expiry (exp)")]
    NoExpiry,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
    #[error("the token has no identity (sub)")]
    NoIdentity,
    #[error("the token has no video.roomJoin grant")]
    NoJoinGrant,
    #[error("the token has no video.roomAdmin grant")]
    NoAdminGrant,
    #[error("the token is for another room")]
    OtherRoom,
    #[error("the token forbids subscribing (video.canSubscribe is false)")]
    CannotSubscribe,
}

impl TokenError {
    /// True when the token is genuine but does not allow this; false when it proves nothing.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::NoJoinGrant | Self::NoAdminGrant | Self::OtherRoom | Self::CannotSubscribe)
    }

    /// The `code` of the HTTP error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired => "token_expired",
            _ if self.is_forbidden() => "forbidden",
            _ => "token_invalid",
        }
    }
}

/// Claims of a verified token. Unknown ones are ignored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// The API key.
    #[serde(default, deserialize_with = "or_default")]
    pub iss: String,
    /// The participant's identity.
    #[serde(default, deserialize_with = "or_default")]
    pub sub: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Seconds since 1970; 0 when the token has none.
    #[serde(default, deserialize_with = "numeric_date")]
    pub exp: u64,
    #[serde(default, deserialize_with = "numeric_date")]
    pub nbf: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub video: VideoGrant,
    /// Digest of a webhook's body, in base64; access tokens have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Null is absent, as livekit-server (Go) reads it.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Whole seconds of a NumericDate; what lies before 1970 is 0.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    // A float that is out of range saturates.
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(0.0) as u64)
}

/// The part of LiveKit's video grant that matters here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VideoGrant {
    #[serde(deserialize_with = "or_default")]
    pub room: String,
    #[serde(deserialize_with = "or_default")]
    pub room_join: bool,
    #[serde(deserialize_with = "or_default")]
    pub room_admin: bool,
    /// Absent means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
}

impl Claims {
    fn check_times(&self, now_s: u64) -> Result<(), TokenError> {
        if self.exp.saturating_add(LEEWAY_S) < now_s {
            return Err(TokenError::Expired);
        }
        if self.nbf > now_s.saturating_add(LEEWAY_S) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// Checks that the token lets its holder read `room`.
    pub fn may_view(&self, room: &Slug) -> Result<(), TokenError> {
        if self.sub.is_empty() {
            return Err(TokenError::NoIdentity);
        }
        if !self.video.room_join {
            return Err(TokenError::NoJoinGrant);
        }
        if self.video.room != room.as_str() {
            return Err(TokenError::OtherRoom);
        }
        if self.video.can_subscribe == Some(false) {
            return Err(TokenError::CannotSubscribe);
        }
        Ok(())
    }

    /// Checks that the token lets its holder administer `room`.
    pub fn may_admin(&self, room: &Slug) -> Result<(), TokenError> {
        if !self.video.room_admin {
            return Err(TokenError::NoAdminGrant);
        }
        if self.video.room != room.as_str() {
            return Err(TokenError::OtherRoom);
        }
        Ok(())
    }

    /// Time that the token is good for from `now` on. A token past its `exp` that was let in by the leeway has the
    /// rest of the leeway.
    pub fn remaining(&self, now: DateTime<Utc>) -> Duration {
        let now_ms = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        let exp_ms = self.exp.saturating_mul(1000);
        let end_ms = if exp_ms > now_ms { exp_ms } else { exp_ms.saturating_add(LEEWAY_S * 1000) };
        Duration::from_millis(end_ms.saturating_sub(now_ms))
    }
}

/// Verifies tokens against the API keys of the configuration.
pub struct TokenVerifier {
    keys: Vec<(String, DecodingKey)>,
    validation: Validation,
}

impl TokenVerifier {
    pub fn new(keys: &[(String, Secret)]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // The library refuses `nbf: null` as malformed; times are checked in `Claims::check_times`.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        // The secret's bytes are the HMAC key: the one place where it is needed in clear.
        let keys = keys.iter().map(|(key, s)| (key.clone(), DecodingKey::from_secret(s.expose().as_bytes()))).collect();
        Self { keys, validation }
    }

    /// Checks signature, issuer and times. What the token allows is then asked of the [`Claims`].
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        check_algorithm(token)?;
        let issuer = issuer_of(token)?;
        let mut last = TokenError::UnknownIssuer;
        // One key may have two secrets while it is rotated.
        for (_, secret) in self.keys.iter().filter(|(key, _)| *key == issuer) {
            match jsonwebtoken::decode::<Claims>(token, secret, &self.validation) {
                Ok(data) => {
                    data.claims.check_times(now_s())?;
                    return Ok(data.claims);
                }
                Err(error) => last = explain(error.kind()),
            }
        }
        Err(last)
    }
}

fn explain(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
        // Which type was found, and which is wanted.
        ErrorKind::Json(error) => TokenError::Claims(error.to_string().chars().take(MAX_REASON_CHARS).collect()),
        _ => TokenError::Malformed,
    }
}

#[derive(Deserialize)]
struct UnverifiedHeader {
    alg: String,
}

#[derive(Deserialize)]
struct UnverifiedClaims {
    #[serde(default, deserialize_with = "or_default")]
    iss: String,
    exp: Option<serde_json::Value>,
}

/// "none" and asymmetric algorithms get their own message; the library would refuse them all the same.
fn check_algorithm(token: &str) -> Result<(), TokenError> {
    let header: UnverifiedHeader = part(token, 0)?;
    if header.alg == "HS256" { Ok(()) } else { Err(TokenError::Algorithm) }
}

/// Read before the signature is checked, only to choose the secret.
fn issuer_of(token: &str) -> Result<String, TokenError> {
    let claims: UnverifiedClaims = part(token, 1)?;
    if claims.exp.is_none() {
        return Err(TokenError::NoExpiry);
    }
    Ok(claims.iss)
}

fn part<T: serde::de::DeserializeOwned>(token: &str, index: usize) -> Result<T, TokenError> {
    let parts: Vec<&str> = token.split('.').collect();
    if parts.len() != 3 {
        return Err(TokenError::Malformed);
    }
    let bytes = URL_SAFE_NO_PAD.decode(parts[index]).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// Mints a token that lets `identity` view `room`, and administer it with `admin`, for `ttl` from now.
pub fn mint(
    key: &str,
    secret: &Secret,
    identity: &str,
    name: Option<&str>,
    room: &Slug,
    ttl: Duration,
    admin: bool,
) -> String {
    let now = now_s();
    let claims = Claims {
        iss: key.to_owned(),
        sub: identity.to_owned(),
        name: name.map(str::to_owned),
        exp: now + ttl.as_secs(),
        nbf: now,
        video: VideoGrant {
            room: room.as_str().to_owned(),
            room_join: true,
            room_admin: admin,
            can_subscribe: Some(true),
        },
        sha256: None,
    };
    sign(&claims, secret)
}

fn now_s() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(0)
}

/// Signs any claims that can be written as JSON.
pub fn sign<T: Serialize>(claims: &T, secret: &Secret) -> String {
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).expect("plain claims and an HMAC key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slug(text: &str) -> Slug {
        Slug::parse(text).unwrap()
    }

    fn verifier() -> TokenVerifier {
        TokenVerifier::new(&[
            ("old".into(), Secret::new("one")),
            ("new".into(), Secret::new("two")),
            ("new".into(), Secret::new("three")),
        ])
    }

    fn signed(secret: &str, claims: serde_json::Value) -> String {
        sign(&claims, &Secret::new(secret))
    }

    fn now() -> i64 {
        Utc::now().timestamp()
    }

    #[test]
    fn the_issuer_chooses_the_secret_and_a_key_may_have_two() {
        for (key, secret) in [("old", "one"), ("new", "two"), ("new", "three")] {
            let token =
                mint(key, &Secret::new(secret), "anna", Some("Anna"), &slug("demo"), Duration::from_secs(60), false);
            let claims = verifier().verify(&token).unwrap();
            assert_eq!((claims.sub.as_str(), claims.iss.as_str()), ("anna", key));
            assert_eq!(claims.may_view(&slug("demo")), Ok(()));
            assert_eq!(claims.may_view(&slug("other")), Err(TokenError::OtherRoom));
            assert_eq!(claims.may_admin(&slug("demo")), Err(TokenError::NoAdminGrant));
        }
    }

    #[test]
    fn what_proves_nothing_is_refused_with_its_reason() {
        let video = json!({"roomJoin": true, "room": "demo"});
        let cases = [
            (signed("two", json!({"iss": "old", "sub": "a", "exp": now() + 9, "video": video})), TokenError::Signature),
            (signed("one", json!({"iss": "who", "sub": "a", "exp": now() + 9})), TokenError::UnknownIssuer),
            (signed("one", json!({"iss": "old", "sub": "a"})), TokenError::NoExpiry),
            (signed("one", json!({"iss": "old", "sub": "a", "exp": now() - 70})), TokenError::Expired),
            (
                signed("one", json!({"iss": "old", "sub": "a", "exp": now() + 99, "nbf": now() + 70})),
                TokenError::NotYetValid,
            ),
            ("a.b".into(), TokenError::Malformed),
            ("a.b.c".into(), TokenError::Malformed),
            (String::new(), TokenError::Missing),
        ];
        for (token, error) in cases {
            assert_eq!(verifier().verify(&token), Err(error));
        }
    }

    #[test]
    fn other_algorithms_are_refused() {
        let claims = json!({"iss": "old", "sub": "a", "exp": now() + 60, "video": {"roomJoin": true, "room": "demo"}});
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for alg in ["none", "None", "RS256", "HS512"] {
            let token = format!("{}.{}.", encode(&json!({"alg": alg})), encode(&claims));
            assert_eq!(verifier().verify(&token), Err(TokenError::Algorithm));
        }
        let key = EncodingKey::from_secret(b"one");
        let hs384 = jsonwebtoken::encode(&Header::new(Algorithm::HS384), &claims, &key).unwrap();
        assert_eq!(verifier().verify(&hs384), Err(TokenError::Algorithm));
    }

    #[test]
    fn leeway_is_a_minute_and_runs_out() {
        let token = signed("one", json!({"iss": "old", "sub": "a", "exp": now() - 50, "nbf": now() + 50}));
        let claims = verifier().verify(&token).unwrap();
        let left = claims.remaining(Utc::now()).as_secs();
        assert!((7..=10).contains(&left), "{left}");
        let fresh = signed("one", json!({"iss": "old", "sub": "a", "exp": now() + 30}));
        let left = verifier().verify(&fresh).unwrap().remaining(Utc::now()).as_secs();
        assert!((28..=30).contains(&left), "{left}");
    }

    #[test]
    fn numeric_dates_have_fractions_and_null_is_absent() {
        let video = json!({"roomJoin": true, "room": "demo"});
        let soon = now() as f64 + 30.5;
        for claims in [
            json!({"iss": "old", "sub": "a", "exp": soon, "video": video}),
            json!({"iss": "old", "sub": "a", "exp": soon, "nbf": null, "iat": null, "name": null, "video": video}),
            json!({"iss": "old", "sub": "a", "exp": soon, "nbf": now() as f64 - 0.5, "metadata": null, "video": video}),
            json!({"iss": "old", "sub": "a", "exp": 1e300, "nbf": -1, "video": {"roomJoin": true, "room": "demo",
                "roomAdmin": null, "canSubscribe": null, "canPublishSources": null}}),
        ] {
            let read = verifier().verify(&signed("one", claims.clone())).unwrap_or_else(|e| panic!("{claims}: {e}"));
            assert_eq!(read.may_view(&slug("demo")), Ok(()), "{claims}");
        }
        for (claims, error) in [
            (json!({"iss": "old", "exp": now() as f64 - 70.5}), TokenError::Expired),
            (json!({"iss": "old", "exp": 1.5, "nbf": now() + 900}), TokenError::Expired),
            (json!({"iss": "old", "exp": -1}), TokenError::Expired),
            (json!({"iss": "old", "exp": 0}), TokenError::Expired),
            (json!({"iss": "old", "exp": null}), TokenError::NoExpiry),
            (json!({"iss": null, "exp": soon}), TokenError::UnknownIssuer),
            (json!({"iss": "old", "exp": soon, "nbf": soon + 90.0}), TokenError::NotYetValid),
        ] {
            assert_eq!(verifier().verify(&signed("one", claims.clone())), Err(error), "{claims}");
        }
        for (video, error) in [
            (json!(null), TokenError::NoJoinGrant),
            (json!({"roomJoin": null, "room": "demo"}), TokenError::NoJoinGrant),
            (json!({"roomJoin": true, "room": null}), TokenError::OtherRoom),
        ] {
            let read =
                verifier().verify(&signed("one", json!({"iss": "old", "sub": "a", "exp": soon, "video": video})));
            assert_eq!(read.unwrap().may_view(&slug("demo")), Err(error), "{video}");
        }
        let wrong = verifier().verify(&signed("one", json!({"iss": "old", "sub": "a", "exp": "soon"}))).unwrap_err();
        assert!(wrong.to_string().contains("invalid type: string"), "{wrong}");
    }

    #[test]
    fn grants_are_checked_one_by_one() {
        let claims = |sub: &str, video: serde_json::Value| -> Claims {
            serde_json::from_value(json!({"iss": "k", "sub": sub, "exp": 1, "video": video})).unwrap()
        };
        let demo = slug("demo");
        let join = json!({"roomJoin": true, "room": "demo"});
        assert_eq!(claims("a", join.clone()).may_view(&demo), Ok(()));
        assert_eq!(claims("", join).may_view(&demo), Err(TokenError::NoIdentity));
        assert_eq!(claims("a", json!({"room": "demo"})).may_view(&demo), Err(TokenError::NoJoinGrant));
        let deaf = json!({"roomJoin": true, "room": "demo", "canSubscribe": false});
        assert_eq!(claims("a", deaf).may_view(&demo), Err(TokenError::CannotSubscribe));
        assert_eq!(claims("", json!({"roomAdmin": true, "room": "demo"})).may_admin(&demo), Ok(()));
        assert_eq!(claims("", json!({"roomAdmin": true})).may_admin(&demo), Err(TokenError::OtherRoom));
    }
}
