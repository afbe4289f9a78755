//! Reads `DATABASE_URL` in the dialects that hosts and libraries hand out: libpq's, Prisma's, node-postgres', JDBC's.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs};

use super::tls::SslMode;

const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];
const DEFAULT_PORT: u16 = 5432;
const FORM: &str = "allowed: postgres://user:password@host:port/database?sslmode=require, \
                    with special characters of user and password percent-encoded";

const APPLICATION_NAME: &str = "stenocast";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Unacknowledged data for so long: the peer is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);

/// The use that is made of a parameter.
#[derive(Clone, Copy)]
enum Use {
    Honoured(fn(&mut PostgresUrl, &str) -> Result<(), &'static str>),
    /// It changes nothing here, and why.
    Ignored(&'static str),
    /// To ignore it would do something else than was asked for.
    Refused(&'static str),
}
use Use::{Honoured, Ignored, Refused};

const UNNAMED: &str = "statements are never named here";
const POOL: &str = "DATABASE_POOL and connection_limit say how many connections there are";
const NO_GSS: &str = "there is no GSSAPI here; TLS is used";

/// The parameters of a URL.
#[rustfmt::skip]
const PARAMETERS: &[(&str, Use)] = &[
    ("host", Honoured(PostgresUrl::hosts)),
    ("hostaddr", Honoured(|u, v| each(v, |v| { u.config.hostaddr(v.parse().map_err(|_| "IP addresses")?); Ok(()) }))),
    ("port", Honoured(PostgresUrl::ports)),
    ("user", Honoured(|u, v| { u.config.user(v); Ok(()) })),
    ("password", Honoured(|u, v| { u.config.password(v); Ok(()) })),
    ("dbname", Honoured(|u, v| { u.config.dbname(v); Ok(()) })),
    ("application_name", Honoured(|u, v| { u.config.application_name(v); Ok(()) })),
    ("fallback_application_name", Ignored("application_name says it")),
    ("connect_timeout", Honoured(|u, v| { if let Some(s) = seconds(v)? { u.config.connect_timeout(s); } Ok(()) })),
    ("target_session_attrs", Honoured(|u, v| { u.config.target_session_attrs(target(v)?); Ok(()) })),
    ("load_balance_hosts", Honoured(|u, v| { u.config.load_balance_hosts(balance(v)?); Ok(()) })),
    ("keepalives", Honoured(|u, v| { u.config.keepalives(number(v)? != 0); Ok(()) })),
    ("keepalives_idle", Honoured(|u, v| { if let Some(s) = seconds(v)? { u.config.keepalives_idle(s); } Ok(()) })),
    ("keepalives_interval", Honoured(|u, v| { if let Some(s) = seconds(v)? { u.config.keepalives_interval(s); } Ok(()) })),
    ("keepalives_count", Honoured(|u, v| { u.config.keepalives_retries(number(v)?); Ok(()) })),
    ("tcp_user_timeout", Honoured(|u, v| { u.config.tcp_user_timeout(Duration::from_millis(number(v)?.into())); Ok(()) })),
    // encryption
    ("sslmode", Honoured(|u, v| { u.mode = Some(SslMode::parse(v).ok_or(SslMode::ALLOWED)?); Ok(()) })),
    ("ssl", Honoured(|u, v| { u.mode = u.mode.or(Some(ssl(v)?)); Ok(()) })),
    ("sslaccept", Honoured(|u, v| { u.mode = Some(accept(v)?); Ok(()) })),
    ("sslrootcert", Honoured(|u, v| { u.root_cert = Some(PathBuf::from(v)); Ok(()) })),
    ("sslcert", Honoured(|u, v| { u.certificate = Some(PathBuf::from(v)); Ok(()) })),
    ("sslkey", Honoured(|u, v| { u.key = Some(PathBuf::from(v)); Ok(()) })),
    ("sslnegotiation", Honoured(|u, v| { u.config.ssl_negotiation(negotiation(v)?); Ok(()) })),
    ("channel_binding", Honoured(|u, v| { u.config.channel_binding(binding(v)?); Ok(()) })),
    ("uselibpqcompat", Ignored("sslmode means what libpq means by it, always")),
    ("sslcompression", Ignored("there is no compression")),
    ("sslsni", Ignored("the server's name is always sent")),
    ("ssl_min_protocol_version", Ignored("TLS is 1.2 or newer")),
    ("sslcertmode", Ignored("a client certificate is sent where sslcert names one")),
    ("sslcrl", Refused("revocation lists are not read here")),
    ("sslcrldir", Refused("revocation lists are not read here")),
    ("sslpassword", Refused("keys with a password are not read here")),
    ("sslidentity", Refused("PKCS 12 files are not read here; allowed: sslcert and sslkey, both PEM")),
    ("gssencmode", Honoured(|_, v| if v == "require" { Err("disable, prefer: there is no GSSAPI here") } else { Ok(()) })),
    ("gsslib", Ignored(NO_GSS)),
    ("gssdelegation", Ignored(NO_GSS)),
    ("krbsrvname", Ignored(NO_GSS)),
    ("require_auth", Refused("the way to log in is the server's choice here")),
    ("passfile", Refused("password files are not read here; allowed: user:password@")),
    ("service", Refused("service files are not read here")),
    ("servicefile", Refused("service files are not read here")),
    ("replication", Refused("rows are written by ordinary connections")),
    // where the tables are, and how long a statement may take
    ("schema", Honoured(|u, v| { u.schema(v); Ok(()) })),
    ("currentSchema", Honoured(|u, v| { u.schema(v); Ok(()) })),
    ("search_path", Honoured(|u, v| { u.local("search_path", v); Ok(()) })),
    ("statement_timeout", Honoured(|u, v| { u.local("statement_timeout", v); Ok(()) })),
    ("lock_timeout", Honoured(|u, v| { u.local("lock_timeout", v); Ok(()) })),
    ("idle_in_transaction_session_timeout", Honoured(|u, v| { u.local("idle_in_transaction_session_timeout", v); Ok(()) })),
    ("role", Honoured(|u, v| { u.local("role", v); Ok(()) })),
    ("options", Honoured(PostgresUrl::options)),
    // pools
    ("connection_limit", Honoured(|u, v| { u.connection_limit = Some(at_least_one(v)?); Ok(()) })),
    ("pool_timeout", Honoured(|u, v| { u.pool_timeout = seconds(v)?; Ok(()) })),
    ("max_idle_connection_lifetime", Honoured(|u, v| { u.idle_timeout = seconds(v)?; Ok(()) })),
    ("pgbouncer", Ignored(UNNAMED)),
    ("statement_cache_size", Ignored(UNNAMED)),
    ("prepared_statement_cache_size", Ignored(UNNAMED)),
    ("statement_cache_capacity", Ignored(UNNAMED)),
    ("statement_cache_mode", Ignored(UNNAMED)),
    ("default_query_exec_mode", Ignored(UNNAMED)),
    ("prepared_statements", Ignored(UNNAMED)),
    ("prepareThreshold", Ignored(UNNAMED)),
    ("prepare_threshold", Ignored(UNNAMED)),
    ("workaround", Ignored(UNNAMED)),
    ("pool_max_conns", Ignored(POOL)),
    ("pool_size", Ignored(POOL)),
    ("max_connections", Ignored(POOL)),
    ("single_use_connections", Ignored("nothing is left behind on a connection")),
    ("socket_timeout", Ignored("no answer for 15 s counts as none")),
    ("client_encoding", Ignored("text is UTF-8, always; the server converts it")),
    ("timezone", Ignored("times are instants, in UTC")),
];

/// A URL, read.
#[derive(Default)]
pub struct PostgresUrl {
    pub config: Config,
    mode: Option<SslMode>,
    root_cert: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The most connections at a time.
    pub connection_limit: Option<usize>,
    /// Longest wait for one of them.
    pub pool_timeout: Option<Duration>,
    /// An idle connection is closed after so long.
    pub idle_timeout: Option<Duration>,
    /// The schema that is made when there is none of the name.
    pub schema: Option<String>,
    /// Run-time settings, and their values: for each transaction, since a pooler refuses them at the start of a session.
    locals: Vec<(String, String)>,
    hosts: Vec<String>,
    ports: Vec<u16>,
    /// Remarks for whoever reads the log.
    pub notes: Vec<String>,
}

impl PostgresUrl {
    /// Err: what is wrong with it, without a word of it that may be secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).ok_or(FORM)?;
        let (credentials, rest) = split_credentials(rest);
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        let mut url = Self::default();
        url.config.application_name(APPLICATION_NAME).connect_timeout(CONNECT_TIMEOUT);
        url.config.tcp_user_timeout(TCP_USER_TIMEOUT).keepalives_idle(KEEPALIVES_IDLE);
        if let Some(credentials) = credentials {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            if !user.is_empty() {
                url.config.user(decode(user)?);
            }
            if !password.is_empty() {
                url.config.password(percent_decode_str(password).collect::<Vec<u8>>());
            }
        }
        url.authority(hosts)?;
        if !database.is_empty() {
            url.config.dbname(decode(database)?);
        }
        for parameter in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            url.parameter(&decode(name)?, &decode(value)?)?;
        }
        url.finish()
    }

    /// `host:port,[::1]:port,%2Fvar%2Frun`.
    fn authority(&mut self, text: &str) -> Result<(), String> {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (host, port) = match part.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((host, port)) => (host, port.strip_prefix(':')),
                None => part.rsplit_once(':').map_or((part, None), |(host, port)| (host, Some(port))),
            };
            let port = port.filter(|p| !p.is_empty()).map_or(Ok(DEFAULT_PORT), |p| p.parse().map_err(|_| FORM))?;
            self.ports.push(port);
            if !host.is_empty() {
                self.hosts.push(decode(host)?);
            }
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        match PARAMETERS.iter().find(|(known, _)| *known == name).map(|(_, what)| *what) {
            Some(Honoured(_)) if value.is_empty() => Ok(()),
            Some(Honoured(apply)) => {
                apply(self, value).map_err(|allowed| format!("{name} is not understood; allowed: {allowed}"))
            }
            Some(Ignored(why)) => {
                self.notes.push(format!("{name} is ignored: {why}"));
                Ok(())
            }
            Some(Refused(why)) => Err(format!("{name} is not supported: {why}")),
            // What was meant to protect the connection must not be lost to a slip of the pen.
            None if name.to_lowercase().starts_with("ssl") => {
                let known: Vec<_> = PARAMETERS.iter().map(|(n, _)| *n).filter(|n| n.starts_with("ssl")).collect();
                Err(format!("it has an unknown parameter {name:?}; allowed: {}", known.join(", ")))
            }
            None => {
                self.notes.push(format!("{name} is ignored: it is unknown here"));
                Ok(())
            }
        }
    }

