//! Faults of the database, sorted by what the caller has to do.

use diesel::result::{DatabaseErrorKind as Kind, Error as DieselError};

use super::postgres::Fault;

/// Messages of SQLite's errors that pass by themselves or with an operator's help: the rows are not at fault. diesel
/// gives no code for them. Postgres' errors have theirs: see `postgres::Fault`.
const RESOURCE_MESSAGES: [&str; 7] =
    ["is locked", "disk is full", "disk full", "i/o error", "unable to open database", "malformed", "out of memory"];

/// A fault of the database, sorted by what to do.
///
/// The text holds the error with its causes, instead of a `source`: an error is kept as the last fault, cloned and
/// compared, and a reader of the chain would see each cause twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not reachable, too slow, out of space, …: try again later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// It takes no writes: try again later, but somebody should know.
    #[error("the database is read-only: {0}")]
    ReadOnly(String),
    /// It will never take this data.
    #[error("the database refused the row: {0}")]
    Rejected(String),
    /// It refused a statement, and its words do not tell whether for the data's sake.
    #[error("the database refused the statement: {0}")]
    Refused(String),
    /// The tables could not be brought to this program's version.
    #[error("the database migrations failed: {0}")]
    Migration(String),
    /// `DATABASE_URL` means nothing.
    #[error("DATABASE_URL is not usable: {0}")]
    Url(String),
    /// A row that is there cannot be read by this program.
    #[error("the database has a row that is not readable: {0}")]
    Unreadable(String),
    #[error("the database worker failed: {0}")]
    Internal(String),
}

impl StoreError {
    /// True when the connection that it came over cannot be trusted any more.
    pub(super) fn breaks_connection(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Internal(_))
    }
}

impl From<DieselError> for StoreError {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(kind, info) => from_database(&kind, info.message().to_owned()),
            DieselError::SerializationError(e) => Self::Rejected(e.to_string()),
            DieselError::DeserializationError(e) => Self::Unreadable(e.to_string()),
            DieselError::QueryBuilderError(e) => match e.downcast::<Fault>() {
                Ok(fault) => (*fault).into(),
                Err(other) => Self::Internal(other.to_string()),
            },
            other => Self::Unavailable(other.to_string()),
        }
    }
}

fn from_database(kind: &Kind, message: String) -> StoreError {
    let lower = message.to_lowercase();
    match kind {
        Kind::UniqueViolation
        | Kind::ForeignKeyViolation
        | Kind::RestrictViolation
        | Kind::NotNullViolation
        | Kind::CheckViolation
        | Kind::ExclusionViolation => StoreError::Rejected(message),
        Kind::ReadOnlyTransaction => StoreError::ReadOnly(message),
        Kind::UnableToSendCommand | Kind::ClosedConnection | Kind::SerializationFailure => {
            StoreError::Unavailable(message)
        }
        _ if lower.contains("readonly database") => StoreError::ReadOnly(message),
        _ if RESOURCE_MESSAGES.iter().any(|m| lower.contains(m)) => StoreError::Unavailable(message),
        _ => StoreError::Refused(message),
    }
}
