// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the user of the page chooses: values of the element's properties, the quality, and the format of the output.

use std::{collections::BTreeMap, ffi::OsString};

use gst::prelude::*;
use serde_json::{Value, json};

use crate::{args::quality, properties};

/// Values by name. What is missing has its default.
pub type Settings = BTreeMap<String, String>;

const FORMAT: &str = "format";
const QUALITY: &str = "quality";

/// The formats of the output that the page offers; the first is the default.
const FORMATS: [&str; 4] = ["mp4", "webm", "mkv", "mov"];

/// Preset: name, description, settings.
type Preset = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const PRESETS: [Preset; 4] = [
    (
        "AI clip",
        "A generated clip: four times the size, 24 frames a second",
        &[("up-scale", "4"), ("target-fps", "24")],
    ),
    (
        "Smoother only",
        "The same size, up to 60 frames a second",
        &[("up-scale", "1"), ("target-fps", "60")],
    ),
    (
        "Larger only",
        "Twice the size, the same frame rate",
        &[("up-scale", "2"), ("target-fps", "0")],
    ),
    (
        "Old video",
        "Twice the size, 48 frames a second; repeated frames are replaced, more is repaired (v1, v2)",
        &[("up-scale", "2"), ("target-fps", "48"), ("duplicates", "merge"), ("noise-aug", "250")],
    ),
];

/// What the page shows: the presets, and each property as the element describes it. `upload_limit` is in bytes.
pub fn description(upload_limit: u64) -> Value {
    let presets = PRESETS.map(|(name, about, settings)| {
        let settings: BTreeMap<_, _> = settings.iter().copied().collect();
        json!({ "name": name, "about": about, "settings": settings })
    });
    let mut fields = vec![
        json!({
            "name": FORMAT,
            "help": "Format of the output; browsers play mp4 and webm",
            "values": FORMATS,
            "default": FORMATS[0],
        }),
        json!({
            "name": QUALITY,
            "help": "Constant quality of the encoder, lower is better: 0 to 51, for webm 0 to 63",
            "type": "number",
            "default": "",
        }),
    ];
    fields.extend(properties::settable().iter().map(|pspec| {
        let values = match pspec.value_type() == bool::static_type() {
            true => Some(vec!["true".to_owned(), "false".to_owned()]),
            false => properties::nicks(pspec),
        };
        json!({
            "name": pspec.name(),
            "help": pspec.blurb(),
            "values": values,
            "range": properties::range(pspec),
            "whole": pspec.value_type() == i32::static_type(),
            "type": if properties::range(pspec).is_some() { "number" } else { "text" },
            "default": properties::default(pspec).unwrap_or_default(),
        })
    }));
    json!({ "presets": presets, "fields": fields, "upload_limit": upload_limit })
}

/// Checks what a browser has sent.
///
/// # Errors
/// With what is wrong.
pub fn check(settings: &Settings) -> Result<(), String> {
    let properties = properties::settable();
    for (name, value) in settings {
        let checked = match name.as_str() {
            FORMAT if FORMATS.contains(&value.as_str()) => Ok(()),
            FORMAT => Err(format!("use one of {}", FORMATS.join(", "))),
            QUALITY => quality(value).map(drop),
            _ => match properties.iter().find(|pspec| pspec.name() == name) {
                Some(pspec) => properties::parse(pspec, value).map(drop),
                None => Err("there is no such setting".to_owned()),
            },
        };
        checked.map_err(|why| format!("{name} {value}: {why}"))?;
    }
    Ok(())
}

/// The file name of an output with these settings.
pub fn output(settings: &Settings) -> String {
    let format = settings.get(FORMAT).map_or(FORMATS[0], String::as_str);
    format!("output.{format}")
}

/// The settings as flags of the command line.
pub fn flags(settings: &Settings) -> impl Iterator<Item = OsString> {
    let flags = settings.iter().filter(|(name, _)| *name != FORMAT);
    flags.map(|(name, value)| format!("--{name}={value}").into())
}
