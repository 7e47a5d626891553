// SPDX-License-Identifier: MIT OR Apache-2.0
//! Container and encoders of the output.

use std::path::Path;

use gst::prelude::*;

use crate::{failure::Failure, source::Stream};

/// A file format.
#[derive(Debug)]
pub struct Container {
    pub muxer: &'static str,
    video_encoder: &'static str,
    /// For audio that cannot be copied.
    audio_encoder: &'static str,
    subtitles: bool,
}

const OPUS: &str = "opusenc bitrate=160000";
const AAC: &str = "avenc_aac bitrate=192000";

const MP4: Container =
    Container { muxer: "mp4mux", video_encoder: "x264enc", audio_encoder: AAC, subtitles: true };
const QUICKTIME: Container = Container { muxer: "qtmux", ..MP4 };
/// Also the format of the partial file.
pub const MATROSKA: Container = Container {
    muxer: "matroskamux",
    video_encoder: "x264enc",
    audio_encoder: OPUS,
    subtitles: true,
};
/// GStreamer's muxer accepts subtitles that WebM players do not support.
const WEBM: Container =
    Container { muxer: "webmmux", video_encoder: "vp9enc", audio_encoder: OPUS, subtitles: false };

/// What to do with an audio or subtitle stream.
#[derive(Debug, PartialEq)]
pub enum Treatment {
    Copy,
    /// Decode, and encode with this encoder in gst-launch syntax.
    Encode(&'static str),
    /// Convert subtitles with markup to plain text, which muxers accept.
    RemoveMarkup,
    /// Leave it out: the container does not support it.
    Drop,
}

impl Container {
    pub fn of(path: &Path) -> Result<&'static Self, Failure> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "mp4" | "m4v" => Ok(&MP4),
            "mov" => Ok(&QUICKTIME),
            "mkv" => Ok(&MATROSKA),
            "webm" => Ok(&WEBM),
            _ => Err(Failure::usage(format!(
                "unknown output format {}: use a name that ends in .mp4, .m4v, .mov, .mkv or .webm",
                path.display()
            ))),
        }
    }

    pub fn audio(&self, stream: &Stream) -> Result<Treatment, Failure> {
        match self.accepts("audio", &stream.caps)? {
            true => Ok(Treatment::Copy),
            false => Ok(Treatment::Encode(self.audio_encoder)),
        }
    }

    pub fn subtitles(&self, stream: &Stream) -> Result<Treatment, Failure> {
        let marked_up = stream.caps.structure(0).is_some_and(|structure| {
            structure.name() == "text/x-raw" && structure.get("format") == Ok("pango-markup")
        });
        Ok(match self.subtitles {
            true if marked_up => Treatment::RemoveMarkup,
            true if self.accepts("subtitle", &stream.caps)? => Treatment::Copy,
            _ => Treatment::Drop,
        })
    }

    /// Whether the muxer accepts a codec. How the stream is packed is up to a parser.
    fn accepts(&self, kind: &str, caps: &gst::Caps) -> Result<bool, Failure> {
        let factory =
            gst::ElementFactory::find(self.muxer).ok_or_else(|| Failure::no_element(self.muxer))?;
        let mut codec = gst::Caps::new_empty();
        for structure in caps.iter() {
            let fields = ["mpegversion", "layer", "format", "layout", "rate", "channels"];
            let mut kept = gst::Structure::new_empty(structure.name());
            for field in fields {
                if let Ok(value) = structure.value(field) {
                    kept.set_value(field, value.clone());
                }
            }
            codec.make_mut().append_structure(kept);
        }
        Ok(factory
            .static_pad_templates()
            .iter()
            .filter(|template| template.direction() == gst::PadDirection::Sink)
            .filter(|template| template.name_template().starts_with(kind))
            .any(|template| template.caps().can_intersect(&codec)))
    }
}

/// How the video is encoded.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// In gst-launch syntax.
    pub description: String,
    /// Elements between the partial Matroska file and another container, which may need decoding
    /// timestamps.
    pub finish: &'static str,
    /// Formats of the encoded video; 4:2:0 plays everywhere, and needs even sides.
    pub input: Option<gst::Caps>,
}

impl Encoder {
    /// The encoder `asked` for, or the container's default, at a constant quality.
    pub fn new(
        container: &Container,
        asked: Option<&str>,
        quality: Option<u32>,
    ) -> Result<Self, Failure> {
        let description = asked.unwrap_or(container.video_encoder).trim();
        let factory = description.split_whitespace().next().unwrap_or_default();
        let settings = match constant_quality(factory, quality) {
            // The user sets the rate control.
            Some(_) if quality.is_none() && description.contains('=') => String::new(),
            Some(settings) => settings,
            None if quality.is_some() => {
                return Err(Failure::usage(format!(
                    "--quality works with x264enc, x265enc, vp9enc and av1enc; set the property of \
                     {factory} with --encoder"
                )));
            }
            None => String::new(),
        };
        let (first, rest) = description.split_at(factory.len());
        let mut encoder = Self {
            description: format!("{first} {settings}{rest}"),
            finish: "identity",
            input: asked.is_none().then(|| {
                let even = gst::IntRange::with_step(2, 65534, 2);
                gst::Caps::builder_full()
                    .structure(
                        gst::Structure::builder("video/x-raw")
                            .field("format", "I420")
                            .field("width", even)
                            .field("height", even)
                            .build(),
                    )
                    .structure(
                        gst::Structure::builder("video/x-raw").field("format", "Y444").build(),
                    )
                    .build()
            }),
        };
        let output = parse(&encoder.description)?
            .static_pad("src")
            .map(|pad| pad.query_caps(None))
            .ok_or_else(|| {
                Failure::usage(format!("--encoder {description}: {factory} has no output"))
            })?;
        if !container.accepts("video", &output)? {
            return Err(Failure::usage(format!(
                "{} does not support the output of {factory}: use another encoder or format",
                container.muxer
            )));
        }
        let codec = output.structure(0).map(|structure| structure.name().as_str());
        if let Some("video/x-h264") = codec {
            encoder.description.push_str(" ! h264parse");
            encoder.finish = "h264parse ! h264timestamper";
        } else if let Some("video/x-h265") = codec {
            encoder.description.push_str(" ! h265parse");
            encoder.finish = "h265parse ! h265timestamper";
        }
        Ok(encoder)
    }
}

/// Builds a bin from gst-launch syntax.
pub fn parse(description: &str) -> Result<gst::Bin, Failure> {
    gst::parse::bin_from_description(description, true).map_err(|error| {
        let missing = error.message().split('"').nth(1).unwrap_or_default();
        match error.kind::<gst::ParseError>() {
            Some(gst::ParseError::NoSuchElement) => Failure::no_element(missing),
            _ => Failure::usage(format!("{description}: {error}")),
        }
    })
}

/// The properties of a known encoder for a constant quality.
fn constant_quality(factory: &str, quality: Option<u32>) -> Option<String> {
    Some(match factory {
        "x264enc" => format!("pass=qual quantizer={}", quality.unwrap_or(18)),
        "x265enc" => format!("option-string=crf={}", quality.unwrap_or(20)),
        // A bit rate far above what it needs: only the quality counts.
        "vp9enc" => format!(
            "end-usage=cq cq-level={} target-bitrate=1000000000 cpu-used=4 row-mt=true threads=16",
            quality.unwrap_or(24)
        ),
        "av1enc" => format!("end-usage=q cq-level={} cpu-used=6", quality.unwrap_or(24)),
        _ => return None,
    })
}