    /// Hosts among the parameters outdo those before the path, as in libpq: `@localhost/db?host=/cloudsql/…`.
    fn hosts(&mut self, value: &str) -> Result<(), &'static str> {
        self.hosts = value.split(',').map(str::to_owned).collect();
        Ok(())
    }

    fn ports(&mut self, value: &str) -> Result<(), &'static str> {
        let port = |p: &str| if p.is_empty() { Ok(DEFAULT_PORT) } else { p.parse().map_err(|_| "ports, 1 to 65535") };
        self.ports = value.split(',').map(port).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn schema(&mut self, name: &str) {
        self.schema = Some(name.to_owned());
        self.local("search_path", &format!("\"{}\"", name.replace('"', "\"\"")));
    }

    fn local(&mut self, name: &str, value: &str) {
        self.locals.push((name.to_owned(), value.to_owned()));
    }

    /// `-c name=value` and `--name=value` are for the server, and hold in each transaction. The rest (such as
    /// `endpoint=…`) is for a proxy at the host, and goes out at the start of a session.
    fn options(&mut self, value: &str) -> Result<(), &'static str> {
        let mut words = value.split_whitespace();
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|s| !s.is_empty())) {
                Some(setting) => Some(setting),
                None if word == "-c" => words.next(),
                None => None,
            };
            let Some(setting) = setting else {
                rest.push(word);
                continue;
            };
            let setting = setting.split_once('=').filter(|(name, _)| is_setting(name));
            let (name, value) = setting.ok_or("-c name=value, and words without a dash")?;
            self.local(&name.replace('-', "_"), value);
        }
        if !rest.is_empty() {
            self.config.options(rest.join(" "));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Self, String> {
        if self.hosts.is_empty() && self.config.get_hostaddrs().is_empty() {
            return Err(format!("it names no host; {FORM}, or ?host=/var/run/postgresql for a socket"));
        }
        for host in &self.hosts {
            self.config.host(host);
        }
        // One for all, or one for each.
        if self.ports.is_empty() {
            self.ports.push(DEFAULT_PORT);
        }
        if self.ports.len() > 1 && self.ports.len() != self.hosts.len().max(self.config.get_hostaddrs().len()) {
            return Err("it has not as many ports as hosts; allowed: one port for all, or one for each".to_owned());
        }
        for port in &self.ports {
            self.config.port(*port);
        }
        if self.is_local() && self.mode.is_some_and(|mode| mode != SslMode::Disable) {
            self.notes.push("sslmode is ignored: the host is a socket on this machine".to_owned());
        }
        Ok(self)
    }

    fn is_local(&self) -> bool {
        let hosts = self.config.get_hosts();
        !hosts.is_empty() && hosts.iter().all(|host| matches!(host, Host::Unix(_)))
    }

    /// Protection of the connection, as libpq reads it: a root certificate is there to be checked against.
    pub fn ssl(&self) -> (SslMode, Option<&PathBuf>) {
        // libpq's word for the authorities that the system knows; ours are always there.
        let is_system = self.root_cert.as_ref().is_some_and(|path| path.as_os_str() == "system");
        let mode = match self.mode {
            _ if self.is_local() => SslMode::Disable,
            None if is_system => SslMode::VerifyFull,
            Some(SslMode::Require) if is_system => SslMode::VerifyFull,
            Some(SslMode::Require) if self.root_cert.is_some() => SslMode::VerifyCa,
            mode => mode.unwrap_or(SslMode::Prefer),
        };
        (mode, self.root_cert.as_ref().filter(|_| !is_system))
    }

    /// SQL that gives a transaction the settings of this URL; empty without any.
    pub fn settings(&self) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let set = |(name, value): &(String, String)| {
            let value = value.replace('\\', "\\\\");
            format!("set_config({}, E{}, true)", quoted(name), quoted(&value))
        };
        let settings: Vec<_> = self.locals.iter().map(set).collect();
        if settings.is_empty() { String::new() } else { format!("SELECT {};", settings.join(", ")) }
    }
}

