// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipeline that enhances.

use std::sync::Arc;

use gst::{ClockTime, prelude::*};

use super::{
    colour,
    conform::{conform, keep_first_caps},
    losses::{warn_of_lost_alpha, warn_of_lost_depth},
    parts::{Form, add, decoder, drop_if, link, link_to_muxer, read, running_time, static_pad},
    state::State,
    streams::copy_other_streams,
    times::restore_encoded_times,
};
use crate::{
    failure::{ENCODER, Failure, WRITER, make},
    partial::{Partial, ResumePoint},
    run::Shown,
    source::Source,
    target::{self, Encoder, MATROSKA},
};

/// The time of a frame can differ by this much between two runs: containers round it, twice.
const ROUNDING: ClockTime = ClockTime::from_mseconds(2);

/// The pipeline from the input to the partial file.
pub struct Work {
    pub pipeline: gst::Pipeline,
    pub state: Arc<State>,
    enhancer: gst::Element,
    /// Where the decoder hands the frames on.
    decoded: gst::Pad,
    /// Probes on the enhancer's pads. The enhancer outlives the pipeline.
    probes: Vec<(gst::Pad, gst::PadProbeId)>,
    /// The muxer's pads for audio and subtitles, where [`stop`](Self::stop) ends these streams.
    other_pads: Vec<gst::Pad>,
}

impl Work {
    /// Builds the pipeline. The partial file already contains the frames before `start`. Only the first
    /// `until` frames of the video are made, or all.
    pub fn new(
        source: &Source,
        encoder: &Encoder,
        enhancer: &gst::Element,
        partial: Partial,
        start: ResumePoint,
        until: Option<u64>,
    ) -> Result<Self, Failure> {
        let pipeline = gst::Pipeline::new();
        let state = Arc::new(State::new(partial, start));
        let muxer = add_muxer(&pipeline, &state)?;
        let (decoded, video) = add_video(&pipeline, source, encoder, enhancer, &muxer)?;
        let other_pads = copy_other_streams(&pipeline, source, &MATROSKA, &muxer)?;
        let mut work = Self {
            pipeline,
            state,
            enhancer: enhancer.clone(),
            decoded,
            probes: Vec::new(),
            other_pads,
        };
        work.record_stream(&video);
        // The input is decoded from its start instead of seeking: this is exact in every format, and fast
        // compared with the model.
        enhancer.set_property("skip-frames", start.skip);
        work.watch_enhancer_output(start.time)?;
        if let Some(frames) = until {
            work.end_after(frames);
        }
        for pad in &work.other_pads {
            work.watch_other(pad, start.time);
        }
        Ok(work)
    }

