// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong, for people and for scripts: a text that says what to do, and an exit code.

use std::{fmt, io, path::Path};

use gst::prelude::*;

/// The kind of a failure; its number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line cannot be followed (clap exits with 2 as well).
    Usage = 2,
    /// The input is missing, broken, or no video.
    Input = 3,
    /// The output cannot be written.
    Output = 4,
    /// A part of GStreamer is not installed.
    Plugin = 5,
    /// The model cannot run.
    Model = 6,
    /// Ctrl-C, as shells number it.
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

/// Names of the pipeline's parts, by which a failure finds its kind.
pub const READER: &str = "reader";
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

    /// Writing or creating `path` has failed.
    pub fn output(path: &Path, error: &io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room and go on with --resume"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "choose an output where you may write"
            }
            io::ErrorKind::NotFound => "create its folder first",
            _ => "choose another output or look at the disk",
        };
        Self::new(Kind::Output, format!("cannot write {}: {error}; {advice}", path.display()))
    }

    /// An element that the pipeline needs is not installed.
    pub fn no_element(factory: &str) -> Self {
        Self::new(
            Kind::Plugin,
            format!(
                "GStreamer's element {factory} is missing; on Debian and Ubuntu: \
                 sudo apt-get install {}",
                package(factory)
            ),
        )
    }

    /// Something that reads a format is not installed.
    pub fn no_decoder(path: &Path, what: &str) -> Self {
        Self::new(
            Kind::Plugin,
            format!(
                "{}: GStreamer's {what} is missing; on Debian and Ubuntu: sudo apt-get install \
                 gstreamer1.0-libav gstreamer1.0-plugins-good gstreamer1.0-plugins-bad \
                 gstreamer1.0-plugins-ugly",
                path.display()
            ),
        )
    }

    /// What an error on the bus means for `input` and `output`.
    pub fn from_bus(error: &gst::message::Error, input: &Path, output: &Path) -> Self {
        let (text, source) = (error.error().message().to_owned(), error.src().cloned());
        let mut part = source;
        while let Some(object) = part {
            if object.is::<gstvenhance::VEnhance>() {
                use gst::StreamError::{Decode, Format, NotImplemented};
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
            if object.name().starts_with(READER) {
                return match error.error().matches(gst::CoreError::MissingPlugin) {
                    true => Self::no_decoder(input, "decoder for this format"),
                    false => Self::input(input, format!("it cannot be read: {text}")),
                };
            }
            part = object.parent();
        }
        let debug = error.debug().unwrap_or_default();
        Self::new(Kind::Output, format!("{}: {text} ({debug})", output.display()))
    }
}

/// The Debian package of an element that this application uses.
fn package(factory: &str) -> &'static str {
    match factory {
        "x264enc" => "gstreamer1.0-plugins-ugly",
        "vp8enc" | "vp9enc" | "mp4mux" | "matroskamux" | "webmmux" | "deinterlace"
        | "videoflip" | "aacparse" => "gstreamer1.0-plugins-good",
        "x265enc" | "av1enc" | "openh264enc" | "h264parse" | "h265parse" | "h264timestamper"
        | "h265timestamper" => "gstreamer1.0-plugins-bad",
        factory if factory.starts_with("av") => "gstreamer1.0-libav",
        _ => "gstreamer1.0-plugins-base",
    }
}

/// An element, or the failure that names its package.
pub fn make(factory: &str) -> Result<gst::Element, Failure> {
    gst::ElementFactory::make(factory).build().map_err(|_| Failure::no_element(factory))
}

/// What a missing-plugin message is about: "H.264 decoder".
pub fn missing_plugin(message: &gst::MessageRef) -> Option<String> {
    let structure = message.structure().filter(|s| s.has_name("missing-plugin"))?;
    structure.get("name").ok()
}
