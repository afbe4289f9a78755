//! The API keys in use: verify what comes in, sign what goes out, and can be exchanged while everything runs.

use std::sync::Arc;

use parking_lot::RwLock;

use super::token::{Claims, TokenError, TokenVerifier, sign};
use crate::config::KeyPair;

/// The pairs that are valid now. Several are, while they are rotated.
pub struct KeyRing {
    inner: RwLock<Arc<Ring>>,
}

struct Ring {
    verifier: TokenVerifier,
    /// The pair that signs.
    first: KeyPair,
    keys: Vec<KeyPair>,
}

impl KeyRing {
    /// `pairs` is not empty; the first one signs.
    pub fn new(pairs: Vec<KeyPair>) -> Self {
        Self { inner: RwLock::new(Arc::new(Ring::new(pairs))) }
    }

    /// Checks signature, issuer and times. What the token allows is then asked of the [`Claims`].
    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.ring().verifier.verify(token)
    }

    /// The pair that signs what we send.
    pub fn signer(&self) -> KeyPair {
        self.ring().first.clone()
    }

    /// All pairs, for signatures over something else than access tokens.
    pub fn pairs(&self) -> Vec<KeyPair> {
        self.ring().keys.clone()
    }

    /// Exchanges them all; nobody who is in has to leave. `pairs` is not empty.
    pub fn exchange(&self, pairs: Vec<KeyPair>) {
        *self.inner.write() = Arc::new(Ring::new(pairs));
    }

    /// Signs claims that already name the signer as their issuer.
    pub fn sign<T: serde::Serialize>(&self, claims: &T) -> String {
        sign(claims, &self.ring().first.1)
    }

    fn ring(&self) -> Arc<Ring> {
        self.inner.read().clone()
    }
}

impl Ring {
    fn new(keys: Vec<KeyPair>) -> Self {
        let first = keys.first().cloned().expect("a configuration has at least one pair");
        Self { verifier: TokenVerifier::new(&keys), first, keys }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Secret;
    use crate::livekit::token::mint;
    use crate::transcript::Slug;

    #[test]
    fn exchanged_keys_open_and_the_old_ones_do_not() {
        let pair = |key: &str, secret: &str| (key.to_owned(), Secret::new(secret));
        let token = |pair: &KeyPair| {
            let room = Slug::parse("demo").unwrap();
            mint(&pair.0, &pair.1, "anna", None, &room, Duration::from_secs(60), false)
        };
        let (old, new) = (pair("old", "one"), pair("new", "two"));
        let ring = KeyRing::new(vec![old.clone()]);
        assert!(ring.verify(&token(&old)).is_ok());
        assert_eq!(ring.verify(&token(&new)), Err(TokenError::UnknownIssuer));
        ring.exchange(vec![new.clone(), old.clone()]);
        assert!(ring.verify(&token(&old)).is_ok() && ring.verify(&token(&new)).is_ok());
        assert_eq!(ring.signer().0, "new");
        ring.exchange(vec![new]);
        assert_eq!(ring.verify(&token(&old)), Err(TokenError::UnknownIssuer));
    }
}
