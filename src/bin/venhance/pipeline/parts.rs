// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the pipelines are built from: readers, decoders, chains of elements, links.

use std::{fmt, path::Path};

use gst::{ClockTime, prelude::*};

use crate::{
    demuxers::{end_at_end_of_file, hide_duration},
    failure::{Failure, Kind, PARTIAL, READER, make},
    target,
};

/// How a stream of the input is read.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    /// As `parsebin` gives it.
    Parsed,
    /// As the demuxer gives it: subtitles that a parser would turn into text.
    Unparsed,
}

/// Subtitles that muxers take as they are, but that `parsebin` would turn into text.
const SUBTITLES: [&str; 2] = ["application/x-ass", "application/x-ssa"];

/// Adds a reader that feeds the stream `id` of the input to `sink`.
pub fn read(
    pipeline: &gst::Pipeline,
    path: &Path,
    id: &str,
    form: Form,
    sink: &gst::Pad,
) -> Result<(), Failure> {
    let (file, parser) = (make("filesrc")?, make("parsebin")?);
    file.set_property("location", path);
    let reader = bin(pipeline, READER);
    reader.add_many([&file, &parser]).and_then(|()| file.link(&parser)).map_err(internal)?;
    let output = static_pad(&file, "src")?;
    end_at_end_of_file(&output, path, sink);
    hide_duration(&output);
    if form == Form::Unparsed {
        parser.connect("autoplug-continue", false, |arguments| {
            let caps = arguments.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
            let name = caps.and_then(|caps| Some(caps.structure(0)?.name().to_string()));
            Some(name.is_none_or(|name| !SUBTITLES.contains(&name.as_str())).to_value())
        });
    }
    let id = id.to_owned();
    add_in_front(pipeline, &reader, &parser, sink, move |pad| {
        pad.stream_id().is_some_and(|stream| stream == id.as_str())
    })
}

/// Adds a reader that feeds the video of the partial file to `sink`, as its encoder produced it. `prepare`
/// gets the demuxer's pad.
pub fn read_partial(
    pipeline: &gst::Pipeline,
    path: &Path,
    sink: &gst::Pad,
    prepare: impl Fn(&gst::Pad) + Send + Sync + 'static,
) -> Result<(), Failure> {
    let (file, demuxer) = (make("filesrc")?, make("matroskademux")?);
    file.set_property("location", path);
    let reader = bin(pipeline, PARTIAL);
    reader.add_many([&file, &demuxer]).and_then(|()| file.link(&demuxer)).map_err(internal)?;
    add_in_front(pipeline, &reader, &demuxer, sink, move |pad| {
        let video = pad.name().starts_with("video");
        if video {
            prepare(pad);
        }
        video
    })
}

/// A bin whose name says what it is for.
pub fn bin(pipeline: &gst::Pipeline, prefix: &str) -> gst::Bin {
    gst::Bin::with_name(&format!("{prefix}-{}", pipeline.children().len()))
}

/// Adds a decoder in front of `sink`, and returns the pad that takes the encoded stream.
pub fn decoder(pipeline: &gst::Pipeline, sink: &gst::Pad) -> Result<gst::Pad, Failure> {
    let (bin, decoder) = (bin(pipeline, READER), make("decodebin")?);
    bin.add(&decoder).map_err(internal)?;
    let input = gst::GhostPad::with_target(&static_pad(&decoder, "sink")?).map_err(internal)?;
    bin.add_pad(&input).map_err(internal)?;
    add_in_front(pipeline, &bin, &decoder, sink, |_| true)?;
    Ok(input.upcast())
}

