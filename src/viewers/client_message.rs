//! Reads the messages that a viewer may send on its WebSocket.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::transcript::clean::MAX_NAME_BYTES;

/// Speakers in one report.
const MAX_SPEAKERS: usize = 64;
/// Messages that may come at once, and how many more each second.
const BURST: f64 = 60.0;
const REFILL_PER_S: f64 = 20.0;

/// A message from a viewer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Who is speaking now, as the viewer's LiveKit client says; the full list each time.
    ActiveSpeakers {
        /// Milliseconds since 1970 by the viewer's clock.
        #[serde(default)]
        at: Option<f64>,
        speakers: Vec<ReportedSpeaker>,
    },
    /// A newer token of the same holder.
    Auth { token: String },
    /// Asks for a ping at once: whether a connection has survived a laptop's sleep.
    Ping,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ReportedSpeaker {
    pub identity: String,
    /// 0..=1.
    #[serde(default)]
    pub level: Option<f32>,
    #[serde(default)]
    pub name: Option<String>,
}

impl ClientMessage {
    /// The error says what is allowed; it goes back to the viewer.
    pub fn parse(text: &str) -> Result<Self, String> {
        let message: Self = serde_json::from_str(text)
            .map_err(|error| format!("not a message: {error}; allowed: active_speakers, auth, ping"))?;
        if let Self::ActiveSpeakers { at, speakers } = &message {
            if speakers.len() > MAX_SPEAKERS {
                return Err(format!("speakers has {} items; at most {MAX_SPEAKERS} are allowed", speakers.len()));
            }
            if at.is_some_and(|at| !at.is_finite()) {
                return Err("at is not a time in ms".into());
            }
            speakers.iter().enumerate().try_for_each(|(n, speaker)| speaker.check(n))?;
        }
        Ok(message)
    }
}

impl ReportedSpeaker {
    fn check(&self, n: usize) -> Result<(), String> {
        let fits = |text: &str| text.len() <= MAX_NAME_BYTES;
        if self.identity.is_empty() || !fits(&self.identity) {
            return Err(format!("speakers[{n}].identity: 1 to {MAX_NAME_BYTES} bytes are allowed"));
        }
        if !self.name.as_deref().is_none_or(fits) {
            return Err(format!("speakers[{n}].name: at most {MAX_NAME_BYTES} bytes are allowed"));
        }
        if self.level.is_some_and(|level| !(0.0..=1.0).contains(&level)) {
            return Err(format!("speakers[{n}].level: a number from 0 to 1 is allowed"));
        }
        Ok(())
    }
}

/// The answer to a message that was not understood.
pub fn error_json(code: &str, message: &str) -> String {
    json!({"type": "error", "code": code, "message": message}).to_string()
}

/// Turns a viewer's wall clock into ours. A clock that is off by more than `MOST` counts as now.
pub fn instant_of(at_ms: Option<f64>, now_ms: i64, now: Instant) -> Instant {
    const MOST_MS: f64 = 5000.0;
    let age_ms = at_ms.map_or(0.0, |at| now_ms as f64 - at);
    if !(0.0..=MOST_MS).contains(&age_ms) {
        return now;
    }
    now.checked_sub(Duration::from_millis(age_ms as u64)).unwrap_or(now)
}

/// A viewer's wall clock, whatever it shows: of the reports of one connection, the one that was least late tells how far
/// off it is.
#[derive(Debug, Default)]
pub struct ReportClock {
    /// Our clock less the viewer's, at least.
    offset_ms: Option<f64>,
}

impl ReportClock {
    /// What a clock that was set back is followed by, with each report.
    const FOLLOW: f64 = 0.02;

    pub fn instant(&mut self, at_ms: Option<f64>, now_ms: i64, now: Instant) -> Instant {
        let Some(at_ms) = at_ms else { return now };
        let lag_ms = now_ms as f64 - at_ms;
        let known_ms = self.offset_ms.unwrap_or(lag_ms);
        let offset_ms = lag_ms.min(known_ms + (lag_ms - known_ms) * Self::FOLLOW);
        self.offset_ms = Some(offset_ms);
        instant_of(Some(at_ms + offset_ms), now_ms, now)
    }
}

/// A token bucket: [`BURST`] at once, [`REFILL_PER_S`] a second.
#[derive(Debug)]
pub struct FloodGate {
    left: f64,
    last: Instant,
}

impl FloodGate {
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, last: now }
    }

    /// False when there were too many.
    pub fn admit(&mut self, now: Instant) -> bool {
        let elapsed_s = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        self.left = (self.left + elapsed_s * REFILL_PER_S).min(BURST) - 1.0;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_viewers_clock_may_be_wrong_as_long_as_it_goes() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        // Three hours and four seconds behind.
        let mut clock = ReportClock::default();
        let mut age = |at: i64| {
            let then = clock.instant(Some((at - 10_804_000) as f64), 100_000, now);
            now.duration_since(then).as_millis()
        };
        assert_eq!([age(99_980), age(99_990), age(99_700), age(99_990)], [0, 0, 284, 0]);
        assert_eq!(age(-5_000_000), 0, "it was set back");
        let mut nonsense = ReportClock::default();
        for at in [1.0, 1e300, -1e300, 0.0] {
            nonsense.instant(Some(at), 100_000, now);
        }
        assert_eq!(nonsense.instant(None, 100_000, now), now);
    }

    #[test]
    fn speaker_reports_and_tokens_are_understood() {
        let text = r#"{"type":"active_speakers","at":1700000000000,"speakers":[{"identity":"anna","level":0.5}]}"#;
        let anna = ReportedSpeaker { identity: "anna".into(), level: Some(0.5), name: None };
        let report = ClientMessage::ActiveSpeakers { at: Some(1_700_000_000_000.0), speakers: vec![anna] };
        assert_eq!(ClientMessage::parse(text), Ok(report));
        let auth = ClientMessage::parse(r#"{"type":"auth","token":"x"}"#);
        assert_eq!(auth, Ok(ClientMessage::Auth { token: "x".into() }));
        assert_eq!(ClientMessage::parse(r#"{"type":"ping","n":1}"#), Ok(ClientMessage::Ping));
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        let many = vec![r#"{"identity":"a"}"#; 65].join(",");
        for (text, part) in [
            ("{", "not a message"),
            (r#"{"type":"shout"}"#, "shout"),
            (r#"{"type":"active_speakers"}"#, "speakers"),
            (r#"{"type":"active_speakers","speakers":[{"identity":""}]}"#, "speakers[0].identity"),
            (r#"{"type":"active_speakers","speakers":[{"identity":"a","level":7}]}"#, "speakers[0].level"),
            (&format!(r#"{{"type":"active_speakers","speakers":[{many}]}}"#), "at most 64"),
        ] {
            let error = ClientMessage::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_noticed_and_forgiven() {
        let mut gate = FloodGate::new(Instant::now());
        let admitted = (0..100).filter(|_| gate.admit(Instant::now())).count();
        assert_eq!(admitted, 60);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(gate.admit(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_viewers_clock_is_believed_within_reason() {
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        let age = |at| now.duration_since(instant_of(at, 100_000, now)).as_millis();
        assert_eq!([age(None), age(Some(99_600.0)), age(Some(1.0)), age(Some(200_000.0))], [0, 400, 0, 0]);
    }
}
