// SPDX-License-Identifier: MIT OR Apache-2.0
//! Container and encoders of the output.

use std::path::Path;

use gst::prelude::*;

use crate::{
    failure::{Failure, Kind},
    source::{Stream, UNKNOWN_SUBTITLES},
};

/// A file format.
#[derive(Debug)]
pub struct Container {
    pub muxer: &'static str,
    /// Gets 8 bits.
    video_encoder: &'static str,
    /// An encoder that takes more, if `--encoder` names it.
    deep_encoder: &'static str,
    /// For audio that cannot be copied.
    audio_encoder: &'static str,
    subtitles: bool,
}

const OPUS: &str = "opusenc bitrate=160000";
const AAC: &str = "avenc_aac bitrate=192000";

const MP4: Container = Container {
    muxer: "mp4mux",
    video_encoder: "x264enc",
    deep_encoder: "x265enc",
    audio_encoder: AAC,
    subtitles: true,
};
const QUICKTIME: Container = Container { muxer: "qtmux", ..MP4 };
/// Also the format of the partial file.
pub const MATROSKA: Container = Container {
    muxer: "matroskamux",
    video_encoder: "x264enc",
    deep_encoder: "x265enc",
    audio_encoder: OPUS,
    subtitles: true,
};
/// GStreamer's muxer accepts subtitles that WebM players do not support.
const WEBM: Container = Container {
    muxer: "webmmux",
    video_encoder: "vp9enc",
    deep_encoder: "vp9enc",
    audio_encoder: OPUS,
    subtitles: false,
};

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
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Failure::new(
                Kind::Output,
                format!("the folder {} does not exist: create it first", path.display()),
            ));
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "mp4" | "m4v" => Ok(&MP4),
            "mov" => Ok(&QUICKTIME),
            "mkv" => Ok(&MATROSKA),
            "webm" => Ok(&WEBM),
            _ => Err(Failure::usage(format!(
                "unknown output format {}: use a name that ends in .mp4, .m4v, .mov, .mkv or .webm, \
                 or a folder that exists",
                path.display()
            ))),
        }
    }

    /// Whether it is MP4 or QuickTime.
    pub fn has_boxes(&self) -> bool {
        ["mp4mux", "qtmux"].contains(&self.muxer)
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
            // The demuxer does not say what it is.
            _ if stream.is(UNKNOWN_SUBTITLES) => Treatment::Drop,
            true if self.accepts("subtitle", &stream.caps)? => Treatment::Copy,
            true if becomes_text(&stream.caps) => Treatment::RemoveMarkup,
            _ => Treatment::Drop,
        })
    }

    /// Whether the muxer accepts a codec. How the stream is packed is up to a parser.
    fn accepts(&self, kind: &str, caps: &gst::Caps) -> Result<bool, Failure> {
        let factory =
            gst::ElementFactory::find(self.muxer).ok_or_else(|| Failure::no_element(self.muxer))?;
        let mut codec = gst::Caps::new_empty();
        for structure in caps.iter() {
            let fields =
                ["mpegversion", "layer", "format", "layout", "rate", "channels", "width", "height"];
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

/// Whether `parsebin` turns these subtitles into text.
fn becomes_text(caps: &gst::Caps) -> bool {
    let parser = gst::ElementFactoryType::PARSER;
    gst::ElementFactory::factories_with_type(parser, gst::Rank::MARGINAL).iter().any(|factory| {
        let class = factory.metadata("klass").unwrap_or_default();
        class.contains("Subtitle") && factory.can_sink_any_caps(caps)
    })
}

/// How the video is encoded.
#[derive(Debug, Clone)]
pub struct Encoder {
    factory: String,
    /// In gst-launch syntax.
    pub description: String,
    /// Whether `--encoder` names it.
    pub asked: bool,
    /// For the default, which gets 8 bits: an encoder that takes more.
    pub deeper: Option<&'static str>,
    /// Element that prepares the video of the partial Matroska file for another container.
    parser: &'static str,
    /// Element that computes the decoding timestamps, which Matroska does not have.
    timestamper: Option<&'static str>,
    /// Format of the video to encode.
    pub input: Option<gst::Caps>,
    /// Codec of the encoded video.
    output: gst::Caps,
}

impl Encoder {
    /// The encoder `asked` for, or the container's default, at a constant quality.
    pub fn new(
        container: &Container,
        asked: Option<&str>,
        quality: Option<u32>,
    ) -> Result<Self, Failure> {
        let description = asked.unwrap_or(container.video_encoder).trim();
        let factory = description.split_whitespace().next().unwrap_or_default().to_owned();
        if factory.is_empty() {
            return Err(Failure::usage(
                "--encoder is empty; use the name of a GStreamer element, such as x265enc",
            ));
        }
        if let Some(quality) = quality.filter(|quality| *quality > 51)
            && matches!(&*factory, "x264enc" | "x265enc")
        {
            return Err(Failure::usage(format!("--quality {quality}: {factory} takes 0 to 51")));
        }
        let settings = match constant_quality(&factory, quality) {
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
        // With a lookahead, vp9enc of GStreamer 1.22 loses frames.
        let settings =
            if factory == "vp9enc" { format!("lag-in-frames=0 {settings}") } else { settings };
        let parts = [first, settings.trim(), rest.trim()];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let description = parts.join(" ");
        let mut encoder = Self {
            factory: factory.clone(),
            description,
            asked: asked.is_some(),
            deeper: asked.is_none().then_some(container.deep_encoder),
            parser: "identity",
            timestamper: None,
            output: gst::Caps::new_any(),
            input: asked.is_none().then(|| format("I420")),
        };
        let output = parse(&encoder.description)?
            .static_pad("src")
            .map(|pad| pad.query_caps(None))
            .ok_or_else(|| {
                Failure::usage(format!("{factory} has no output: use another --encoder"))
            })?;
        if !container.accepts("video", &output)? {
            return Err(Failure::usage(format!(
                "{} does not support the output of {factory}: use another encoder or format",
                container.muxer
            )));
        }
        let codec = output.structure(0).map(|structure| structure.name().as_str());
        let (packing, parser, timestamper) = match codec {
            Some("video/x-h264") => (" ! h264parse", "h264parse", Some("h264timestamper")),
            Some("video/x-h265") => (" ! h265parse", "h265parse", Some("h265timestamper")),
            Some("video/x-vp9") => ("", "vp9parse", None),
            Some("video/x-av1") => (" ! av1parse", "av1parse", None),
            _ => ("", "identity", None),
        };
        encoder.description.push_str(packing);
        (encoder.parser, encoder.timestamper) = (parser, timestamper);
        encoder.output = output;
        Ok(encoder)
    }

    /// The elements between the partial file and the muxer of the finished file, for a number of frames.
    pub fn finish(&self, frames: u64) -> String {
        match self.timestamper {
            // Two frames are always in order; and of two frames with the offset that a timestamper gives to
            // all, GStreamer's demuxer reads one.
            Some(timestamper) if frames > 2 => format!("{} ! {timestamper}", self.parser),
            _ => self.parser.to_owned(),
        }
    }

    /// Prepares for frames of a size (w, h).
    ///
    /// # Errors
    /// If the encoder or the container does not support the size.
    pub fn set_size(
        &mut self,
        container: &Container,
        (width, height): (usize, usize),
    ) -> Result<(), Failure> {
        let (width, height) = (width as i32, height as i32);
        if !self.asked && (width % 2, height % 2) != (0, 0) {
            // 4:2:0, which plays everywhere, needs even sides.
            self.input = Some(format("Y444"));
        }
        let size =
            gst::Caps::builder("video/x-raw").field("width", width).field("height", height).build();
        let sink = parse(&self.description)?.static_pad("sink");
        let Some(sink) = sink.map(|sink| sink.query_caps(None)) else {
            return Err(Failure::usage(format!("{} has no input", self.factory)));
        };
        if sink.can_intersect(&size) {
            let mut output = self.output.clone();
            for codec in output.make_mut().iter_mut() {
                codec.set("width", width);
                codec.set("height", height);
            }
            return match container.accepts("video", &output)? {
                true => Ok(()),
                false => Err(Failure::usage(format!(
                    "{} does not support video of {width}x{height} pixels from {}: use another \
                     --up-scale, --target-height or output format",
                    container.muxer, self.factory
                ))),
            };
        }
        let limit = |field| {
            let ranges = sink.iter().filter_map(|caps| caps.get::<gst::IntRange<i32>>(field).ok());
            ranges.map(|range| (range.min(), range.max())).next()
        };
        let limits = match (limit("width"), limit("height")) {
            (Some((left, right)), Some((top, bottom))) => {
                format!(", only {left}x{top} to {right}x{bottom}")
            }
            _ => String::new(),
        };
        Err(Failure::usage(format!(
            "{} cannot encode video of {width}x{height} pixels{limits}: use another --up-scale, \
             --target-height or --encoder",
            self.factory
        )))
    }
}

/// Raw video of a format.
fn format(name: &str) -> gst::Caps {
    gst::Caps::builder("video/x-raw").field("format", name).build()
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
        // av1enc of GStreamer 1.22 has no cq-level.
        "av1enc" => {
            let quantizer = quality.unwrap_or(24);
            format!("end-usage=q min-quantizer={quantizer} max-quantizer={quantizer} cpu-used=6")
        }
        _ => return None,
    })
}
