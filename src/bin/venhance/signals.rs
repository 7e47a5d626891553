// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C and the other signals that end the program.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag,
};

use crate::failure::Kind;

/// While a pipeline runs, the first signal lets it end its streams and the second one ends the process. At
/// other times nothing asks for signals, and the first one ends the process.
#[derive(Clone)]
pub struct Signals {
    /// Set by the first signal.
    interrupted: Arc<AtomicBool>,
    /// Whether the next signal ends the process.
    at_once: Arc<AtomicBool>,
}

impl Default for Signals {
    fn default() -> Self {
        Self { interrupted: Arc::default(), at_once: Arc::new(true.into()) }
    }
}

impl Signals {
    pub fn handle(&self) -> io::Result<()> {
        // A file that exceeds a limit is then a failed write.
        flag::register(SIGXFSZ, Arc::default())?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // Actions run in the order in which they are registered: the first signal finds `at_once` as the
            // program has set it.
            flag::register_conditional_shutdown(
                signal,
                Kind::Cancelled as i32,
                self.at_once.clone(),
            )?;
            flag::register(signal, self.interrupted.clone())?;
            flag::register(signal, self.at_once.clone())?;
        }
        Ok(())
    }

    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Until the guard is dropped, a first signal is left to the caller.
    pub fn watch(&self) -> impl Drop + use<> {
        self.at_once.store(false, Ordering::Relaxed);
        AtOnce(self.at_once.clone())
    }
}

struct AtOnce(Arc<AtomicBool>);

impl Drop for AtOnce {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
