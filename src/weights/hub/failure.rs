// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures of requests: whether to retry, and the errors that users see.

use std::{io, path::Path};

use crate::{
    engine::{Error, printable},
    weights::published::advice,
};

/// Why a request failed.
pub(super) enum Failure {
    /// A failure that a retry may fix: timeouts, broken connections, server errors.
    Transient {
        why: String,
        /// Whether the request made progress before it failed.
        progressed: bool,
    },
    /// The hub has no such file, or the user has no access to it.
    Refused(String),
    /// A response that is not from the hub, or a file that is not as the hub says.
    Invalid(String),
    /// A failure that does not come from the hub: cancelled, or a local disk error.
    Local(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl Failure {
    /// A transient failure before any byte was transferred.
    pub(super) fn transient(why: impl ToString) -> Self {
        Self::Transient { why: printable(&why.to_string()), progressed: false }
    }

    /// A failure to write `path` in the cache.
    pub(super) fn disk(path: &Path, error: &io::Error) -> Self {
        Self::Local(Error::Weights {
            tried: format!("writing {}", path.display()),
            why: error.to_string(),
            instead: "free disk space there, or set HF_HOME to another folder".into(),
        })
    }

    /// The error for the user; `tried` says what failed.
    pub(super) fn into_error(self, tried: &str) -> Error {
        let (why, instead) = match self {
            Self::Transient { why, .. } => {
                (why, "check the network connection and start again: the download resumes".into())
            }
            Self::Refused(why) => (why, advice()),
            Self::Invalid(why) => (why, "check HF_ENDPOINT and any proxy, and start again".into()),
            Self::Local(error) => return error,
        };
        Error::Weights { tried: tried.into(), why, instead }
    }
}
