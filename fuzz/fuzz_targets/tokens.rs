//! Tokens: what is let in was signed with the key's secret, by a computation of our own, and has not expired.
//!
//! Input: a byte (0: the rest is a token; 1: claims, which we sign with a wrong secret; 2: with the right one).

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use hmac::{Hmac, Mac};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sha2::Sha256;
use std::sync::OnceLock;
use stenocast::config::Secret;
use stenocast::livekit::token::{Claims, LEEWAY_S, TokenVerifier, sign};
use stenocast::transcript::Slug;
use stenocast_fuzz::{API_KEY, SECRET, catch_stack_overflow, secret};

/// A second secret of the same key, as while it is rotated.
const NEXT_SECRET: &str = "the one after it";

fn verifier() -> &'static TokenVerifier {
    static VERIFIER: OnceLock<TokenVerifier> = OnceLock::new();
    let keys = || [(API_KEY.to_owned(), secret()), (API_KEY.to_owned(), Secret::new(NEXT_SECRET))];
    VERIFIER.get_or_init(|| TokenVerifier::new(&keys()))
}

fn is_signed(token: &str) -> bool {
    let (signed, signature) = token.rsplit_once('.').expect("three parts");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    [SECRET, NEXT_SECRET].iter().any(|secret| {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length");
        mac.update(signed.as_bytes());
        mac.verify_slice(&signature).is_ok()
    })
}

fn check(claims: &Claims) {
    let now_s = Utc::now().timestamp() as u64;
    assert_eq!(claims.iss, API_KEY);
    assert!(claims.exp.saturating_add(LEEWAY_S + 1) >= now_s && claims.nbf <= now_s + LEEWAY_S + 1);
    claims.remaining(Utc::now());
    let demo = Slug::parse("demo").expect("a slug");
    if claims.may_view(&demo).is_ok() {
        assert!(claims.video.room == "demo" && claims.video.room_join && !claims.sub.is_empty());
    }
    if claims.may_admin(&demo).is_ok() {
        assert!(claims.video.room == "demo" && claims.video.room_admin);
    }
}

fuzz_target!(init: catch_stack_overflow(), |data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let token = match choice % 3 {
        0 => text.to_owned(),
        wrong_or_right => {
            let Ok(claims) = serde_json::from_str::<Value>(text) else { return };
            sign(&claims, &if wrong_or_right == 1 { Secret::new("a wrong one") } else { secret() })
        }
    };
    if let Ok(claims) = verifier().verify(&token) {
        assert!(choice % 3 != 1 && is_signed(&token), "it was not signed: {token}");
        check(&claims);
    }
});
