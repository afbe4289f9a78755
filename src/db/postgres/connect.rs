//! From `DATABASE_URL` to a connection.

use std::fmt;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode as PgSslMode};
use tokio_postgres::{Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::connection::PgConnection;
use super::fault::with_causes;
use super::tls::{self, Files, SslMode};
use super::url::PostgresUrl;
use crate::config::Secret;
use crate::db::StoreError;

/// From a TCP connection to one that can be used.
const SETUP_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is closed after so long: some serverless databases do not suspend while there is one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For each transaction. Poolers refuse it at the start of a session, and a session's own would outlast our use of it.
const SETTINGS: &str = "SET LOCAL statement_timeout = 10000; SET LOCAL lock_timeout = 5000;";

/// The way to the database: hosts, protection, settings of each transaction.
pub struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    timeout: Duration,
    /// SQL at the beginning of a transaction.
    pub settings: String,
    /// The part of `settings` that the URL asked for.
    pub asked_settings: String,
    pub schema: Option<String>,
    pub connection_limit: Option<usize>,
    pub pool_timeout: Option<Duration>,
    pub idle_timeout: Duration,
    pub notes: Vec<String>,
}

impl Connector {
    /// `postgres://user:password@host:port/database?…`: see [`PostgresUrl`].
    pub fn new(url: &Secret) -> Result<Self, StoreError> {
        // The text itself is needed to connect; no error may quote any part of it, for it holds the password.
        let url = PostgresUrl::parse(url.expose()).map_err(StoreError::Url)?;
        let (mode, root_cert) = url.ssl();
        let files = Files { root_cert, certificate: url.certificate.as_ref(), key: url.key.as_ref() };
        let tls = match mode {
            SslMode::Disable => None,
            mode => Some(tls::connector(mode, &files).map_err(StoreError::Url)?),
        };
        let mut config = url.config.clone();
        config.ssl_mode(match mode {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Prefer => PgSslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => PgSslMode::Require,
        });
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1) as u32;
        let asked_settings = url.settings();
        Ok(Self {
            timeout: config.get_connect_timeout().map_or(SETUP_TIMEOUT, |one| *one * hosts + SETUP_TIMEOUT),
            config,
            tls,
            settings: format!("{SETTINGS}{asked_settings}"),
            asked_settings,
            schema: url.schema,
            connection_limit: url.connection_limit,
            pool_timeout: url.pool_timeout,
            idle_timeout: url.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            notes: url.notes,
        })
    }

    /// A proxy may accept and then stay silent: nothing that comes after the TCP connection has a limit of its own.
    pub async fn connect(&self) -> Result<PgConnection, StoreError> {
        let late = |_| Err(StoreError::Unavailable(format!("no answer within {} s", self.timeout.as_secs())));
        tokio::time::timeout(self.timeout, self.establish()).await.unwrap_or_else(late)
    }

    async fn establish(&self) -> Result<PgConnection, StoreError> {
        let unavailable = |e: tokio_postgres::Error| StoreError::Unavailable(with_causes(&e));
        match &self.tls {
            Some(tls) => {
                let (client, link) = self.config.connect(tls.clone()).await.map_err(unavailable)?;
                Ok(PgConnection::new(client, link))
            }
            None => {
                let (client, link) = self.config.connect(NoTls).await.map_err(unavailable)?;
                Ok(PgConnection::new(client, link))
            }
        }
    }
}

/// Shows hosts and database, without the password.
impl fmt::Display for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let hosts: Vec<_> = self.config.get_hosts().iter().map(host).collect();
        write!(f, "{}", hosts.join(","))?;
        if let Some(database) = self.config.get_dbname() {
            write!(f, ", database {database}")?;
        }
        match &self.schema {
            Some(schema) => write!(f, ", schema {schema}"),
            None => Ok(()),
        }
    }
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
