// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipeline that writes the finished file.

use std::{fs::File, io, os::fd::AsRawFd, path::Path};

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::{
    edit_list,
    parts::{add, chain, link_to_muxer, read_partial, running_time, static_pad},
    streams::copy_other_streams,
    times::demuxed_time,
};
use crate::{
    failure::{Failure, WRITER, make},
    partial::Content,
    source::Source,
    target::{Container, Encoder, Treatment},
};

/// Times in the partial file are rounded.
const ROUNDING: ClockTime = ClockTime::MSECOND;

/// The parts of the finished file.
pub struct Finish<'a> {
    pub source: &'a Source,
    pub container: &'a Container,
    pub encoder: &'a Encoder,
    /// The video of the partial file.
    pub content: &'a Content,
}

impl Finish<'_> {
    /// Builds the pipeline that copies the video of the partial file and the other streams of the source
    /// into the finished file, which must stay open while the pipeline runs. By its name, another process could have
    /// put a link in its place.
    pub fn pipeline(&self, partial: &Path, finished: &File) -> Result<gst::Pipeline, Failure> {
        let pipeline = gst::Pipeline::new();
        let muxer = make(self.container.muxer)?;
        if let Some(setter) = muxer.dynamic_cast_ref::<gst::TagSetter>() {
            setter.merge_tags(&self.source.tags, gst::TagMergeMode::Keep);
        }
        if let Some(setter) = muxer.dynamic_cast_ref::<gst::TocSetter>() {
            setter.set_toc(self.source.chapters.toc().as_ref());
        }
        let file = make("fdsink")?;
        file.set_property("name", WRITER);
        file.set_property("fd", finished.as_raw_fd());
        add(&pipeline, &[&muxer, &file])?;

        let frames = self.content.frames;
        let video = chain(&pipeline, &format!("{} ! queue", self.encoder.finish(frames)))?;
        let pad = link_to_muxer(&static_pad(&video, "src")?, &muxer, "video_%u")?;
        end_last_packet(&pad, self.content, self.container.has_boxes());
        let sink = static_pad(&video, "sink")?;
        keep_times(&sink);
        let caps = self.content.caps.clone();
        read_partial(&pipeline, partial, &sink, move |pad| {
            complete_caps(pad, caps.clone());
            complete_times(pad);
        })?;
        copy_other_streams(&pipeline, self.source, self.container, &muxer)?;
        Ok(pipeline)
    }

    /// Number of sound and of subtitle tracks in the finished file.
    pub fn streams(&self) -> Result<(usize, usize), Failure> {
        let subtitles = self.source.subtitles.iter().map(|stream| self.container.subtitles(stream));
        let subtitles = subtitles.collect::<Result<Vec<_>, _>>()?;
        let kept = subtitles.iter().filter(|treatment| **treatment != Treatment::Drop);
        Ok((self.source.audio.len(), kept.count()))
    }

    /// Does what the muxer of a written file does not: removes the encoder's delay from the audio, and writes chapters.
    pub fn edit_boxes(&self, finished: &File, path: &Path) -> Result<(), Failure> {
        if !self.container.has_boxes() {
            return Ok(());
        }
        let audio = self.source.audio.iter().map(|stream| self.container.audio(stream));
        let treatments = audio.collect::<Result<Vec<_>, _>>()?;
        let encoded = |(number, treatment)| match treatment {
            Treatment::Encode(_) => Some(number),
            _ => None,
        };
        let tracks: Vec<_> = treatments.into_iter().enumerate().filter_map(encoded).collect();
        let edit = || {
            if !tracks.is_empty() {
                edit_list::skip_first_packet(finished, &tracks)?;
            }
            self.source.chapters.write_box(finished)
        };
        edit().map_err(|error: io::Error| Failure::output(path, &error))
    }
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

/// Adds the fields of the encoder's caps to those of the demuxer: for some codecs, GStreamer 1.22 reads fields under other
/// names than its muxers expect.
fn complete_caps(demuxer: &gst::Pad, encoded: gst::Caps) {
    demuxer.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Caps(demuxed) = event.view()
        {
            let caps = completed(demuxed.caps_owned(), &encoded);
            *event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}

/// Gives every packet a timestamp.
fn complete_times(demuxer: &gst::Pad) {
    demuxer.add_probe(gst::PadProbeType::BUFFER, |pad, info| {
        if let Some(buffer) = info.buffer_mut()
            && buffer.pts().is_none()
        {
            let time = demuxed_time(pad, buffer);
            buffer.make_mut().set_pts(time);
        }
        gst::PadProbeReturn::Ok
    });
}

fn completed(mut caps: gst::Caps, encoded: &gst::CapsRef) -> gst::Caps {
    let (Some(video), Some(encoded)) = (caps.make_mut().structure_mut(0), encoded.structure(0))
    else {
        return caps;
    };
    if video.name() == encoded.name() {
        for (name, value) in encoded.iter() {
            if !video.has_field(name.as_str()) {
                video.set_value(name.as_str(), value.clone());
            }
        }
        // Matroska has the width that a player shows, in whole pixels.
        if let Ok(aspect) = encoded.value("pixel-aspect-ratio") {
            video.set_value("pixel-aspect-ratio", aspect.clone());
        }
    }
    // mp4mux of GStreamer 1.22 crashes without it.
    if video.name() == "video/x-vp9" && !video.has_field("chroma-site") {
        video.set("chroma-site", "mpeg2");
    }
    caps
}

/// Lets the video end where its last frame ends.
///
/// - The partial file does not contain the duration of the last frame, which differs from the others at a variable
///   rate, and at an exact one.
/// - MP4 adds up the durations in decoding order, where the last packet need not be the frame that is shown
///   last: with frames of different durations, the sum can be too short, and the last frame is not shown.
fn end_last_packet(muxer: &gst::Pad, content: &Content, in_decoding_order: bool) {
    let Content { frames, last, end, .. } = *content;
    // Number of packets, and the times of the first one for showing and for decoding. The elements that compute the
    // latter count from a time far from 0.
    let seen = Mutex::new((0, None));
    muxer.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
        let Some(time) = running_time(pad, buffer) else { return gst::PadProbeReturn::Ok };
        let dts = buffer.dts_or_pts().unwrap_or(time);
        let (packets, first) = &mut *seen.lock();
        *packets += 1;
        let (first_time, first_dts) = *first.get_or_insert((time, dts));
        let duration = match in_decoding_order {
            true if *packets == frames => {
                let decoded = dts.saturating_sub(first_dts);
                Some(end.saturating_sub(first_time).saturating_sub(decoded))
            }
            false if time.absdiff(last) <= ROUNDING => Some(end.saturating_sub(time)),
            _ => None,
        };
        if let Some(duration) = duration.filter(|duration| !duration.is_zero()) {
            buffer.make_mut().set_duration(duration);
        }
        gst::PadProbeReturn::Ok
    });
}
