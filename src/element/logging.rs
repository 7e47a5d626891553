// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug categories: `venhance` for the element, `venhance-models`, `venhance-sampler` and
//! `venhance-weights` for the modules below it, which do not know GStreamer.

use std::{fmt, panic::Location};

use gst::{DebugCategory, DebugColorFlags, DebugLevel, DebugLogger, glib};
use once_cell::sync::Lazy;

use crate::engine::log::{Area, Level, set_logger};

pub(super) static CAT: Lazy<DebugCategory> =
    Lazy::new(|| category("venhance", "Video enhancer: negotiation, clips, threads"));
static MODELS: Lazy<DebugCategory> =
    Lazy::new(|| category("venhance-models", "Video enhancer: choice of a model and of devices"));
static SAMPLER: Lazy<DebugCategory> =
    Lazy::new(|| category("venhance-sampler", "Video enhancer: windows, steps, precision, memory"));
static WEIGHTS: Lazy<DebugCategory> =
    Lazy::new(|| category("venhance-weights", "Video enhancer: model files, downloads, copies"));

fn category(name: &str, description: &str) -> DebugCategory {
    DebugCategory::new(name, DebugColorFlags::empty(), Some(description))
}

/// Creates the categories, so that gst-inspect lists them, and sends the messages of the lower modules
/// to them.
pub(super) fn install() {
    for category in [&CAT, &MODELS, &SAMPLER, &WEIGHTS] {
        Lazy::force(category);
    }
    set_logger(write);
}

fn write(area: Area, level: Level, location: &'static Location<'static>, message: fmt::Arguments) {
    let category = match area {
        Area::Models => &MODELS,
        Area::Sampler => &SAMPLER,
        Area::Weights => &WEIGHTS,
    };
    let level = match level {
        Level::Info => DebugLevel::Info,
        Level::Debug => DebugLevel::Debug,
        Level::Log => DebugLevel::Log,
    };
    if category.above_threshold(level) {
        let file = glib::GString::from(location.file());
        let no_object = None::<&glib::Object>;
        category.log(no_object, level, file.as_gstr(), "", location.line(), message);
    }
}
