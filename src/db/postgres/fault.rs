//! Errors of Postgres, and of poolers before it, sorted by their SQLSTATE: what is the row's fault, and what is not.

use diesel::result::Error as DieselError;
use tokio_postgres::error::Severity;

use crate::db::StoreError;

/// The reaction to an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// Try again later, on another connection.
    Later,
    ReadOnly,
    /// The row has something in it that no database takes.
    Row,
}

/// Codes and classes (Appendix A of the Postgres manual), the first that fits counts. What is not here, such as an
/// exception raised by a trigger or a missing table, is put to the proof with a good row: see `Store`.
const SORTS: [(&str, Sort); 18] = [
    // connections, poolers, logins, locks, resources, operators: no row can help it
    ("08", Sort::Later),
    ("0A", Sort::Later),
    ("25006", Sort::ReadOnly),
    ("25", Sort::Later),
    ("26", Sort::Later),
    ("28", Sort::Later),
    ("34", Sort::Later),
    ("3D", Sort::Later),
    ("40", Sort::Later),
    // a statement or cursor of that name is there already: a neighbour's, behind a pooler
    ("42P03", Sort::Later),
    ("42P05", Sort::Later),
    ("53", Sort::Later),
    ("55", Sort::Later),
    ("57", Sort::Later),
    ("58", Sort::Later),
    ("XX", Sort::Later),
    // data exceptions: NUL, a character that the database's encoding lacks
    ("22", Sort::Row),
    // integrity constraints
    ("23", Sort::Row),
];

/// An error with its SQLSTATE, which diesel's own errors have no place for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// None: it is not the server's word; the connection failed.
    pub code: Option<String>,
    /// The connection, or the whole server, ends with it.
    is_fatal: bool,
    message: String,
}

impl Fault {
    pub fn new(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => Self {
                code: Some(said.code().code().to_owned()),
                is_fatal: match said.parsed_severity() {
                    Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
                    // Poolers leave that field out.
                    None => matches!(said.severity(), "FATAL" | "PANIC"),
                },
                message: said.message().to_owned(),
            },
            None => Self { code: None, is_fatal: true, message: with_causes(error) },
        }
    }

    /// The role lacks a right.
    pub fn is_missing_right(&self) -> bool {
        self.code.as_deref() == Some("42501")
    }
}

/// tokio-postgres says only "error connecting to server" itself.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<Fault> for DieselError {
    fn from(fault: Fault) -> Self {
        Self::QueryBuilderError(Box::new(fault))
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        let message = fault.message;
        let Some(code) = fault.code.filter(|_| !fault.is_fatal) else {
            return Self::Unavailable(message);
        };
        match SORTS.iter().find(|(prefix, _)| code.starts_with(prefix)) {
            Some((_, Sort::Later)) => Self::Unavailable(message),
            Some((_, Sort::ReadOnly)) => Self::ReadOnly(message),
            Some((_, Sort::Row)) => Self::Rejected(message),
            None => Self::Refused(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(code: &str, is_fatal: bool) -> StoreError {
        Fault { code: Some(code.to_owned()), is_fatal, message: "m".to_owned() }.into()
    }

    #[test]
    fn only_what_is_in_the_row_condemns_it() {
        let m = || "m".to_owned();
        // duplicate and unknown statement names, a pooler's word, admin shutdown, statement and lock time-outs, too many
        // connections, disk full, deadlock, "cached plan must not change result type"
        for code in
            ["42P05", "26000", "08P01", "57P01", "57014", "55P03", "53300", "53100", "40P01", "0A000", "25P02", "3D000"]
        {
            assert_eq!(sorted(code, false), StoreError::Unavailable(m()), "{code}");
        }
        for code in ["22021", "22P05", "22003", "23514", "23502"] {
            assert_eq!(sorted(code, false), StoreError::Rejected(m()), "{code}");
            assert_eq!(sorted(code, true), StoreError::Unavailable(m()), "{code}, and the connection ends");
        }
        assert_eq!(sorted("25006", false), StoreError::ReadOnly(m()));
        for code in ["P0001", "42P01", "42501", "54000"] {
            assert_eq!(sorted(code, false), StoreError::Refused(m()), "{code}");
        }
        assert_eq!(StoreError::from(Fault { code: None, is_fatal: true, message: m() }), StoreError::Unavailable(m()));
    }
}
