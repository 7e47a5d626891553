// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipeline that writes the finished file.

use std::path::Path;

use gst::{ClockTime, prelude::*};

use super::{
    parts::{Select, add, chain, link_to_muxer, read, static_pad},
    streams::copy_other_streams,
};
use crate::{
    failure::{Failure, WRITER, make},
    source::Source,
    target::{Container, Encoder},
};

/// Builds the pipeline that copies the video of the partial file and the other streams of the source into
/// the finished file.
pub fn finish(
    source: &Source,
    container: &Container,
    encoder: &Encoder,
    partial: &Path,
    finished: &Path,
) -> Result<gst::Pipeline, Failure> {
    let pipeline = gst::Pipeline::new();
    let muxer = make(container.muxer)?;
    if let Some(setter) = muxer.dynamic_cast_ref::<gst::TagSetter>() {
        setter.merge_tags(&source.tags, gst::TagMergeMode::Keep);
    }
    let file = make("filesink")?;
    file.set_property("name", WRITER);
    file.set_property("location", finished);
    add(&pipeline, &[&muxer, &file])?;

    let video = chain(&pipeline, &format!("{} ! queue", encoder.finish))?;
    link_to_muxer(&static_pad(&video, "src")?, &muxer, "video_%u")?;
    let sink = static_pad(&video, "sink")?;
    keep_times(&sink);
    read(&pipeline, partial, Select::Video, &sink)?;
    copy_other_streams(&pipeline, source, container, &muxer)?;
    Ok(pipeline)
}

/// Replaces the demuxer's segment by one that starts at zero: times in the partial file are running times,
/// also where the first one is not zero.
fn keep_times(sink: &gst::Pad) {
    sink.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && event.type_() == gst::EventType::Segment
        {
            let segment = gst::FormattedSegment::<ClockTime>::new();
            *event = gst::event::Segment::new(&segment);
        }
        gst::PadProbeReturn::Ok
    });
}
