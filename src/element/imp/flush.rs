// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flushing, stopping, and starting again.

use gst::{ClockTime, prelude::*, subclass::prelude::*};
use gst_base::prelude::*;

use super::{CAT, VEnhance};
use crate::element::queue::Dropped;

impl VEnhance {
    /// Drops all frames and makes all threads that wait return FLUSHING. The computation is cancelled;
    /// it ends within one network block, which this does not wait for.
    pub(super) fn flush_start(&self) {
        let dropped = self.queue.abort(gst::FlowError::Flushing);
        gst::debug!(CAT, imp = self, "Flushing; dropped: {}", dropped.frames);
        self.keep_sticky_events(dropped);
        self.set_pool_flushing(true);
    }

    /// Flushes until the next start, and cancels the loading of the model.
    pub(super) fn shutdown(&self) {
        let dropped = self.queue.close(gst::FlowError::Flushing);
        gst::debug!(CAT, imp = self, "Stopping; dropped: {}", dropped.frames);
        if let Some((_, loading)) = &self.state.lock().compute {
            loading.cancel();
        }
        self.set_pool_flushing(true);
    }

    /// Begins a new epoch after [`flush_start`](Self::flush_start) or an error. False if the element is
    /// stopping or its compute thread has failed.
    pub(super) fn flush_stop(&self) -> bool {
        let format = {
            let state = &mut *self.state.lock();
            state.output.position = None;
            let input = &mut state.input;
            input.discont = true;
            input.eos = None;
            input.segment_starts = true;
            input.clips.as_mut().and_then(|clips| {
                clips.flush();
                clips.format()
            })
        };
        // Before the queue opens, or the push task could get FLUSHING from the pool.
        self.set_pool_flushing(false);
        let restarted = self.queue.restart(format);
        gst::debug!(CAT, imp = self, "Restarted: {restarted}");
        if !restarted {
            self.set_pool_flushing(true);
        }
        restarted && self.start_task().is_ok()
    }

    /// Begins a new epoch if the flow has ended with `error`.
    pub(super) fn restart_after(&self, error: gst::FlowError) {
        if self.queue.flow() == Err(error) {
            gst::debug!(CAT, imp = self, "Restarting after {error}");
            // It is about to pause itself, which must happen before it is started again.
            let _ = self.src_pad().pause_task();
            self.flush_stop();
        }
    }

    /// Stores dropped sticky events on the source pad, which sends them before the next buffer:
    /// upstream does not send them again. A flush is followed by a new segment and EOS.
    pub(super) fn keep_sticky_events(&self, dropped: Dropped) {
        let flushing = self.queue.flow() == Err(gst::FlowError::Flushing);
        for event in dropped.events.iter().filter(|event| event.is_sticky()) {
            match event.view() {
                gst::EventView::Eos(_) => continue,
                gst::EventView::Segment(_) if flushing => continue,
                gst::EventView::Segment(e) => self.set_output_segment(e),
                _ => {}
            }
            gst::debug!(CAT, imp = self, "Keeping dropped {event:?}");
            let _ = self.src_pad().store_sticky_event(event);
        }
    }

    /// Output timestamps belong to this segment from now on.
    pub(super) fn set_output_segment(&self, event: &gst::event::Segment) {
        if let Some(segment) = event.segment().downcast_ref::<ClockTime>() {
            self.state.lock().output.segment = segment.clone();
        }
    }

    /// Starts the push task.
    pub(super) fn start_task(&self) -> Result<(), gst::ErrorMessage> {
        let imp = self.obj().downgrade();
        let step = move || {
            if let Some(obj) = imp.upgrade() {
                obj.imp().push_next();
            }
        };
        self.src_pad().start_task(step).map_err(|error| {
            gst::error_msg!(gst::ResourceError::Failed, ("cannot start the push task: {error}"))
        })
    }

    /// While it flushes, the push task does not wait for a free buffer.
    fn set_pool_flushing(&self, flushing: bool) {
        if let Some(pool) = self.obj().buffer_pool() {
            pool.set_flushing(flushing);
        }
    }
}
