// SPDX-License-Identifier: MIT OR Apache-2.0
//! Texts of errors.

/// The message of a candle error without its backtrace and path. The path is part of what was tried.
pub(super) fn reason(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::WithPath { inner, .. } => reason(inner),
        error => error.to_string(),
    }
}
