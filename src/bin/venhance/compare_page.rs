// SPDX-License-Identifier: MIT OR Apache-2.0
//! A page for comparison: one file with the input and the output under a divider. Everything is in it, so that it can be
//! sent to others.

use std::{
    fs::{File, Metadata},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use base64::{engine::general_purpose::STANDARD, write::EncoderWriter};
use gst::prelude::*;

use crate::{
    failure::{Failure, Kind},
    pipeline::{Form, chain, decoder, read, static_pad},
    run::End,
    session::{Session, cancelled},
    source::Source,
    trial::TemporaryFolder,
};

const PAGE: &str = include_str!("page/compare.html");
const STYLE: &str = include_str!("page/slider.css");
const SCRIPT: &str = include_str!("page/slider.js");

/// Browsers open no larger data URL.
const MAX_URL: u64 = 512 << 20;

/// What browsers play in MP4 and WebM.
const AUDIO: [&str; 5] =
    ["audio/mpeg", "audio/x-opus", "audio/x-vorbis", "audio/x-flac", "audio/x-alac"];

/// Writes the page, and returns its size in bytes. A video that browsers do not play is in it as H.264, without sound.
pub fn write(
    session: &Session,
    source: &Source,
    output: &Path,
    page: &Path,
) -> Result<u64, Failure> {
    let enhanced = Source::open(output)?;
    let folder = TemporaryFolder::new()?;
    let before = Playable::new(session, source, folder.0.join("before.mp4"))?;
    let after = Playable::new(session, &enhanced, folder.0.join("after.mp4"))?;
    let bytes = before.bytes + after.bytes;
    if before.bytes.max(after.bytes) / 3 * 4 > MAX_URL {
        return Err(Failure::new(
            Kind::Output,
            format!(
                "--compare {}: the videos have {} MiB, too much for a page that browsers open; compare a shorter \
                 part, or write a .png",
                page.display(),
                bytes >> 20
            ),
        ));
    }
    let info = gst_video::VideoInfo::from_caps(&enhanced.video.caps).ok();
    let rate = info.map(|info| info.fps()).filter(|rate| rate.numer() > 0);
    let fps = rate.map_or(0.0, |rate| f64::from(rate.numer()) / f64::from(rate.denom()));
    let name = source.path.file_name().unwrap_or_default().to_string_lossy();
    let fill = |text: &str| {
        text.replace("/* slider.css */", STYLE)
            .replace("/* slider.js */", SCRIPT)
            .replace("{{fps}}", &fps.to_string())
            .replace("{{name}}", &htmlize::escape_all_quotes(&*name))
    };
    let (head, rest) = PAGE.split_once("{{before}}").unwrap_or((PAGE, ""));
    let (middle, tail) = rest.split_once("{{after}}").unwrap_or((rest, ""));
    let parts = [(fill(head), before), (fill(middle), after)];
    put_together(parts, &fill(tail), page).map_err(|error| {
        let _ = std::fs::remove_file(page);
        Failure::output(page, &error)
    })
}

/// Writes each text and its video, then `tail`. The memory that it takes does not grow with the videos.
fn put_together(parts: [(String, Playable); 2], tail: &str, page: &Path) -> io::Result<u64> {
    let mut file = BufWriter::new(File::create(page)?);
    for (text, mut video) in parts {
        write!(file, "{text}data:{};base64,", video.kind)?;
        let mut encoder = EncoderWriter::new(&mut file, &STANDARD);
        io::copy(&mut video.file, &mut encoder)?;
        encoder.finish()?;
    }
    file.write_all(tail.as_bytes())?;
    file.into_inner()?.metadata().map(|metadata| metadata.len())
}

/// A file that browsers play.
struct Playable {
    file: File,
    bytes: u64,
    kind: &'static str,
}

impl Playable {
    /// The file of a source, or a copy as H.264 at `copy`.
    fn new(session: &Session, source: &Source, copy: PathBuf) -> Result<Self, Failure> {
        let (path, kind) = match kind_of(source) {
            Some(kind) => (source.path.clone(), kind),
            None => {
                let name = source.path.display();
                eprintln!("{name}: browsers do not play it: converting it to H.264 for the page");
                convert(session, source, &copy)?;
                (copy, "video/mp4")
            }
        };
        let open = || {
            let file = File::open(&path)?;
            let bytes = file.metadata().map(|metadata: Metadata| metadata.len())?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(|error: io::Error| Failure::input(&path, error))?;
        Ok(Self { file, bytes, kind })
    }
}

/// The type of a file that browsers play; none of another.
fn kind_of(source: &Source) -> Option<&'static str> {
    let mut head = [0; 64];
    let read = File::open(&source.path).and_then(|mut file| file.read(&mut head)).ok()?;
    let head = &head[..read];
    let kind = match () {
        () if head.get(4..8) == Some(b"ftyp") => "video/mp4",
        () if head.windows(4).any(|bytes| bytes == b"webm") => "video/webm",
        () => return None,
    };
    let video = source.video.caps.structure(0)?;
    let profile = video.get::<&str>("profile").unwrap_or_default();
    let plays = match video.name().as_str() {
        "video/x-h264" => ["constrained-baseline", "baseline", "main", "high", "progressive-high"]
            .contains(&profile),
        "video/x-vp8" | "video/x-av1" => true,
        "video/x-vp9" => ["", "0"].contains(&profile),
        _ => false,
    };
    let sound = source.audio.iter().all(|stream| AUDIO.iter().any(|format| stream.is(format)));
    (plays && sound).then_some(kind)
}

/// Writes the video of a source as H.264 in MP4.
fn convert(session: &Session, source: &Source, copy: &Path) -> Result<(), Failure> {
    let info = gst_video::VideoInfo::from_caps(&source.video.caps);
    let info =
        info.map_err(|_| Failure::input(&source.path, "the size of its video is unknown"))?;
    let (width, height) = match source.swaps_sides {
        true => (info.height(), info.width()),
        false => (info.width(), info.height()),
    };
    // 4:2:0 needs even sides.
    let (width, height) = (width.next_multiple_of(2), height.next_multiple_of(2));
    let pipeline = gst::Pipeline::new();
    let encoding = chain(
        &pipeline,
        &format!(
            "videoconvert ! deinterlace ! videoflip video-direction=auto ! videoscale add-borders=false \
             ! video/x-raw,format=I420,width={width},height={height},pixel-aspect-ratio=1/1 \
             ! x264enc pass=qual quantizer=18 ! h264parse ! queue ! mp4mux ! filesink name=copy"
        ),
    )?;
    let file = encoding.downcast_ref::<gst::Bin>().and_then(|bin| bin.by_name("copy"));
    if let Some(file) = file {
        file.set_property("location", copy);
    }
    let decoded = decoder(&pipeline, &static_pad(&encoding, "sink")?)?;
    read(&pipeline, &source.path, &source.video.id, Form::Parsed, &decoded)?;
    let end = session.run(&pipeline, source, copy, None);
    let _ = pipeline.set_state(gst::State::Null);
    match end? {
        End::Eos(_) => Ok(()),
        End::Interrupted => Err(cancelled("the output is finished, the comparison is not")),
    }
}
