// SPDX-License-Identifier: MIT OR Apache-2.0
//! Failures: a message that says what to do, and an exit code.

use std::{fmt, io, path::Path};

use gst::prelude::*;
use gstvenhance::{VEnhance, engine};

use crate::properties;

/// The kind of a failure; its number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A mistake on the command line, or settings or an input that have changed since the interrupted run or the plan;
    /// clap also exits with 2.
    Usage = 2,
    /// The input is missing, damaged, or not a video.
    Input = 3,
    /// The output cannot be written.
    Output = 4,
    /// A GStreamer plugin is not installed.
    Plugin = 5,
    /// The model cannot run.
    Model = 6,
    /// Ctrl-C; shells use the same number.
    Cancelled = 130,
}

#[derive(Debug, Clone)]
pub struct Failure {
    pub kind: Kind,
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Prefixes of the names of a pipeline's bins, by which [`Failure::from_bus`] finds out what failed.
/// Reads the input.
pub const READER: &str = "reader";
/// Reads the partial file.
pub const PARTIAL: &str = "partial";
/// Encodes the video.
pub const ENCODER: &str = "encoder";
/// Writes the output.
pub const WRITER: &str = "writer";

impl Failure {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn input(path: &Path, why: impl fmt::Display) -> Self {
        Self::new(Kind::Input, format!("{}: {why}", path.display()))
    }

    /// `path` could not be created or written.
    pub fn output(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space and continue"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "use an output folder with write permission"
            }
            io::ErrorKind::NotFound if folder_exists(path) => {
                "its folder takes no new files, use another output"
            }
            io::ErrorKind::NotFound => "create its folder first",
            io::ErrorKind::InvalidFilename => "use a shorter name",
            io::ErrorKind::IsADirectory => "remove this folder or use another output",
            _ => "use another output or check the disk",
        };
        Self::new(Kind::Output, format!("cannot write {}: {error}; {advice}", path.display()))
    }

    /// A required element is not installed.
    pub fn no_element(factory: &str) -> Self {
        Self::new(
            Kind::Plugin,
            match package(factory) {
                Some(package) => format!(
                    "the GStreamer element {factory} is not installed; on Debian and Ubuntu: \
                     sudo apt-get install {package}"
                ),
                None => format!(
                    "there is no GStreamer element {factory}; gst-inspect-1.0 lists those that are installed"
                ),
            },
        )
    }

    /// A demuxer or decoder is not installed; `what` is GStreamer's description of it.
    pub fn no_decoder(path: &Path, what: &str) -> Self {
        Self::new(
            Kind::Plugin,
            format!(
                "{}: the GStreamer {what} is not installed; on Debian and Ubuntu: sudo apt-get install \
                 gstreamer1.0-libav gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
                 gstreamer1.0-plugins-ugly",
                path.display()
            ),
        )
    }

    /// The element cannot run with its properties.
    pub fn model(error: &engine::Error) -> Self {
        Self::new(Kind::Model, properties::with_flags(&error.to_string()))
    }

    /// The failure for an error on the bus, by the bin or element that posted it.
    pub fn from_bus(error: &gst::message::Error, input: &Path, output: &Path) -> Self {
        let text = error.error().message().to_owned();
        let debug = error.debug().unwrap_or_default();
        // A source of data reports what the elements after it refuse.
        let refused = ["reason not-negotiated", "reason not-linked"];
        let refused = refused.iter().any(|reason| debug.contains(reason));
        let mut part = error.src().cloned();
        while let Some(object) = part {
            if object.is::<VEnhance>() {
                use gst::StreamError::{Decode, Format, NotImplemented};
                let text = properties::with_flags(&text);
                return match error.error().kind::<gst::StreamError>() {
                    None => Self::new(Kind::Model, text),
                    Some(Decode | Format | NotImplemented) => Self::input(input, text),
                    Some(_) => Self::new(Kind::Output, text),
                };
            }
            if object.name().starts_with(WRITER) {
                let full = error.error().matches(gst::ResourceError::NoSpaceLeft);
                let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                return Self::output(output, &io::Error::new(kind, text));
            }
            if object.name().starts_with(ENCODER) {
                let element = error.src().and_then(|source| source.downcast_ref::<gst::Element>());
                let factory = element.and_then(|element| element.factory());
                let name = factory.map_or("the encoder".into(), |factory| factory.name());
                return Self::new(
                    Kind::Output,
                    format!("{name} cannot encode the video: {text} Use another --encoder"),
                );
            }
            if object.name().starts_with(PARTIAL) {
                let why =
                    if refused { "its video does not fit into the output format" } else { &text };
                return Self::new(
                    Kind::Output,
                    format!("cannot write {}: {why}; use another output format", output.display()),
                );
            }
            if object.name().starts_with(READER) {
                return match error.error().matches(gst::CoreError::MissingPlugin) {
                    true => Self::no_decoder(input, "decoder for this format"),
                    false if refused => Self::new(
                        Kind::Output,
                        format!(
                            "cannot write {}: the encoder or the output format does not support a \
                             stream of {}; use another --encoder or another format",
                            output.display(),
                            input.display()
                        ),
                    ),
                    false => Self::input(input, format!("cannot read it: {text}")),
                };
            }
            part = object.parent();
        }
        let element = error.src().map(|source| source.name()).unwrap_or_default();
        let why = match refused {
            true => "the encoder or the output format does not support the video".to_owned(),
            false => {
                format!("{element} failed: {text} ({})", debug.lines().last().unwrap_or_default())
            }
        };
        Self::new(
            Kind::Output,
            format!("cannot write {}: {why}; check --encoder", output.display()),
        )
    }
}

fn folder_exists(path: &Path) -> bool {
    // The folder of a bare name is empty.
    path.parent().is_some_and(|folder| Path::new(".").join(folder).is_dir())
}

/// The Debian package that contains an element, if known.
fn package(factory: &str) -> Option<&'static str> {
    Some(match factory {
        "x264enc" => "gstreamer1.0-plugins-ugly",
        "vp8enc" | "vp9enc" | "mp4mux" | "qtmux" | "matroskamux" | "webmmux" | "deinterlace"
        | "videoflip" | "aacparse" => "gstreamer1.0-plugins-good",
        "x265enc" | "av1enc" | "openh264enc" | "h264parse" | "h265parse" | "vp9parse"
        | "av1parse" | "h264timestamper" | "h265timestamper" => "gstreamer1.0-plugins-bad",
        factory if factory.starts_with("av") => "gstreamer1.0-libav",
        "opusenc" | "theoraenc" | "vorbisenc" => "gstreamer1.0-plugins-base",
        factory if factory.starts_with("audio") || factory.starts_with("video") => {
            "gstreamer1.0-plugins-base"
        }
        "appsink" | "appsrc" | "parsebin" | "decodebin" | "uridecodebin" => {
            "gstreamer1.0-plugins-base"
        }
        _ => return None,
    })
}

/// Creates an element; the failure names its package.
pub fn make(factory: &str) -> Result<gst::Element, Failure> {
    gst::ElementFactory::make(factory).build().map_err(|_| Failure::no_element(factory))
}

/// Creates the element of this package.
pub fn make_enhancer() -> Result<VEnhance, Failure> {
    make("venhance")?.downcast().map_err(|_| Failure::no_element("venhance"))
}

/// The description in a missing-plugin message, such as "H.264 decoder".
pub fn missing_plugin(message: &gst::MessageRef) -> Option<String> {
    let structure = message.structure().filter(|s| s.has_name("missing-plugin"))?;
    structure.get("name").ok()
}