    /// Records the model and the caps of the encoded video in the partial file.
    fn record_stream(&self, video: &gst::Pad) {
        let (state, enhancer) = (self.state.clone(), self.enhancer.clone());
        video.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view()) else {
                return gst::PadProbeReturn::Ok;
            };
            let model = enhancer.property::<gstvenhance::Model>("active-model");
            let stream = format!("{model:?}, {}", caps.caps());
            state.set_caps(caps.caps_owned());
            let element = pad.parent_element().unwrap_or(enhancer.clone());
            // The file must not mix two streams.
            drop_if(state.write(&element, |partial| partial.set_stream(stream)).is_err())
        });
    }

    /// Drops the output frames before `from` and those after [`stop`](Self::stop). Starts a new piece every
    /// two seconds.
    fn watch_enhancer_output(&mut self, from: ClockTime) -> Result<(), Failure> {
        let src = static_pad(&self.enhancer, "src")?;
        let (state, enhancer) = (self.state.clone(), self.enhancer.downgrade());
        let probe = src.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let Some(buffer) = info.buffer() else { return gst::PadProbeReturn::Ok };
            let Some(time) = running_time(pad, buffer) else { return gst::PadProbeReturn::Ok };
            if state.stopped() {
                // The enhancer computes no more frames.
                info.flow_res = Err(gst::FlowError::Eos);
                return drop_if(true);
            }
            if time + (frame_duration(pad) / 2).min(ROUNDING) < from {
                return drop_if(true);
            }
            if state.starts_piece(time) {
                if let Some(enhancer) = enhancer.upgrade() {
                    state.add_resume_point(resume_point(&enhancer, time, state.all_frames()));
                }
                request_key_frame(pad);
            }
            state.count_frame(time, buffer.duration().unwrap_or_else(|| frame_duration(pad)));
            gst::PadProbeReturn::Ok
        });
        self.probes.extend(probe.map(|probe| (src, probe)));
        Ok(())
    }

    /// Ends the video after so many frames. The model does not know of it: it has the input that the last of them needs.
    fn end_after(&self, frames: u64) {
        let Some(next) = self.enhancer.static_pad("src").and_then(|pad| pad.peer()) else { return };
        let state = self.state.clone();
        next.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
            if state.all_frames() == frames && !state.stopped() {
                state.stop();
                // This waits for the frame, which is in the pad.
                let pad = pad.clone();
                std::thread::spawn(move || pad.send_event(gst::event::Eos::new()));
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// Drops what the partial file already contains, and what comes after [`stop`](Self::stop).
    fn watch_other(&self, pad: &gst::Pad, from: ClockTime) {
        let state = self.state.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let time = info.buffer().and_then(|buffer| running_time(pad, buffer));
            let duration = info.buffer().and_then(|buffer| buffer.duration());
            if let Some(time) = time {
                state.extend(time + duration.unwrap_or_default());
            }
            let early = from > ClockTime::ZERO && time.is_none_or(|time| time < from);
            drop_if(early || state.stopped())
        });
    }

    /// Where the video begins in its file; the duration counts from 0.
    pub fn offset(&self) -> ClockTime {
        let segment = self.decoded.sticky_event::<gst::event::Segment>(0);
        let segment = segment.as_ref().and_then(|event| event.segment().downcast_ref());
        let start = segment.and_then(gst::FormattedSegment::<ClockTime>::start);
        start.unwrap_or(ClockTime::ZERO)
    }

    /// The duration of the video according to its demuxer.
    pub fn duration(&self) -> Option<ClockTime> {
        self.decoded.peer_query_duration::<ClockTime>()
    }

    /// The format of the enhanced video, once it is known.
    pub fn output_info(&self) -> Option<gst_video::VideoInfo> {
        output_info(&self.enhancer)
    }
}

impl Shown for Work {
    fn progress(&self) -> (ClockTime, u64, Option<f64>) {
        (self.state.position(), self.state.frames(), output_rate(&self.enhancer))
    }

    /// Ends all streams at once: frames in the enhancer are dropped, frames in the encoder are written. The
    /// end-of-stream message follows on the bus.
    fn stop(&self) -> bool {
        self.state.stop();
        let video = self.enhancer.static_pad("src").and_then(|pad| pad.peer());
        for pad in self.other_pads.iter().chain(&video) {
            let pad = pad.clone();
            // Each call waits for the buffer in its pad, which may wait for another stream.
            std::thread::spawn(move || pad.send_event(gst::event::Eos::new()));
        }
        true
    }
}

impl Drop for Work {
    /// Stops the pipeline, closes the partial file, and removes the enhancer from the pipeline with its model loaded.
    fn drop(&mut self) {
        // Unblocks every thread that is in the enhancer, or that waits in the muxer for its frames.
        if let Some(sink) = self.enhancer.static_pad("sink") {
            sink.send_event(gst::event::FlushStart::new());
        }
        self.enhancer.set_locked_state(true);
        let _ = self.enhancer.set_state(gst::State::Ready);
        let _ = self.pipeline.set_state(gst::State::Null);
        // GStreamer can hold a reference to an element, and with it the state, until the process ends.
        self.state.partial().close();
        let _ = self.pipeline.remove(&self.enhancer);
        self.enhancer.set_locked_state(false);
        for (pad, probe) in self.probes.drain(..) {
            pad.remove_probe(probe);
        }
    }
}

/// Adds the muxer and the sink that writes to the partial file.
fn add_muxer(pipeline: &gst::Pipeline, state: &Arc<State>) -> Result<gst::Element, Failure> {
    let muxer = make(MATROSKA.muxer)?;
    muxer.set_property("streamable", true);
    // Finer than the default of a millisecond, so that the finished file gets exact times.
    muxer.set_property("timecodescale", 100_000i64);
    muxer.set_property("min-cluster-duration", 0i64);
    let state = state.clone();
    let callbacks = gst_app::AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            match sample.buffer() {
                Some(buffer) => state.write_muxed(sink.upcast_ref(), buffer),
                None => Ok(gst::FlowSuccess::Ok),
            }
        })
        .build();
    let writer = gst_app::AppSink::builder().name(WRITER).sync(false).callbacks(callbacks).build();
    add(pipeline, &[&muxer, writer.upcast_ref()])?;
    Ok(muxer)
}

