// SPDX-License-Identifier: MIT OR Apache-2.0
//! The push task: takes what is ready out of the queue and pushes it downstream, in order.

use std::{collections::TryReserveError, hint::black_box, time::Instant};

use gst::{ClockTime, prelude::*, subclass::prelude::*};
use gst_base::prelude::*;
use gst_video::VideoInfo;

use super::{CAT, VEnhance};
use crate::{
    element::{
        convert::Packer,
        progress::LatencyPart,
        queue::{OutputFrame, OutputItem},
    },
    engine::{Cancel, Error},
};

/// Fills output buffers of the current caps.
pub(super) struct Writer {
    pub(super) packer: Packer,
    pub(super) input: VideoInfo,
    pub(super) output: VideoInfo,
}

impl VEnhance {
    /// What the task repeats: pushes the next item, or pauses if the flow is an error.
    pub(super) fn push_next(&self) {
        match self.queue.pop() {
            None => {
                gst::debug!(CAT, imp = self, "Push task pauses: {:?}", self.queue.flow());
                let _ = self.src_pad().pause_task();
            }
            Some(OutputItem::Barrier) => {
                gst::debug!(CAT, imp = self, "Drained");
                self.queue.pass_barrier();
            }
            Some(OutputItem::Event(event)) => {
                if let gst::EventView::Segment(e) = event.view() {
                    self.set_output_segment(e);
                }
                if matches!(event.type_(), gst::EventType::Eos | gst::EventType::SegmentDone) {
                    self.post_last_progress();
                }
                gst::log!(CAT, imp = self, "Pushing {event:?}");
                self.src_pad().push_event(event);
            }
            Some(OutputItem::Frame(output)) => {
                if let Err(error) = self.push_frame(output) {
                    self.end_flow(error);
                }
            }
        }
    }

    /// Ends the flow with the error that downstream returned. Upstream gets it with its next buffer. After EOS no
    /// buffer comes: then the error is posted or, if it is EOS, the EOS event is pushed.
    fn end_flow(&self, error: gst::FlowError) {
        let dropped = self.queue.abort(error);
        gst::debug!(CAT, imp = self, "Downstream returned {error}; dropped: {dropped}");
        let eos = self.state.lock().input.eos.clone();
        match eos {
            Some(eos) if error == gst::FlowError::Eos => {
                self.src_pad().push_event(eos);
            }
            Some(_) => self.post_flow_error(error),
            None => {}
        }
    }

    fn push_frame(&self, output: OutputFrame) -> Result<gst::FlowSuccess, gst::FlowError> {
        let end = output.pts + output.duration.unwrap_or(ClockTime::ZERO);
        if output.begins_shot {
            self.announce_shot(output.pts, output.number);
        }
        let cancel = self.queue.cancel();
        // No lock is held while the writer works. New caps come only after a drain or a flush.
        let writer = self.state.lock().output.writer.take();
        let writer = writer.ok_or(gst::FlowError::NotNegotiated)?;
        let input = output.input;
        let buffer = self.write(&writer, output, &cancel);
        {
            let output = &mut self.state.lock().output;
            output.writer.get_or_insert(writer);
            output.input = Some(input);
        }
        let buffer = buffer?;

        gst::trace!(CAT, imp = self, "Pushing {buffer:?}; {}", self.queue.levels());
        let pushed = self.src_pad().push(buffer)?;
        let state = &mut *self.state.lock();
        state.output.position = Some(end);
        state.statistics.frames_out += 1;
        Ok(pushed)
    }

    /// Tells the application and downstream that the next frame, output frame `number` of its clip, begins a shot.
    fn announce_shot(&self, pts: ClockTime, number: u64) {
        let segment = self.src_pad().sticky_event::<gst::event::Segment>(0);
        let running_time = segment.and_then(|event| {
            event.segment().downcast_ref::<ClockTime>().and_then(|time| time.to_running_time(pts))
        });
        gst::debug!(CAT, imp = self, "Output frame {number} at {pts} begins a shot");
        self.post(
            gst::Structure::builder("venhance-shot")
                .field("running-time", running_time)
                .field("frame", number)
                .build(),
        );
        // Without a time: x264enc of GStreamer 1.22 honours only the first request with one.
        let event = gst_video::DownstreamForceKeyUnitEvent::builder().all_headers(false).build();
        self.src_pad().push_event(event);
    }

