//! What can go wrong, told apart by what the caller may do next.

use beanpole_protocol::{JobId, ReplyError};
use std::io;
use std::time::Duration;

/// No connection came about.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {address}: {source}")]
pub struct ConnectError {
    /// The address as given.
    pub address: String,
    /// What the system said.
    pub source: io::Error,
}

/// Why a command has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is no tube name: 1 to 200 bytes of `A-Za-z0-9-+/;.$_()`, not beginning with `-`. Nothing was
    /// sent.
    #[error("'{0}' is no tube name (1 to 200 of A-Za-z0-9-+/;.$_(), not beginning with '-')")]
    BadTubeName(String),
    /// The key is none: 1 to 64 printable bytes of ASCII without a space. Nothing was sent.
    #[error("'{0}' is no key of a put (1 to 64 printable bytes of ASCII without a space)")]
    BadPutKey(String),
    /// The body is longer than the protocol can announce (4 GiB). Nothing was sent.
    #[error("a body of {0} bytes cannot be put")]
    BodyTooLong(usize),
    /// A typed command was called while replies of pipelined (or cancelled) ones are still to come. Nothing
    /// was sent; take them first with [`recv`](crate::Connection::recv).
    #[error("{0} earlier commands are unanswered; receive their replies first")]
    RepliesOutstanding(usize),
    /// [`recv`](crate::Connection::recv) was called with no command unanswered.
    #[error("no command is unanswered")]
    NothingAsked,
    /// The connection was lost before the whole command was handed to the system: the server cannot have
    /// carried it out. Safe to send again over another connection.
    #[error("{verb}: the connection was lost before the command was sent: {source}")]
    NotSent {
        /// The command's word.
        verb: &'static str,
        /// How the connection was lost.
        source: io::Error,
    },
    /// The connection was lost after the command was sent and before its reply: the server may have carried
    /// it out or not. Sending it again can do it twice.
    #[error("{verb}: the connection was lost before the reply, the outcome is unknown: {source}")]
    OutcomeUnknown {
        /// The command's word.
        verb: &'static str,
        /// How the connection was lost.
        source: io::Error,
    },
    /// No reply within the connection's timeout. The server may carry the command out or not, now or later, and its reply
    /// may still come: take it with [`recv`](crate::Connection::recv), or drop the connection.
    #[error("{verb}: no reply within {limit:?}, the outcome is unknown")]
    NoReply {
        /// The command's word.
        verb: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server said no. The command had no effect and the connection is usable.
    #[error("{verb}: the server refused: {refusal}")]
    Refused {
        /// The command's word.
        verb: &'static str,
        /// What the server said.
        refusal: Refusal,
    },
    /// `NOT_FOUND`: there is no such job or tube, or the job is not in a state that this command is for.
    #[error("{verb}: not found")]
    NotFound {
        /// The command's word.
        verb: &'static str,
    },
    /// A well-formed reply that is no answer to this command. The two sides no longer agree; close the
    /// connection.
    #[error("{verb}: unexpected reply {reply}")]
    Unexpected {
        /// The command's word.
        verb: &'static str,
        /// The reply's word.
        reply: &'static str,
    },
    /// Bytes that are no reply of the protocol. Close the connection; the outcome of `verb` is unknown.
    #[error("{verb}: {source}")]
    Malformed {
        /// The command that waited.
        verb: &'static str,
        /// What is wrong with the bytes.
        source: ReplyError,
    },
}

impl Error {
    /// Whether the command certainly had no effect, so that sending it again cannot do it twice.
    pub fn had_no_effect(&self) -> bool {
        match self {
            Error::BadTubeName(_)
            | Error::BadPutKey(_)
            | Error::BodyTooLong(_)
            | Error::RepliesOutstanding(_)
            | Error::NothingAsked
            | Error::NotSent { .. }
            | Error::NotFound { .. } => true,
            Error::Refused { refusal, .. } => !matches!(refusal, Refusal::Buried(_)),
            Error::OutcomeUnknown { .. }
            | Error::NoReply { .. }
            | Error::Unexpected { .. }
            | Error::Malformed { .. } => false,
        }
    }

    /// Whether the connection is of no more use: drop it and make another one.
    pub fn ends_connection(&self) -> bool {
        match self {
            Error::NotSent { .. }
            | Error::OutcomeUnknown { .. }
            | Error::Unexpected { .. }
            | Error::Malformed { .. } => true,
            Error::BadTubeName(_)
            | Error::BadPutKey(_)
            | Error::BodyTooLong(_)
            | Error::RepliesOutstanding(_)
            | Error::NothingAsked
            | Error::NoReply { .. }
            | Error::Refused { .. }
            | Error::NotFound { .. } => false,
        }
    }
}

/// The protocol's refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `OUT_OF_MEMORY`: no room for the job now; try again later.
    #[error("OUT_OF_MEMORY")]
    OutOfMemory,
    /// `INTERNAL_ERROR`.
    #[error("INTERNAL_ERROR")]
    InternalError,
    /// `DRAINING`: the service takes no new jobs.
    #[error("DRAINING")]
    Draining,
    /// `BAD_FORMAT`.
    #[error("BAD_FORMAT")]
    BadFormat,
    /// `UNKNOWN_COMMAND`.
    #[error("UNKNOWN_COMMAND")]
    UnknownCommand,
    /// `EXPECTED_CRLF`: the body was not as long as announced.
    #[error("EXPECTED_CRLF")]
    ExpectedCrlf,
    /// `JOB_TOO_BIG`: longer than the server's `-z`.
    #[error("JOB_TOO_BIG")]
    JobTooBig,
    /// `NOT_IGNORED`: a connection watches at least one tube.
    #[error("NOT_IGNORED")]
    NotIgnored,
    /// `BURIED` to a put: the job was taken but could not be made ready; it is there, buried.
    #[error("BURIED {0}")]
    Buried(JobId),
}
