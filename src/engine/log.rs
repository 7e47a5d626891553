// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug messages of the modules that do not know GStreamer.
//!
//! A hook of our own instead of the `log` crate: that has one logger in a process, which belongs to
//! the application. A plugin that is linked into an application must not install one.

use std::{fmt, panic::Location, sync::OnceLock};

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// The choice of a model and of devices, and how they are put together.
    Models,
    /// Windows, steps, precision and memory of the diffusion models.
    Sampler,
    /// Files: the hub, its cache, copies.
    Weights,
}

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Once a start or less.
    Info,
    /// Once a clip or file, and decisions that are rare.
    Debug,
    /// Once a unit of work.
    Log,
}

/// Takes messages, from any thread, and should be quick to drop those that nobody reads.
pub type Logger = fn(Area, Level, &'static Location<'static>, fmt::Arguments<'_>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Installs the logger, once a process; later calls have no effect. Without one, messages are dropped.
pub fn set_logger(logger: Logger) {
    let _ = LOGGER.set(logger);
}

/// Logs at [`Level::Info`]. The message is formatted only if somebody reads it.
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