    /// Converts a frame to a buffer.
    fn write(
        &self,
        writer: &Writer,
        output: OutputFrame,
        cancel: &Cancel,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let OutputFrame { frame, number, pts, duration, flags, metas, timecodes, .. } = output;
        let mut buffer = self.acquire(&writer.output)?;
        let start = Instant::now();
        {
            let buffer = buffer.make_mut();
            buffer.set_pts(pts);
            buffer.set_duration(duration);
            buffer.set_flags(flags);
            buffer.set_offset(number);
            buffer.set_offset_end(number + 1);
            writer
                .packer
                .pack(&frame, buffer, cancel)
                .map_err(|error| self.convert_failed(error, gst::StreamError::Encode))?;
            for metas in &metas {
                copy_metas(metas, buffer, writer);
            }
            for timecode in &timecodes {
                gst_video::VideoTimeCodeMeta::add(buffer, timecode);
            }
        }
        self.record(LatencyPart::Output, start.elapsed());
        Ok(buffer)
    }

    fn acquire(&self, info: &VideoInfo) -> Result<gst::Buffer, gst::FlowError> {
        let no_memory = || {
            let size = (info.width() as usize, info.height() as usize);
            let error = Error::out_of_memory(size, info.size() as f64);
            self.fail(gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{error}")));
            gst::FlowError::Error
        };
        let Some(pool) = self.obj().buffer_pool() else {
            try_allocation(info.size(), 1).map_err(|_| no_memory())?;
            return gst::Buffer::with_size(info.size()).map_err(|_| no_memory());
        };
        let acquire = |pool: gst::BufferPool| {
            let buffers = match pool.is_active() {
                true => 1,
                false => pool.config().params().map_or(1, |(_, _, min, _)| min.max(1)),
            };
            try_allocation(info.size(), buffers as usize).map_err(|_| no_memory())?;
            pool.set_active(true).map_err(|_| no_memory())?;
            pool.acquire_buffer(None)
        };
        match acquire(pool.clone()) {
            // Renegotiation to the same caps may have replaced the pool.
            Err(gst::FlowError::Flushing) => match self.obj().buffer_pool() {
                Some(new) if new != pool && self.queue.flow().is_ok() => acquire(new),
                _ => Err(gst::FlowError::Flushing),
            },
            acquired => acquired,
        }
    }
}

/// Allocates the memory of buffers for a moment: GLib aborts the process if it cannot allocate.
fn try_allocation(size: usize, buffers: usize) -> Result<(), TryReserveError> {
    let mut bytes = Vec::<u8>::new();
    bytes.try_reserve_exact(size.saturating_mul(buffers))?;
    // Or the compiler would remove the allocation.
    black_box(bytes);
    Ok(())
}

/// Copies the metas of an input frame to its output. Those that depend on the size are scaled where that
/// is possible, else dropped.
fn copy_metas(metas: &gst::BufferRef, buffer: &mut gst::BufferRef, writer: &Writer) {
    let scale = gst_video::video_meta::VideoMetaTransformScale::new(&writer.input, &writer.output);
    for meta in metas.iter_meta::<gst::Meta>() {
        // Fails for a meta that has no meaning at the new size.
        let _ = match meta.has_tag::<gst_video::video_meta::tags::Size>() {
            true => meta.transform(buffer, &scale),
            false => meta.transform(buffer, &gst::meta::MetaTransformCopy::new(..)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_that_cannot_succeed_is_an_error_and_does_not_abort() {
        assert!(try_allocation(1000, 2).is_ok());
        assert!(try_allocation(isize::MAX as usize, 1).is_err());
        assert!(try_allocation(usize::MAX, 2).is_err());
    }
}