/// Adds a bin that feeds `sink` from the first pad that its element `source` adds and `wanted` accepts.
///
/// The bin is linked at once, through a ghost pad without a target: a pipeline starts its elements in the
/// order of their links, and an element that starts before the one it feeds finds it flushing, and stops.
pub fn add_in_front(
    pipeline: &gst::Pipeline,
    bin: &gst::Bin,
    source: &gst::Element,
    sink: &gst::Pad,
    wanted: impl Fn(&gst::Pad) -> bool + Send + Sync + 'static,
) -> Result<(), Failure> {
    let output = gst::GhostPad::new(gst::PadDirection::Src);
    bin.add_pad(&output).map_err(internal)?;
    add(pipeline, &[bin.upcast_ref()])?;
    link(output.upcast_ref(), sink)?;
    let output = output.downgrade();
    // Without this error, what the bin feeds waits forever.
    let found = output.clone();
    source.connect_no_more_pads(move |source| {
        if found.upgrade().is_some_and(|output| output.target().is_none()) {
            gst::element_error!(source, gst::StreamError::Demux, ("a stream is missing"));
        }
    });
    source.connect_pad_added(move |_, pad| {
        let output = output.upgrade().filter(|output| output.target().is_none());
        if let Some(output) = output.filter(|_| wanted(pad)) {
            // If the pad does not fit, the demuxer posts a not-linked error.
            let _ = output.set_target(Some(pad));
        } else {
            // Some demuxers stop at a stream that nobody reads.
            let data = gst::PadProbeType::BUFFER | gst::PadProbeType::BUFFER_LIST;
            pad.add_probe(data, |_, _| drop_if(true));
        }
    });
    Ok(())
}

/// The pad that is fed by the reader or decoder to which `object` belongs.
pub fn fed_by(object: &gst::Object) -> Option<gst::Pad> {
    let mut part = Some(object.clone());
    while let Some(object) = part {
        if object.name().starts_with(READER) {
            return object.downcast_ref::<gst::Bin>()?.static_pad("src")?.peer();
        }
        part = object.parent();
    }
    None
}

/// Adds elements and links them in their order.
pub fn add(pipeline: &gst::Pipeline, elements: &[&gst::Element]) -> Result<(), Failure> {
    pipeline.add_many(elements).and_then(|()| gst::Element::link_many(elements)).map_err(internal)
}

/// Adds a bin of elements in gst-launch syntax, with a pad at each end.
pub fn chain(pipeline: &gst::Pipeline, description: &str) -> Result<gst::Element, Failure> {
    let bin = target::parse(description)?;
    add(pipeline, &[bin.upcast_ref()])?;
    Ok(bin.upcast())
}

pub fn link(src: &gst::Pad, sink: &gst::Pad) -> Result<(), Failure> {
    src.link(sink).map(|_| ()).map_err(internal)
}

/// Links to a new pad of a muxer, and returns that pad.
pub fn link_to_muxer(
    src: &gst::Pad,
    muxer: &gst::Element,
    template: &str,
) -> Result<gst::Pad, Failure> {
    let pad = muxer.request_pad_simple(template).ok_or_else(|| {
        let name = muxer.factory().map_or(muxer.name(), |factory| factory.name());
        internal(format!("{name} has no pad {template}"))
    })?;
    link(src, &pad)?;
    Ok(pad)
}

pub fn static_pad(element: &gst::Element, name: &str) -> Result<gst::Pad, Failure> {
    element.static_pad(name).ok_or_else(|| internal(format!("{} has no {name}", element.name())))
}

/// A pipeline cannot be built.
fn internal(error: impl fmt::Display) -> Failure {
    Failure::new(Kind::Output, format!("cannot build the pipeline: {error}"))
}

/// The running time of a buffer on a pad.
pub fn running_time(pad: &gst::Pad, buffer: &gst::BufferRef) -> Option<ClockTime> {
    let event = pad.sticky_event::<gst::event::Segment>(0)?;
    let segment = event.segment().downcast_ref::<ClockTime>()?;
    segment.to_running_time(buffer.pts().or(buffer.dts())?)
}

/// What a pad probe returns to drop or to pass a buffer.
pub fn drop_if(drop: bool) -> gst::PadProbeReturn {
    match drop {
        // Not `Drop`: the binding has already released the buffer, and GStreamer 1.22 warns about it.
        true => gst::PadProbeReturn::Handled,
        false => gst::PadProbeReturn::Ok,
    }
}
