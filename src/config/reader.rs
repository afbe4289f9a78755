//! Reads single values and notes what is wrong with them: never the value of a secret, always what is allowed.

use std::collections::HashMap;
use std::time::Duration;

use super::{DefaultValue, SETTINGS, Secret};

pub(super) struct Reader<'a> {
    pub(super) values: &'a HashMap<String, String>,
    pub(super) faults: Vec<String>,
}

impl<'a> Reader<'a> {
    /// The text that somebody has set; None where the default applies.
    pub(super) fn given(&self, name: &str) -> Option<&'a str> {
        debug_assert!(SETTINGS.iter().any(|s| s.name == name), "{name} is not in SETTINGS");
        self.values.get(name).map(|v| v.trim_matches(is_around)).filter(|v| !v.is_empty())
    }

    /// The text that is set, or the table's default; None where there is neither.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.given(name).or_else(|| default_of(name))
    }

    /// The text of a setting whose default stands in the table.
    pub(super) fn required(&self, name: &str) -> &'a str {
        self.text(name).unwrap_or_else(|| panic!("{name} has a default in the table"))
    }

    pub(super) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    /// Reads any type that is read from text.
    pub(super) fn parse<T: std::str::FromStr>(&mut self, name: &str, allowed: &str) -> T {
        let text = self.required(name);
        text.parse().unwrap_or_else(|_| {
            self.fault(format!("{name} is {text:?}; allowed: {allowed}"));
            let valid = default_of(name).and_then(|default| default.parse().ok());
            valid.unwrap_or_else(|| panic!("the default of {name} can be read"))
        })
    }

    pub(super) fn log_filter(&mut self) -> String {
        let text = self.required("RUST_LOG");
        if tracing_subscriber::EnvFilter::try_new(text).is_err() {
            self.fault(format!(
                "RUST_LOG is {text:?}; allowed: error, warn, info, debug, trace, or such as stenocast=debug"
            ));
        }
        text.to_owned()
    }

    pub(super) fn languages(&mut self, name: &str) -> Vec<String> {
        let codes = self.list(name);
        let is_odd = |code: &&String| !matches!(code.len(), 2 | 3) || !code.bytes().all(|b| b.is_ascii_lowercase());
        if let Some(odd) = codes.iter().find(is_odd) {
            self.fault(format!("{name} has {odd:?}; allowed: a comma list of ISO codes such as en,fr"));
        }
        codes
    }

    /// Reads a whole number; after a fault, the smallest that is allowed.
    pub(super) fn within(&mut self, name: &str, low: u64, high: u64) -> u64 {
        let text = self.required(name);
        match text.parse::<u64>() {
            Ok(n) if (low..=high).contains(&n) => n,
            _ => {
                self.fault(format!("{name} is {text:?}; allowed: a whole number from {low} to {high}"));
                low
            }
        }
    }

    /// Reads a whole number whose default is computed.
    pub(super) fn within_or(&mut self, name: &str, computed: u64, low: u64, high: u64) -> u64 {
        if self.given(name).is_some() { self.within(name, low, high) } else { computed }
    }

    /// None where nothing is set.
    pub(super) fn offset(&mut self, name: &str, most: i64) -> Option<i64> {
        let text = self.given(name)?;
        let value = text.parse().ok().filter(|value| (-most..=most).contains(value));
        if value.is_none() {
            self.fault(format!("{name} is {text:?}; allowed: a whole number from -{most} to {most}"));
        }
        value
    }

    pub(super) fn millis(&mut self, name: &str, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.within(name, low, high))
    }

    /// `1048576`, `512KiB`, `4MiB`, `1GiB`, also `MB` and the like (decimal).
    pub(super) fn bytes(&mut self, name: &str) -> u64 {
        let text = self.required(name);
        parse_bytes(text).filter(|n| *n > 0).unwrap_or_else(|| {
            self.fault(format!("{name} is {text:?}; allowed: a number of bytes such as 1048576, 512KiB, 4MiB or 1GiB"));
            1
        })
    }

    /// `90s`, `30m`, `24h`, `7d`; after a fault, the shortest that is allowed.
    pub(super) fn duration(&mut self, name: &str, (low, high): (&str, &str)) -> Duration {
        let text = self.required(name);
        let bound = |text: &str| parse_duration(text).unwrap_or_else(|| panic!("{name}: {text} is a duration"));
        match parse_duration(text) {
            Some(duration) if (bound(low)..=bound(high)).contains(&duration) => duration,
            _ => {
                self.fault(format!(
                    "{name} is {text:?}; allowed: a number with h, m, s or d, from {low} to {high}, such as 24h"
                ));
                bound(low)
            }
        }
    }

    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let text = self.required(name);
        if let Some((_, value)) = choices.iter().find(|(label, _)| *label == text) {
            return *value;
        }
        let labels: Vec<_> = choices.iter().map(|(label, _)| *label).collect();
        self.fault(format!("{name} is {text:?}; allowed: {}", labels.join(", ")));
        choices[0].1
    }

    /// A token that travels in an HTTP header. What was pasted with it is a fault at the start, not a refusal by somebody
    /// else later.
    pub(super) fn token(&mut self, name: &str) -> Option<Secret> {
        let text = self.text(name)?;
        self.check_token(name, text);
        Some(Secret::new(text))
    }

    pub(super) fn check_token(&mut self, name: &str, text: &str) {
        match text.chars().position(|c| !c.is_ascii_graphic()) {
            Some(at) => self.fault(format!(
                "{name} has a space, a line break or a letter beyond ASCII at place {}; allowed: visible ASCII characters",
                at + 1
            )),
            None => self.check_secret(name, text),
        }
    }

    /// A secret that signs: any text of one line.
    pub(super) fn secret(&mut self, name: &str) -> Option<Secret> {
        let text = self.text(name)?;
        self.check_secret(name, text);
        Some(Secret::new(text))
    }

    pub(super) fn check_secret(&mut self, name: &str, text: &str) {
        if let Some(at) = text.chars().position(char::is_control) {
            self.fault(format!(
                "{name} has a line break or another control character at place {}; allowed: one line",
                at + 1
            ));
        } else if text.starts_with(['"', '\'']) || text.ends_with(['"', '\'']) {
            self.fault(format!(
                "{name} begins or ends with a quotation mark, which env files keep; allowed: the bare value"
            ));
        }
    }

    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or("");
        text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect()
    }

    /// `*`, or origins as a browser sends them: scheme, host and port, no path.
    pub(super) fn origins(&mut self, name: &str) -> Vec<String> {
        let origins = self.list(name);
        let is_origin = |text: &str| {
            let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
            text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ', '@']))
        };
        for bad in origins.iter().filter(|origin| !is_origin(origin)) {
            self.fault(format!("{name} has {bad:?}; allowed: * or origins such as https://example.org"));
        }
        origins
    }

    /// A path of plain segments, with its first slash and without its last; `/` is empty.
    pub(super) fn base_path(&mut self, name: &str) -> String {
        let path = self.text(name).unwrap_or("").trim_matches('/');
        let is_plain = |segment: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
            !segment.is_empty() && segment.chars().all(plain) && !segment.chars().all(|c| c == '.')
        };
        if path.is_empty() {
            return String::new();
        }
        if !path.split('/').all(is_plain) {
            self.fault(format!("{name}: a path of A-Z a-z 0-9 - _ . ~ is allowed, such as /captions"));
        }
        format!("/{path}")
    }

    /// The servers of one NATS cluster.
    pub(super) fn nats_urls(&mut self, name: &str) -> Vec<Secret> {
        let urls = self.list(name);
        for (n, fault) in (1..).zip(&urls).filter_map(|(n, url)| Some((n, nats_url_fault(url)?))) {
            self.fault(format!(
                "{name}, server {n}, {fault}; allowed: nats://host:4222 or tls://host:4222, with user:password@ before the host where it is asked for"
            ));
        }
        urls.into_iter().map(Secret::new).collect()
    }

    pub(super) fn url(&mut self, name: &str, text: &str) -> String {
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let is_host = |host: &str| !host.is_empty() && !host.starts_with('/') && !host.contains(char::is_whitespace);
        if !host.is_some_and(is_host) {
            self.fault(format!("{name} is not a URL; allowed: http://… or https://…"));
        } else if host.is_some_and(|host| host.split('/').next().is_some_and(|host| host.contains('@'))) {
            self.fault(format!("{name} has a user name or password in it; allowed: http://host… or https://host…"));
        }
        text.trim_end_matches('/').to_owned()
    }
}

