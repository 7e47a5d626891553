// SPDX-License-Identifier: MIT OR Apache-2.0
//! The push task: takes what is ready, writes buffers, and pushes them and the events in order.

use std::{sync::Arc, time::Instant};

use gst::{ClockTime, prelude::*, subclass::prelude::*};
use gst_base::prelude::*;
use gst_video::VideoInfo;

use super::{CAT, VEnhance, lock};
use crate::element::{
    convert::Packer,
    progress::Stage,
    queue::{OutputFrame, OutputItem},
};

/// The push task's side. Never locked while anything waits.
#[derive(Default)]
pub(super) struct PushState {
    /// `None` before caps.
    pub(super) pack: Option<Arc<Pack>>,
    pub(super) segment: gst::FormattedSegment<ClockTime>,
    /// End of the last frame pushed.
    pub(super) position: Option<ClockTime>,
}

/// Writes output buffers of the current caps.
pub(super) struct Pack {
    pub(super) packer: Packer,
    pub(super) input: VideoInfo,
    pub(super) output: VideoInfo,
}

impl VEnhance {
    /// What the task does over and over: pushes the next thing, or pauses.
    pub(super) fn push_next(&self) {
        match self.queue.take() {
            None => {
                let _ = self.src_pad().pause_task();
            }
            Some(OutputItem::Barrier) => self.queue.pass_barrier(),
            Some(OutputItem::Event(event)) => {
                if let gst::EventView::Segment(e) = event.view() {
                    self.note_segment(e);
                }
                gst::log!(CAT, imp = self, "Leaves: {event:?}");
                self.src_pad().push_event(event);
            }
            Some(OutputItem::Frame(output)) => {
                if let Err(error) = self.push_frame(output) {
                    gst::debug!(CAT, imp = self, "Downstream said {error}");
                    let dropped = self.queue.fail(error);
                    self.keep_sticky(dropped);
                    let eos = lock(&self.input).eos.clone();
                    match eos {
                        Some(eos) if error == gst::FlowError::Eos => {
                            self.src_pad().push_event(eos);
                        }
                        Some(_) => self.report_flow(error),
                        None => {}
                    }
                }
            }
        }
    }

    fn push_frame(&self, output: OutputFrame) -> Result<gst::FlowSuccess, gst::FlowError> {
        let OutputFrame { frame, number, pts, duration, flags, metas } = output;
        let pack = lock(&self.pushed).pack.clone().ok_or(gst::FlowError::NotNegotiated)?;
        let mut buffer = self.acquire(&pack)?;
        let start = Instant::now();
        {
            let buffer = buffer.make_mut();
            buffer.set_pts(pts);
            buffer.set_duration(duration);
            buffer.set_flags(flags);
            buffer.set_offset(number);
            buffer.set_offset_end(number + 1);
            pack.packer.pack(&frame, buffer).map_err(|error| {
                gst::element_imp_error!(self, gst::StreamError::Encode, ("{error}"));
                gst::FlowError::Error
            })?;
            if let Some(metas) = metas {
                copy_metas(&metas, buffer, &pack);
            }
        }
        self.took(Stage::Write, start.elapsed());
        let pushed = self.src_pad().push(buffer)?;
        lock(&self.pushed).position = Some(duration.map_or(pts, |duration| pts + duration));
        lock(&self.statistics).frames_out += 1;
        Ok(pushed)
    }

    fn acquire(&self, pack: &Pack) -> Result<gst::Buffer, gst::FlowError> {
        let no_memory = |error: &dyn std::fmt::Display| {
            gst::element_imp_error!(
                self,
                gst::ResourceError::NoSpaceLeft,
                ("no memory for an output buffer of {} bytes: {error}", pack.output.size())
            );
            gst::FlowError::Error
        };
        let Some(pool) = self.obj().buffer_pool() else {
            return gst::Buffer::with_size(pack.output.size()).map_err(|e| no_memory(&e));
        };
        let acquire = |pool: gst::BufferPool| {
            pool.set_active(true).map_err(|e| no_memory(&e))?;
            pool.acquire_buffer(None)
        };
        match acquire(pool.clone()) {
            // Renegotiation to the same caps has replaced the pool meanwhile.
            Err(gst::FlowError::Flushing) => match self.obj().buffer_pool() {
                Some(new) if new != pool && self.queue.flow().is_ok() => acquire(new),
                _ => Err(gst::FlowError::Flushing),
            },
            acquired => acquired,
        }
    }

    /// Puts a flow error on the bus where upstream will not ask for it.
    pub(super) fn report_flow(&self, error: gst::FlowError) {
        if !matches!(error, gst::FlowError::Flushing | gst::FlowError::Eos) {
            gst::element_imp_error!(
                self,
                gst::StreamError::Failed,
                ("Internal data stream error."),
                ["streaming stopped, reason {error}"]
            );
        }
    }
}

/// Copies to a key frame's output what is not bound to the size, and scales the rest where it can be.
fn copy_metas(metas: &gst::BufferRef, buffer: &mut gst::BufferRef, pack: &Pack) {
    let scale = gst_video::video_meta::VideoMetaTransformScale::new(&pack.input, &pack.output);
    for meta in metas.iter_meta::<gst::Meta>() {
        // A meta that cannot be transformed has no meaning at the new size.
        let _ = match meta.has_tag::<gst_video::video_meta::tags::Size>() {
            true => meta.transform(buffer, &scale),
            false => meta.transform(buffer, &gst::meta::MetaTransformCopy::new(..)),
        };
    }
}
