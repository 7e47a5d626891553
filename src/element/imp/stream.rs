// SPDX-License-Identifier: MIT OR Apache-2.0
//! The streaming thread: what each serialized event does, and how items enter the queue.

use std::time::Instant;

use gst::{ClockTime, prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};
use gst_video::VideoInfo;

use super::{CAT, VEnhance, caps};
use crate::element::{
    clips::Clips,
    progress::LatencyPart,
    queue::{BufferInfo, Picture, QueueItem},
    timeline::ClipEnd,
};

impl VEnhance {
    /// Posts an error when refused caps come. The sink pad itself refuses them after that, because
    /// `accept_caps` does, and calls no event function.
    pub(super) fn explain_refused_caps(&self) {
        let imp = self.obj().downgrade();
        self.obj().sink_pad().add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            if let (Some(obj), Some(gst::PadProbeData::Event(event))) = (imp.upgrade(), &info.data)
                && let gst::EventView::Caps(e) = event.view()
                && let Some(refusal) = obj.imp().refusal(e.caps())
            {
                let error = gst::error_msg!(gst::StreamError::Format, ("{refusal}"), ["{event:?}"]);
                obj.imp().fail(error);
            }
            gst::PadProbeReturn::Ok
        });
    }

    /// Why caps are refused, with the current properties, and what to do; `None` if they are accepted.
    pub(super) fn refusal(&self, caps: &gst::CapsRef) -> Option<String> {
        caps::refusal(caps).or_else(|| {
            let input = caps::fixed_size(caps.structure(0)?)?;
            let properties = self.properties.lock();
            let properties = properties.in_effect();
            let sized = properties.check().and_then(|()| properties.sizing().size(input));
            sized.err().map(|error| error.to_string())
        })
    }

    /// Whether the caps of the sink pad are refused after a change of properties. Posts the error.
    fn refuses_current_caps(&self) -> bool {
        let caps = self.src_pad().needs_reconfigure().then(|| self.obj().sink_pad().current_caps());
        let refusal = caps.flatten().and_then(|caps| self.refusal(&caps));
        if let Some(refusal) = &refusal {
            self.fail(gst::error_msg!(gst::StreamError::Format, ("{refusal}")));
        }
        refusal.is_some()
    }

    /// Posts a warning if upstream asks for caps that are refused: it may end the stream without sending
    /// them, and with an error that does not say why.
    pub(super) fn warn_of_refusal(&self, refusal: &str) {
        let quiet = {
            let state = &mut *self.state.lock();
            let stopped = state.compute.is_none();
            stopped || state.failed || std::mem::replace(&mut state.warned_of_refusal, true)
        };
        if !quiet {
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{refusal}"));
        }
    }

    /// Takes a buffer: negotiates if necessary, converts it to a frame, and puts that in the queue.
    pub(super) fn take_buffer(
        &self,
        buffer: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.refuses_current_caps() || !self.obj().reconfigure() {
            return Err(self.queue.flow().err().unwrap_or(gst::FlowError::NotNegotiated));
        }
        let cancel = self.queue.cancel();
        self.queue.flow()?;
        self.start_segment();
        gst::trace!(CAT, imp = self, "Received {buffer:?}; {}", self.queue.levels());

        let start = Instant::now();
        let unpacker = self.state.lock().input.clips.as_ref().map(Clips::unpacker);
        let unpacker = unpacker.ok_or(gst::FlowError::NotNegotiated)?;
        let (target_fps, skip_frames, shot_detection) = {
            let properties = self.properties.lock();
            let properties = properties.in_effect();
            (properties.target_fps, properties.skip_frames, properties.shot_detection)
        };
        let number = self.state.lock().statistics.frames_in;
        let is_skipped = number < u64::from(skip_frames);
        let frame = match is_skipped && !shot_detection {
            true => Picture::Skipped(None),
            false => {
                let frame = unpacker.unpack(&buffer, &cancel);
                let failed = |error| self.convert_failed(error, gst::StreamError::Decode);
                let frame = frame.map_err(failed)?;
                if is_skipped { Picture::Skipped(Some(frame)) } else { Picture::Frame(frame) }
            }
        };
        let items = {
            let state = &mut *self.state.lock();
            state.statistics.frames_in += 1;
            let input = &mut state.input;
            let clips = input.clips.as_mut().ok_or(gst::FlowError::NotNegotiated)?;
            let mut flags =
                buffer.flags() & (gst::BufferFlags::DISCONT | gst::BufferFlags::CORRUPTED);
            if std::mem::take(&mut input.discont) {
                flags |= gst::BufferFlags::DISCONT;
            }
            let info = BufferInfo::new(&buffer, flags, number);
            clips.set_target_fps(target_fps);
            let start = input.segment.start().unwrap_or(ClockTime::ZERO);
            clips.push_frame(frame, info, start)
        };
        // Before waiting: the pool of upstream may be small.
        drop(buffer);
        self.record(LatencyPart::Input, start.elapsed());
        self.push_items(items)
    }

    /// Puts items in the queue. Frames wait for room. Returns the first error; the items after it are
    /// pushed too, because the queue keeps sticky events.
    pub(super) fn push_items(
        &self,
        items: impl IntoIterator<Item = QueueItem>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut flow = Ok(gst::FlowSuccess::Ok);
        for item in items {
            if let QueueItem::Format(format) = &item {
                self.warn_of_rate(format);
                self.check_rate(format);
                // Ends the flow if there is too little.
                self.check_memory(&format.format);
            }
            flow = flow.and(self.queue.push(item));
        }
        flow
    }

    /// Passes an event on in its order. The clip continues.
    pub(super) fn push_event(&self, event: gst::Event) -> bool {
        let item = match &mut self.state.lock().input.clips {
            Some(clips) => clips.push_event(event),
            None => Some(QueueItem::Event(event)),
        };
        self.push_items(item).is_ok()
    }

    /// Ends the clip. Does not wait for its frames.
    pub(super) fn end_clip(&self, reason: ClipEnd) -> Result<gst::FlowSuccess, gst::FlowError> {
        let items = {
            let input = &mut self.state.lock().input;
            let start = input.segment.start().unwrap_or(ClockTime::ZERO);
            input.clips.as_mut().map(|clips| clips.end_clip(reason, start)).unwrap_or_default()
        };
        self.push_items(items)
    }

    pub(super) fn caps_event(&self, caps: gst::Caps, event: gst::Event) -> bool {
        if self.refusal(&caps).is_some() {
            return false;
        }
        match self.same_picture(&caps) {
            Some(outcaps) => {
                gst::debug!(CAT, imp = self, "Caps of the same picture: the clip continues");
                let seqnum = event.seqnum();
                self.push_event(gst::event::Caps::builder(&outcaps).seqnum(seqnum).build())
            }
            // Negotiates, calls `set_caps`, which drains, and pushes the caps.
            None => self.parent_sink_event(event),
        }
    }

    /// The output caps for input caps that differ from the current ones in other fields than those of
    /// the picture; `None` if the picture differs.
    fn same_picture(&self, caps: &gst::CapsRef) -> Option<gst::Caps> {
        let info = VideoInfo::from_caps(caps).ok()?;
        let same =
            self.state.lock().input.clips.as_ref().is_some_and(|clips| *clips.info() == info);
        let src_pad = self.src_pad();
        let current = src_pad.current_caps().filter(|_| same && !src_pad.needs_reconfigure())?;
        let mut out = caps.structure(0)?.to_owned();
        for field in ["format", "width", "height", "framerate", "colorimetry", "chroma-site"] {
            match current.structure(0)?.value(field) {
                Ok(value) => out.set_value(field, value.clone()),
                Err(_) => out.remove_field(field),
            }
        }
        Some(gst::Caps::builder_full().structure(out).build())
    }

    pub(super) fn segment_event(&self, segment: gst::Segment, event: gst::Event) -> bool {
        let segment = match segment.downcast::<ClockTime>() {
            Ok(segment) => segment,
            Err(segment) => {
                self.fail(gst::error_msg!(
                    gst::StreamError::Format,
                    ("frames need timestamps: put a parser or a decoder before venhance"),
                    ["segment in {:?}", segment.format()]
                ));
                return false;
            }
        };
        if segment.rate() < 0.0 {
            self.fail(gst::error_msg!(
                gst::StreamError::NotImplemented,
                ("playing backwards is not supported: seek with a rate above 0"),
                ["segment rate {}", segment.rate()]
            ));
            return false;
        }
        self.restart_after(gst::FlowError::Eos);
        let continues = {
            let input = &mut self.state.lock().input;
            let continues = !input.segment_starts
                && input
                    .clips
                    .as_ref()
                    .is_some_and(|clips| clips.continues(&input.segment, &segment));
            input.segment = segment;
            input.segment_starts |= !continues;
            input.eos = None;
            continues
        };
        gst::debug!(CAT, imp = self, "Segment continues the one before: {continues}");
        if !continues {
            // In a flush there is no clip.
            let _ = self.end_clip(ClipEnd::Segment);
            self.forget_timeline();
        }
        self.push_event(event)
    }

    /// STREAM_START. A clip goes on if no segment follows.
    pub(super) fn stream_start_event(&self, event: gst::Event) -> bool {
        self.restart_after(gst::FlowError::Eos);
        self.state.lock().input.segment_starts = true;
        self.push_event(event)
    }

    /// Forgets the last frame: the next one begins a clip.
    fn forget_timeline(&self) {
        let input = &mut self.state.lock().input;
        input.segment_starts = true;
        if let Some(clips) = &mut input.clips {
            // Nothing waits for the rate after the end of a clip.
            clips.reset();
        }
    }

    pub(super) fn gap_event(
        &self,
        start: ClockTime,
        duration: Option<ClockTime>,
        event: gst::Event,
    ) -> bool {
        let goes_on = {
            let state = self.state.lock();
            state.input.clips.as_ref().is_some_and(|clips| {
                let short = duration.is_some_and(|gap| clips.spans_one_frame(gap));
                // Decoders forward this event before the frames that they hold.
                short || clips.awaits_frame_before(start)
            })
        };
        (goes_on || self.end_clip(ClipEnd::Gap).is_ok()) && self.push_event(event)
    }

    /// EOS and SEGMENT_DONE.
    pub(super) fn end_event(&self, event: gst::Event) -> bool {
        self.state.lock().input.eos = Some(event.clone());
        let ended = self.end_clip(ClipEnd::EndOfStream).is_ok();
        self.forget_timeline();
        let passed = ended && self.push_event(event.clone());
        match self.queue.flow() {
            // Downstream takes no more frames, and still waits for the event.
            Err(gst::FlowError::Eos) if !passed => return self.src_pad().push_event(event),
            Err(error) => self.post_flow_error(error),
            Ok(_) => {}
        }
        passed
    }

    /// With the first frame of a segment, finds out how long the segment is.
    pub(super) fn start_segment(&self) {
        let segment = {
            let input = &mut self.state.lock().input;
            if !std::mem::take(&mut input.segment_starts) {
                return;
            }
            input.segment.clone()
        };
        let start = segment.start().unwrap_or(ClockTime::ZERO);
        let duration = || self.obj().sink_pad().peer_query_duration::<ClockTime>();
        let stop = segment.stop().or_else(|| segment.position_from_stream_time(duration()?));
        gst::debug!(CAT, imp = self, "Segment from {start} to {stop:?}");
        self.state.lock().statistics.start_segment(start, stop);
    }

    /// Posts a flow error that upstream cannot be told, because it pushes no more buffers.
    pub(super) fn post_flow_error(&self, error: gst::FlowError) {
        if !matches!(error, gst::FlowError::Flushing | gst::FlowError::Eos) {
            self.fail(gst::error_msg!(
                gst::StreamError::Failed,
                ("downstream returned {error}; see the error of the element after venhance")
            ));
        }
    }
}
