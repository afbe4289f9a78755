//! The publish key of a room: HMAC-SHA256 of its slug under `RTMP_PUBLISH_KEY`, in hex, with or without an expiry.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::target::TargetError;
use crate::config::Secret;
use crate::transcript::Slug;

/// Gives the publish key of a room: the HMAC of the slug, or of `slug:exp` with `exp` (unix time in seconds). A publisher
/// appends `?key={key}` (and `&exp={exp}`) to its stream name.
pub fn publish_key(secret: &Secret, slug: &Slug, exp: Option<u64>) -> String {
    hex::encode(keyed(secret, slug, exp).finalize().into_bytes())
}

/// Checks a key that a publisher has given, and its `exp`.
pub(super) fn verify(
    secret: &Secret,
    slug: &Slug,
    key: &Secret,
    exp: Option<&str>,
    now: SystemTime,
) -> Result<(), TargetError> {
    let given = hex::decode(key.expose()).map_err(|_| TargetError::KeyWrong)?;
    let exp = exp.map(|text| text.parse::<u64>().map_err(|_| TargetError::KeyWrong)).transpose()?;
    // In constant time.
    keyed(secret, slug, exp).verify_slice(&given).map_err(|_| TargetError::KeyWrong)?;
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if exp.is_some_and(|exp| exp <= now_s) {
        return Err(TargetError::KeyExpired);
    }
    Ok(())
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
    use std::time::Duration;

    use super::*;
    use crate::rtmp::target::Target;

    const NOW_S: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW_S)
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

    /// Vector computed with `printf %s demo | openssl dgst -sha256 -hmac top`.
    #[test]
    fn keys_are_those_of_openssl() {
        let key = publish_key(&Secret::new("top"), &Slug::parse("demo").unwrap(), None);
        assert_eq!(key, "63234b1d5598cbde95f862ac0b4d28b9b2ca8b0f1e439cc01ea6b4ba3b16160e");
    }
}
