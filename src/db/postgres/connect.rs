//! From `DATABASE_URL` to a connection.

use std::path::PathBuf;
use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio_postgres::{Config, NoTls, config::SslMode as PgSslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::{self, SslMode};
use crate::config::Secret;
use crate::db::StoreError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first packet to a connection that can be used.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Unacknowledged data for so long: the peer is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Set after connecting, not by the `options` parameter: poolers such as PgBouncer refuse that.
const SETTINGS: &str = "SET statement_timeout = 10000; SET lock_timeout = 5000;";
const APPLICATION_NAME: &str = "stenocast";

/// Where and how to connect.
pub struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

impl Connector {
    /// `postgres://user:password@host:port/database?sslmode=…&sslrootcert=…` and the other parameters of libpq.
    pub fn new(url: &Secret) -> Result<Self, StoreError> {
        // The text itself is needed to connect; no error may quote any part of it, for it holds the password.
        let (rest, ssl) = take_ssl(url.expose())?;
        let malformed = "allowed: postgres://user:password@host:port/database?sslmode=require, \
                         with special characters of user and password percent-encoded";
        let mut config: Config = rest.parse().map_err(|_| StoreError::Url(malformed.to_owned()))?;
        if config.get_hosts().is_empty() {
            return Err(StoreError::Url(format!("it names no host; {malformed}")));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name(APPLICATION_NAME);
        }
        config.tcp_user_timeout(TCP_USER_TIMEOUT).keepalives_idle(KEEPALIVE_IDLE);
        config.ssl_mode(match ssl.mode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Prefer => PgSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => PgSslMode::Require,
        });
        let tls = match ssl.mode {
            SslMode::Disable => None,
            mode => Some(tls::connector(mode, ssl.root_cert.as_ref()).map_err(StoreError::Url)?),
        };
        Ok(Self { config, tls })
    }

    /// A proxy may accept and then stay silent: nothing that comes after the TCP connection has a limit of its own.
    pub async fn connect(&self) -> Result<AsyncPgConnection, StoreError> {
        let late = |_| Err(StoreError::Unavailable(format!("no answer within {} s", SETUP_TIMEOUT.as_secs())));
        tokio::time::timeout(SETUP_TIMEOUT, self.establish()).await.unwrap_or_else(late)
    }

    async fn establish(&self) -> Result<AsyncPgConnection, StoreError> {
        let mut connection = match &self.tls {
            Some(tls) => {
                let (client, link) = self.config.connect(tls.clone()).await.map_err(|e| unavailable(&e))?;
                AsyncPgConnection::try_from_client_and_connection(client, link).await
            }
            None => {
                let (client, link) = self.config.connect(NoTls).await.map_err(|e| unavailable(&e))?;
                AsyncPgConnection::try_from_client_and_connection(client, link).await
            }
        }
        .map_err(|e| unavailable(&e))?;
        connection.batch_execute(SETTINGS).await?;
        Ok(connection)
    }
}

/// With the chain of causes: tokio-postgres says only "error connecting to server" itself.
fn unavailable(error: &dyn std::error::Error) -> StoreError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    StoreError::Unavailable(text)
}

struct Ssl {
    mode: SslMode,
    root_cert: Option<PathBuf>,
}

/// Takes out the parameters that tokio-postgres knows only in part.
fn take_ssl(url: &str) -> Result<(String, Ssl), StoreError> {
    let mut ssl = Ssl { mode: SslMode::Prefer, root_cert: None };
    // A password may hold a question mark; the parameters begin after the host.
    let host = url.find('@').unwrap_or(0);
    let Some(mark) = url[host..].find('?') else {
        return Ok((url.to_owned(), ssl));
    };
    let (base, query) = (&url[..host + mark], &url[host + mark + 1..]);
    let mut rest = Vec::new();
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            Some(("sslmode", mode)) => {
                let allowed = "sslmode is unknown; allowed: disable, allow, prefer, require, verify-ca, verify-full";
                ssl.mode = SslMode::parse(mode).ok_or_else(|| StoreError::Url(allowed.to_owned()))?;
            }
            // libpq's word for the authorities that the system knows: ours are always there.
            Some(("sslrootcert", "system")) => {}
            Some(("sslrootcert", path)) => ssl.root_cert = Some(PathBuf::from(path.replace("%2F", "/"))),
            _ => rest.push(parameter),
        }
    }
    let rest = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((rest, ssl))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector(url: &str) -> Result<Connector, StoreError> {
        Connector::new(&Secret::new(url))
    }

    #[test]
    fn the_url_of_a_cloud_database_is_understood() {
        let url = "postgresql://u:p%40ss@ep-x.eu.aws.neon.tech/db?sslmode=require&channel_binding=require";
        let c = connector(url).unwrap();
        assert_eq!(c.config.get_ssl_mode(), PgSslMode::Require);
        assert_eq!(c.config.get_application_name(), Some("stenocast"));
        assert_eq!(c.config.get_password(), Some(&b"p@ss"[..]));
        assert!(c.tls.is_some());
        let odd = connector("postgres://u:what?&sslmode=x@h/d?sslmode=disable").unwrap();
        assert_eq!(odd.config.get_password(), Some(&b"what?&sslmode=x"[..]));
        assert!(connector("postgres://u@h/d?sslmode=disable").unwrap().tls.is_none());
        assert_eq!(connector("postgres://u@h/d").unwrap().config.get_ssl_mode(), PgSslMode::Prefer);
        assert!(connector("postgres://u@h/d?sslmode=verify-full").unwrap().tls.is_some());
    }

    #[test]
    fn a_bad_url_is_refused_without_quoting_it() {
        for url in [
            "postgres://u:s3cret@h:port/d",
            "postgres://u:s3cret@h/d?sslmode=s3cret",
            "postgres://",
            "postgres://u:p@h/d?sslmode=verify-full&sslrootcert=/does/not/exist",
        ] {
            let error = connector(url).err().unwrap();
            assert!(matches!(error, StoreError::Url(_)), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
