//! What can go wrong with the database, and what a caller is told of it.

use std::time::Duration;

use stepwell_proto::{refusal::Refusal, v1::ErrorReason};

/// A statement that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rows do not allow it; the caller is told as it stands.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The URL cannot be read.
    #[error("the database URL cannot be read")]
    Url(#[source] sqlx::Error),
    /// There is no connection to the database; nothing was asked of it.
    #[error("the database cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    /// The database only follows another one.
    #[error("the database is a standby: nothing can be written there; name the primary")]
    Standby,
    /// The database failed or is away.
    #[error("the database refused or did not answer")]
    Database(#[from] sqlx::Error),
    /// The schema is not the one this build needs.
    #[error("{0}")]
    Schema(String),
    /// What comes after the place is not kept any more.
    #[error("events after this place are no longer kept; the earliest are those after {earliest}")]
    Expired {
        /// The first place after which everything is kept.
        earliest: i64,
    },
    /// A row that cannot be: a fault of ours.
    #[error("inconsistent row: {0}")]
    Inconsistent(String),
}

impl Error {
    /// SQLSTATE of the database's answer, if it gave one.
    pub fn code(&self) -> Option<String> {
        match self {
            Self::Database(sqlx::Error::Database(e)) => e.code().map(std::borrow::Cow::into_owned),
            _ => None,
        }
    }

    fn code_starts(&self, prefixes: &[&str]) -> bool {
        self.code().is_some_and(|code| prefixes.iter().any(|p| code.starts_with(p)))
    }

    /// About the data of some item: the rest of the batch may do without it.
    pub fn is_data(&self) -> bool {
        self.code_starts(&["22", "23"])
    }

    /// The node whose name was used is retired: repeat under a new one.
    pub fn is_retired(&self) -> bool {
        self.code_starts(&["SW001"])
    }

    /// Nothing was written, and trying again may work.
    pub fn is_undone(&self) -> bool {
        matches!(self, Self::Unreachable(_)) || self.code_starts(&["40", "53", "55P03", "57014"])
    }

    /// The connection is of no more use, and whether the statement was carried out is not known.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::Database(_)) => self.code_starts(&["08", "57P"]),
            Self::Database(
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
            ) => true,
            _ => false,
        }
    }

    /// The database turned out to be a standby, or to be read-only: another connection may lead to
    /// the one that took over.
    fn is_read_only(&self) -> bool {
        self.code_starts(&["25006"])
    }

    /// Trying again may work.
    pub fn is_transient(&self) -> bool {
        self.is_undone() || self.is_lost() || self.is_read_only()
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

/// The error itself is for the log, where the call that fails is written down.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => *refusal,
            error @ Error::Expired { .. } => {
                Refusal::new(ErrorReason::CursorExpired, error.to_string())
            }
            error if error.is_transient() => {
                Refusal::new(ErrorReason::DatabaseUnavailable, "the database does not answer")
                    .retry_after(Duration::from_millis(250))
                    .because_of(error)
            }
            error => Refusal::new(ErrorReason::Internal, "a fault of the service; see its log")
                .because_of(error),
        }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Refusal::from(error).into()
    }
}
