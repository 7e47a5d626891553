// SPDX-License-Identifier: MIT OR Apache-2.0
//! Prints figures as JSON lines, and remembers whether all comparisons hold.

use std::{fmt::Display, process::ExitCode};

use serde_json::{Value, json};

/// What has been found so far.
#[derive(Default)]
pub struct Findings {
    /// Comparisons that do not hold.
    differ: usize,
    /// What could not be run.
    failed: usize,
}

impl Findings {
    /// Prints a figure: an object whose `what` names it.
    pub fn print(&self, figure: &Value) {
        println!("{figure}");
    }

    /// Prints `figure` with a relative error and the largest that is allowed; NaN never holds.
    pub fn compare(&mut self, mut figure: Value, error: f64, allowed: f64) {
        let holds = error <= allowed;
        self.differ += usize::from(!holds);
        figure["error"] = json!(error);
        figure["allowed"] = json!(allowed);
        figure["holds"] = json!(holds);
        self.print(&figure);
    }

    /// Prints `figure` with the reason for which it is missing.
    pub fn failed(&mut self, mut figure: Value, why: impl Display) {
        self.failed += 1;
        figure["failed"] = json!(why.to_string());
        self.print(&figure);
    }

    /// 0 if all comparisons hold, 3 if one does not, 1 if something could not be run.
    pub fn exit_code(&self) -> ExitCode {
        match (self.failed, self.differ) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}