/// Says what is wrong with the URL of a NATS server, without a word of it: there may be a password in it.
fn nats_url_fault(text: &str) -> Option<&'static str> {
    let Some((scheme, rest)) = text.split_once("://") else { return Some("has no scheme") };
    if !matches!(scheme, "nats" | "tls") {
        return Some("has another scheme");
    }
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let odd = host.is_empty() || host.contains(['/', '?', '#']) || text.contains(|c: char| !c.is_ascii_graphic());
    let parsed = text.parse::<async_nats::ServerAddr>().ok().filter(|addr| !odd && !addr.host().is_empty());
    parsed.is_none().then_some("is no URL of a server")
}

/// The text that is read where nobody sets anything.
fn default_of(name: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|s| s.name == name).and_then(|s| match s.default {
        DefaultValue::Text(text) => Some(text),
        DefaultValue::Unset | DefaultValue::Computed(_) => None,
    })
}

/// Tells the characters that pasting leaves around a value: white space, a byte order mark, a zero-width space.
pub(super) fn is_around(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '\u{feff}' | '\u{200b}')
}

/// `1048576`, `512KiB`, `1GB`; None when it is neither.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `90s`, `30m`, `24h`, `7d`; None when it is none of them.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number = text[..text.len() - 1].trim_end();
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| number.parse::<u64>().ok()?.checked_mul(seconds)).flatten().map(Duration::from_secs)
}
