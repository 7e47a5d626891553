// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the output is written with: container and encoders.

use std::path::Path;

use gst::prelude::*;

use crate::{failure::Failure, source::Stream};

/// A file format.
#[derive(Debug)]
pub struct Container {
    pub muxer: &'static str,
    video_encoder: &'static str,
    /// For sound that cannot be copied.
    audio_encoder: &'static str,
    subtitles: bool,
}

const OPUS: &str = "opusenc bitrate=160000";
const AAC: &str = "avenc_aac bitrate=192000";

const MP4: Container =
    Container { muxer: "mp4mux", video_encoder: "x264enc", audio_encoder: AAC, subtitles: true };
const QUICKTIME: Container = Container { muxer: "qtmux", ..MP4 };
/// Also what everything is kept in while it is made.
pub const MATROSKA: Container = Container {
    muxer: "matroskamux",
    video_encoder: "x264enc",
    audio_encoder: OPUS,
    subtitles: true,
};
/// GStreamer's muxer would take subtitles that no player of WebM knows.
const WEBM: Container =
    Container { muxer: "webmmux", video_encoder: "vp9enc", audio_encoder: OPUS, subtitles: false };

/// What becomes of a stream that is no video.
#[derive(Debug, PartialEq)]
pub enum Treatment {
    Copy,
    /// Decoded, and encoded with this, as in gst-launch.
    Encode(&'static str),
    /// Subtitles that lose their markup: muxers take plain text.
    Plain,
    /// The container has no place for it.
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
                "{}: which format? End the output's name in .mp4, .m4v, .mov, .mkv or .webm",
                path.display()
            ))),
        }
    }

    pub fn audio(&self, stream: &Stream) -> Result<Treatment, Failure> {
        match self.takes("audio", &stream.caps)? {
            true => Ok(Treatment::Copy),
            false => Ok(Treatment::Encode(self.audio_encoder)),
        }
    }

    pub fn subtitles(&self, stream: &Stream) -> Result<Treatment, Failure> {
        let marked_up = stream.caps.structure(0).is_some_and(|structure| {
            structure.name() == "text/x-raw" && structure.get("format") == Ok("pango-markup")
        });
        Ok(match self.subtitles {
            true if marked_up => Treatment::Plain,
            true if self.takes("subtitle", &stream.caps)? => Treatment::Copy,
            _ => Treatment::Drop,
        })
    }

    /// Whether the muxer takes a stream, packed as it likes: a parser sees to that.
    fn takes(&self, kind: &str, caps: &gst::Caps) -> Result<bool, Failure> {
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
    /// As in gst-launch.
    pub description: String,
    /// What its stream goes through on its way from Matroska into another container, which may want
    /// decoding times.
    pub finish: &'static str,
    /// What it may be given; 4:2:0 plays everywhere, and has even sides only.
    pub input: Option<gst::Caps>,
}

impl Encoder {
    /// The encoder that was asked for, or the container's, at a constant quality.
    pub fn new(
        container: &Container,
        asked: Option<&str>,
        quality: Option<u32>,
    ) -> Result<Self, Failure> {
        let description = asked.unwrap_or(container.video_encoder).trim();
        let factory = description.split_whitespace().next().unwrap_or_default();
        let settings = match constant_quality(factory, quality) {
            // Whoever sets properties has rate control in hand.
            Some(_) if quality.is_none() && description.contains('=') => String::new(),
            Some(settings) => settings,
            None if quality.is_some() => {
                return Err(Failure::usage(format!(
                    "--quality is for x264enc, x265enc, vp9enc and av1enc; for {factory}, write its \
                     own property into --encoder"
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
            .ok_or_else(|| Failure::usage(format!("--encoder {description}: no encoder")))?;
        if !container.takes("video", &output)? {
            return Err(Failure::usage(format!(
                "{} does not take what {factory} makes: choose another encoder or format",
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

/// A part of a pipeline, as in gst-launch.
pub fn parse(description: &str) -> Result<gst::Bin, Failure> {
    gst::parse::bin_from_description(description, true).map_err(|error| {
        let missing = error.message().split('"').nth(1).unwrap_or_default();
        match error.kind::<gst::ParseError>() {
            Some(gst::ParseError::NoSuchElement) => Failure::no_element(missing),
            _ => Failure::usage(format!("{description}: {error}")),
        }
    })
}

/// An encoder's properties for a constant quality; `None` for one that this does not know.
fn constant_quality(factory: &str, quality: Option<u32>) -> Option<String> {
    Some(match factory {
        "x264enc" => format!("pass=qual quantizer={}", quality.unwrap_or(18)),
        "x265enc" => format!("option-string=crf={}", quality.unwrap_or(20)),
        // A bit rate far above what it will use: the quality alone decides.
        "vp9enc" => format!(
            "end-usage=cq cq-level={} target-bitrate=1000000000 cpu-used=4 row-mt=true threads=16",
            quality.unwrap_or(24)
        ),
        "av1enc" => format!("end-usage=q cq-level={} cpu-used=6", quality.unwrap_or(24)),
        _ => return None,
    })
}
