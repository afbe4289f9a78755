//! The API keys of LiveKit servers, with their secrets: from two settings and from a file that is read again.

use std::collections::HashMap;
use std::path::Path;

use super::reader::{Reader, is_around};
use super::{AuthConfig, ConfigFaults, Secret};

/// An API key and its secret.
pub type KeyPair = (String, Secret);

impl Reader<'_> {
    /// The pairs of the two settings.
    pub(super) fn set_keys(&mut self) -> Vec<KeyPair> {
        let mut pairs = Vec::new();
        match (self.text("LIVEKIT_API_KEY"), self.secret("LIVEKIT_API_SECRET")) {
            (Some(key), Some(secret)) => {
                self.check_token("LIVEKIT_API_KEY", key);
                pairs.push((key.to_owned(), secret));
            }
            (Some(_), None) => self.fault("LIVEKIT_API_KEY is set without LIVEKIT_API_SECRET".to_owned()),
            (None, Some(_)) => self.fault("LIVEKIT_API_SECRET is set without LIVEKIT_API_KEY".to_owned()),
            (None, None) => {}
        }
        let text = self.text("LIVEKIT_KEYS").unwrap_or("");
        pairs.extend(self.key_pairs("LIVEKIT_KEYS", text));
        pairs
    }

    /// The pairs of the file; a fault where it has none.
    pub(super) fn keys_of_file(&mut self, path: &Path) -> Vec<KeyPair> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let pairs = self.key_pairs("LIVEKIT_KEYS_FILE", &text);
                if pairs.is_empty() {
                    self.fault("LIVEKIT_KEYS_FILE has no pair; allowed: lines of `key: secret`".to_owned());
                }
                pairs
            }
            Err(error) => {
                self.fault(format!("LIVEKIT_KEYS_FILE cannot be read: {error}"));
                Vec::new()
            }
        }
    }

    /// Pairs of `key: secret`, separated by commas or lines; `#` begins a comment line, as in livekit-server's key files.
    fn key_pairs(&mut self, name: &str, text: &str) -> Vec<KeyPair> {
        let mut pairs = Vec::new();
        let given = text.split([',', '\n']).map(|pair| pair.trim_matches(is_around));
        for (n, pair) in (1..).zip(given.filter(|pair| !pair.is_empty() && !pair.starts_with('#'))) {
            match pair.split_once(':').map(|(k, s)| (k.trim_matches(is_around), s.trim_matches(is_around))) {
                Some((key, secret)) if !key.is_empty() && !secret.is_empty() => {
                    self.check_token(&format!("{name}, key {n}"), key);
                    self.check_secret(&format!("{name}, secret {n}"), secret);
                    pairs.push((key.to_owned(), Secret::new(secret)));
                }
                _ => self.fault(format!("{name}, pair {n}: allowed is `key: secret`")),
            }
        }
        pairs
    }
}

impl AuthConfig {
    /// All pairs, those of the file as they are there now. The error has no secret.
    pub fn read_keys_again(&self) -> Result<Vec<KeyPair>, ConfigFaults> {
        let mut reader = Reader { values: &HashMap::new(), faults: Vec::new() };
        let of_file = self.keys_file.as_deref().map(|path| reader.keys_of_file(path));
        if !reader.faults.is_empty() {
            return Err(ConfigFaults(reader.faults));
        }
        Ok(self.set_keys.iter().cloned().chain(of_file.unwrap_or_default()).collect())
    }
}
