// SPDX-License-Identifier: MIT OR Apache-2.0
//! A picture for comparison: frames of the input, scaled by GStreamer, on the left, and the output frames of
//! the same times on the right.

use std::{fs::File, io, path::Path};

use gst::{ClockTime, prelude::*};
use gst_video::prelude::*;

use crate::{
    demuxers::hide_duration,
    failure::{Failure, READER, make},
    pipeline::{add_in_front, bin, static_pad},
    source::Source,
};

/// Times of the frames, in sixths of the duration.
const SIXTHS: [u64; 3] = [1, 3, 5];
/// Pixels between two frames.
const GAP: usize = 8;
/// Wider frames are scaled down.
const MAX_WIDTH: u32 = 1280;
/// Longest wait for a frame.
const TIMEOUT: ClockTime = ClockTime::from_seconds(10);

/// Writes the picture as a PNG.
pub fn write(source: &Source, output: &Path, picture: &Path) -> Result<(), Failure> {
    let enhanced = Source::open(output)?;
    let duration = enhanced.duration.unwrap_or(ClockTime::ZERO);
    let times = SIXTHS.map(|sixth| duration * sixth / 6);
    let right = frames(output, &times, None)?;
    let Some(size) = right.first().map(|frame| (frame.width, frame.height)) else {
        return Err(Failure::input(output, "it contains no frames to compare"));
    };
    let left = frames(&source.path, &times, Some(size))?;
    save(&left, &right, picture).map_err(|error| Failure::output(picture, &error.into()))
}

/// Fails if the picture cannot be written.
pub fn check(picture: &Path) -> Result<(), Failure> {
    let exists = picture.exists();
    let opened = File::options().append(true).create(true).open(picture);
    opened.map_err(|error| Failure::output(picture, &error))?;
    if !exists {
        let _ = std::fs::remove_file(picture);
    }
    Ok(())
}

/// A frame of 8-bit R'G'B', rows without padding.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// The frames at some ascending times, scaled to `size`, or to [`MAX_WIDTH`] if they are wider.
fn frames(
    path: &Path,
    times: &[ClockTime],
    size: Option<(usize, usize)>,
) -> Result<Vec<Picture>, Failure> {
    let pipeline = gst::Pipeline::new();
    let file = make("filesrc")?;
    file.set_property("location", path);
    hide_duration(&static_pad(&file, "src")?);
    let (reader, decoder) = (bin(&pipeline, READER), make("decodebin")?);
    let names = ["videoflip", "videoconvert", "videoscale"];
    let [flip, convert, scale] = names.map(make);
    let (flip, convert, scale) = (flip?, convert?, scale?);
    flip.set_property_from_str("video-direction", "auto");
    scale.set_property("add-borders", false);
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    let caps = match size {
        Some((width, height)) => caps.field("width", width as i32).field("height", height as i32),
        None => caps.field("width", gst::IntRange::new(1, MAX_WIDTH as i32)),
    };
    let sink = gst_app::AppSink::builder().sync(false).max_buffers(2).caps(&caps.build()).build();
    let to_rgb = make("videoconvert")?;
    let chain = [&to_rgb, &flip, &scale, &convert, sink.upcast_ref()];
    let linked = pipeline
        .add_many(chain)
        .and_then(|()| gst::Element::link_many(chain))
        .and_then(|()| reader.add_many([&file, &decoder]))
        .and_then(|()| file.link(&decoder));
    linked.map_err(|error| Failure::input(path, error))?;
    let first = static_pad(&to_rgb, "sink")?;
    add_in_front(&pipeline, &reader, &decoder, &first, |pad| {
        pad.current_caps()
            .is_some_and(|caps| caps.iter().any(|structure| structure.name().starts_with("video/")))
    })?;
    // A file that cannot be decoded has no frames.
    let _ = pipeline.set_state(gst::State::Playing);
    let found = pick(&sink, times);
    let _ = pipeline.set_state(gst::State::Null);
    Ok(found)
}

/// The last frame that starts at or before each time.
fn pick(sink: &gst_app::AppSink, times: &[ClockTime]) -> Vec<Picture> {
    let mut found = Vec::new();
    let mut shown: Option<gst::Sample> = None;
    while found.len() < times.len() {
        let next = sink.try_pull_sample(TIMEOUT);
        let begins = next.as_ref().and_then(|sample| {
            let segment = sample.segment()?.downcast_ref::<ClockTime>()?;
            segment.to_running_time(sample.buffer()?.pts()?)
        });
        while found.len() < times.len() && begins.is_none_or(|begins| begins > times[found.len()]) {
            match shown.as_ref().or(next.as_ref()).and_then(picture) {
                Some(picture) => found.push(picture),
                None => return found,
            }
        }
        shown = next;
    }
    found
}

fn picture(sample: &gst::Sample) -> Option<Picture> {
    let info = gst_video::VideoInfo::from_caps(sample.caps()?).ok()?;
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(sample.buffer()?, &info).ok()?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data(0).ok()?.chunks(stride).take(height);
    let pixels = rows.flat_map(|row| row[..width * 3].iter().copied()).collect();
    Some(Picture { width, height, pixels })
}

/// Writes pairs of frames side by side, one pair below the other.
fn save(left: &[Picture], right: &[Picture], path: &Path) -> Result<(), png::EncodingError> {
    let pairs: Vec<_> = left.iter().zip(right).collect();
    let Some((_, first)) = pairs.first() else {
        return Err(io::Error::other("there are no frames to compare").into());
    };
    let (width, height) = (first.width * 2 + GAP, (first.height + GAP) * pairs.len() - GAP);
    let mut pixels = vec![255; width * height * 3];
    for (index, (left, right)) in pairs.iter().enumerate() {
        for (picture, x) in [(left, 0), (right, first.width + GAP)] {
            for (row, line) in picture.pixels.chunks(picture.width * 3).enumerate() {
                let at = ((index * (first.height + GAP) + row) * width + x) * 3;
                pixels[at..at + line.len()].copy_from_slice(line);
            }
        }
    }
    let file = io::BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    // A better compression takes as long as the enhancement of a short video.
    encoder.set_compression(png::Compression::Fast);
    encoder.write_header()?.write_image_data(&pixels)
}