/// The user's part and the rest. A password may hold an `@` or a `?` that was not encoded: the last `@` before the path
/// is the one.
fn split_credentials(text: &str) -> (Option<&str>, &str) {
    let Some(first) = text.find('@') else { return (None, text) };
    // A parameter may hold one, too.
    if text[..first].split_once('?').is_some_and(|(place, _)| place.contains('/')) {
        return (None, text);
    }
    let path = text[first..].find(['/', '?']).map_or(text.len(), |at| first + at);
    let last = text[..path].rfind('@').unwrap_or(first);
    (Some(&text[..last]), &text[last + 1..])
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(std::borrow::Cow::into_owned).map_err(|_| format!("it is not UTF-8 when decoded; {FORM}"))
}

fn is_setting(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn each(value: &str, mut apply: impl FnMut(&str) -> Result<(), &'static str>) -> Result<(), &'static str> {
    value.split(',').try_for_each(&mut apply)
}

fn number(value: &str) -> Result<u32, &'static str> {
    value.parse().map_err(|_| "a whole number")
}

fn at_least_one(value: &str) -> Result<usize, &'static str> {
    let number = value.parse().ok().filter(|n| *n >= 1);
    number.ok_or("a whole number from 1")
}

/// None: 0, the default, or no limit.
fn seconds(value: &str) -> Result<Option<Duration>, &'static str> {
    let seconds: i64 = value.parse().map_err(|_| "a whole number of seconds")?;
    Ok(u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs))
}

