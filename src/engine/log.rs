// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug messages of the modules below `element`, which do not use GStreamer.
//!
//! This is a separate hook instead of the `log` crate, because `log` has one logger per process. That logger
//! belongs to the application, and a plugin must not install one.

use std::{fmt, panic::Location, sync::OnceLock};

/// The area of a message. Each area has its own GStreamer debug category.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Choosing and loading models, and choosing devices.
    Models,
    /// Windows, steps, precision and slices of the diffusion models.
    Sampler,
    /// Files: hub, cache, converted copies.
    Weights,
}

/// The level of a message, as in GStreamer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// At most once per start.
    Info,
    /// Once per clip or file, and rare decisions.
    Debug,
    /// Once per unit of work.
    Log,
}

/// A logger. It is called from any thread and should return fast if the level is disabled.
pub type Logger = fn(Area, Level, &'static Location<'static>, fmt::Arguments<'_>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Installs the logger of this process. Later calls have no effect. Without a logger, messages are dropped.
pub fn set_logger(logger: Logger) {
    let _ = LOGGER.set(logger);
}

/// Logs at [`Level::Info`]. The message is formatted only if the level is enabled.
#[track_caller]
pub fn info(area: Area, message: fmt::Arguments<'_>) {
    write(area, Level::Info, message);
}

/// As [`info`], at [`Level::Debug`].
#[track_caller]
pub fn debug(area: Area, message: fmt::Arguments<'_>) {
    write(area, Level::Debug, message);
}

/// As [`info`], at [`Level::Log`].
#[track_caller]
pub fn log(area: Area, message: fmt::Arguments<'_>) {
    write(area, Level::Log, message);
}

#[track_caller]
fn write(area: Area, level: Level, message: fmt::Arguments<'_>) {
    if let Some(logger) = LOGGER.get() {
        logger(area, level, Location::caller(), message);
    }
}