/// Adds reader, decoder, enhancer and encoder, and returns where the decoder hands the
/// frames on, and the muxer's pad for the video.
fn add_video(
    pipeline: &gst::Pipeline,
    source: &Source,
    encoder: &Encoder,
    enhancer: &gst::Element,
    muxer: &gst::Element,
) -> Result<(gst::Pad, gst::Pad), Failure> {
    let mut path = conform(source, enhancer)?;
    path.push(enhancer.clone());
    if let Some(caps) = &encoder.input {
        let filter = make("capsfilter")?;
        filter.set_property("caps", caps);
        path.push(filter);
    }
    add(pipeline, &path.iter().collect::<Vec<_>>())?;
    let encoding = add_encoder(pipeline, encoder)?;
    let encoding_sink = static_pad(&encoding, "sink")?;
    let decoded = static_pad(&path[0], "sink")?;
    keep_first_caps(&encoding_sink);
    warn_of_lost_alpha(&encoding_sink, &decoded);
    if let Some(other) = encoder.deeper {
        warn_of_lost_depth(&decoded, other);
    }
    link(&static_pad(&path[path.len() - 1], "src")?, &encoding_sink)?;
    let video = link_to_muxer(&static_pad(&encoding, "src")?, muxer, "video_%u")?;
    add_input(pipeline, source, &decoded)?;
    Ok((decoded, video))
}

/// Adds reader and decoder of the video in front of `decoded`.
pub(super) fn add_input(
    pipeline: &gst::Pipeline,
    source: &Source,
    decoded: &gst::Pad,
) -> Result<(), Failure> {
    let decoder = decoder(pipeline, decoded)?;
    colour::keep_range(&decoder, decoded);
    read(pipeline, &source.path, &source.video.id, Form::Parsed, &decoder)
}

/// Adds the encoder, with a name that tells its errors from others.
pub fn add_encoder(pipeline: &gst::Pipeline, encoder: &Encoder) -> Result<gst::Element, Failure> {
    let bin = target::parse(&encoder.description)?;
    bin.set_property("name", ENCODER);
    restore_encoded_times(&bin)?;
    add(pipeline, &[bin.upcast_ref()])?;
    Ok(bin.upcast())
}

/// Asks the encoder to start a new group of pictures with the next frame.
fn request_key_frame(pad: &gst::Pad) {
    // Without a time: x264enc of GStreamer 1.22 honours only the first request with one, because it compares
    // the time with one that it has moved 1000 hours ahead.
    let event = gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(true).build();
    pad.push_event(event);
}

/// The resume point before the output frame at `time`, which is in a probe on the enhancer's source pad, after so many
/// `frames`.
pub(super) fn resume_point(enhancer: &gst::Element, time: ClockTime, frames: u64) -> ResumePoint {
    let enhancer = enhancer.downcast_ref::<gstvenhance::VEnhance>();
    let skip = enhancer.and_then(|enhancer| enhancer.resume_from()?.try_into().ok());
    // Without one, a resumed run computes everything before it again.
    ResumePoint { time, skip: skip.unwrap_or(0), frames }
}

fn output_info(enhancer: &gst::Element) -> Option<gst_video::VideoInfo> {
    let caps = enhancer.static_pad("src")?.current_caps()?;
    gst_video::VideoInfo::from_caps(&caps).ok()
}

/// Frames a second of the enhanced video, once they are known.
pub(super) fn output_rate(enhancer: &gst::Element) -> Option<f64> {
    let rate = output_info(enhancer)?.fps();
    (rate.numer() > 0).then(|| f64::from(rate.numer()) / f64::from(rate.denom()))
}

/// The frame rate of a pad's caps as numerator and denominator; 0/1 if unknown.
fn rate(pad: &gst::Pad) -> (u32, u32) {
    let caps = pad.current_caps();
    let info = caps.and_then(|caps| gst_video::VideoInfo::from_caps(&caps).ok());
    let fps = info.map_or(gst::Fraction::new(0, 1), |info| info.fps());
    (fps.numer().max(0) as u32, fps.denom().max(1) as u32)
}

/// The duration of a frame at the rate of the caps; at 24 fps if the rate is unknown.
fn frame_duration(pad: &gst::Pad) -> ClockTime {
    match rate(pad) {
        (0, _) => ClockTime::SECOND / 24,
        (numer, denom) => {
            ClockTime::SECOND.mul_div_floor(denom.into(), numer.into()).unwrap_or(ClockTime::ZERO)
        }
    }
}