fn target(value: &str) -> Result<TargetSessionAttrs, &'static str> {
    match value {
        "any" => Ok(TargetSessionAttrs::Any),
        "read-write" | "primary" => Ok(TargetSessionAttrs::ReadWrite),
        _ => Err("any, read-write, primary: rows are written"),
    }
}

fn balance(value: &str) -> Result<LoadBalanceHosts, &'static str> {
    match value {
        "disable" => Ok(LoadBalanceHosts::Disable),
        "random" => Ok(LoadBalanceHosts::Random),
        _ => Err("disable, random"),
    }
}

fn negotiation(value: &str) -> Result<SslNegotiation, &'static str> {
    match value {
        "postgres" => Ok(SslNegotiation::Postgres),
        "direct" => Ok(SslNegotiation::Direct),
        _ => Err("postgres, direct"),
    }
}

fn binding(value: &str) -> Result<ChannelBinding, &'static str> {
    match value {
        "disable" => Ok(ChannelBinding::Disable),
        "prefer" => Ok(ChannelBinding::Prefer),
        "require" => Ok(ChannelBinding::Require),
        _ => Err("disable, prefer, require"),
    }
}

/// node-postgres' and asyncpg's.
fn ssl(value: &str) -> Result<SslMode, &'static str> {
    match value {
        "true" | "1" => Ok(SslMode::Require),
        "false" | "0" => Ok(SslMode::Disable),
        mode => SslMode::parse(mode).ok_or("true, false"),
    }
}

/// Prisma's.
fn accept(value: &str) -> Result<SslMode, &'static str> {
    match value {
        "strict" => Ok(SslMode::VerifyFull),
        "accept_invalid_certs" => Ok(SslMode::Require),
        _ => Err("strict, accept_invalid_certs"),
    }
}

#[cfg(test)]
mod tests;
