// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flushing, stopping, and starting again.

use gst::{ClockTime, prelude::*, subclass::prelude::*};
use gst_base::{prelude::*, subclass::prelude::*};

use super::{CAT, VEnhance};
use crate::element::queue::QueueItem;

impl VEnhance {
    /// Drops all frames and makes all threads that wait return FLUSHING. The computation is cancelled;
    /// it ends within one network block, which this does not wait for.
    pub(super) fn flush_start(&self) {
        let dropped = self.queue.abort(gst::FlowError::Flushing);
        gst::debug!(CAT, imp = self, "Flushing; dropped: {dropped}");
        self.set_pool_flushing(true);
    }

    /// FLUSH_STOP.
    pub(super) fn flush_stop(&self, event: gst::Event) -> bool {
        self.flush_start();
        // Some upstream elements send no FLUSH_START. Without one, downstream may block the push task
        // for ever, and with it the pause.
        if !self.src_pad().pad_flags().contains(gst::PadFlags::FLUSHING) {
            let start = gst::event::FlushStart::builder().seqnum(event.seqnum()).build();
            self.src_pad().push_event(start);
        }
        let _ = self.src_pad().pause_task();
        let forwarded = self.parent_sink_event(event);
        self.begin_epoch() && forwarded
    }

    /// Flushes until the next start, and cancels the loading of the model.
    pub(super) fn shutdown(&self) {
        let dropped = self.queue.close(gst::FlowError::Flushing);
        gst::debug!(CAT, imp = self, "Stopping; dropped: {dropped}");
        if let Some((_, loading)) = &self.state.lock().compute {
            loading.cancel();
        }
        self.set_pool_flushing(true);
    }

    /// Begins a new epoch after a flush or an error; the push task is paused. False if the element is
    /// stopping or its compute thread has failed.
    fn begin_epoch(&self) -> bool {
        let (format, waiting) = {
            let state = &mut *self.state.lock();
            state.output.position = None;
            state.failed = false;
            let input = &mut state.input;
            input.discont = true;
            input.eos = None;
            input.segment_starts = true;
            let waiting = input.clips.as_mut().map(|clips| clips.reset()).unwrap_or_default();
            (input.clips.as_ref().and_then(|clips| clips.format()), waiting)
        };
        for event in waiting {
            // Kept like the events before it, which were in the queue.
            let _ = self.queue.push(QueueItem::Event(event));
        }
        // Before the queue opens, or the push task could get FLUSHING from the pool.
        self.set_pool_flushing(false);
        let restarted = self.queue.restart(format);
        gst::debug!(CAT, imp = self, "Restarted: {}", restarted.is_some());
        let Some(kept) = restarted else {
            self.set_pool_flushing(true);
            return false;
        };
        self.store_events(&kept);
        self.start_task().is_ok()
    }

    /// Begins a new epoch if the flow has ended with `error`.
    pub(super) fn restart_after(&self, error: gst::FlowError) {
        if self.queue.flow() == Err(error) {
            gst::debug!(CAT, imp = self, "Restarting after {error}");
            // The push task sees the error and pauses itself. Pause it here first, or that late pause
            // would stop the restarted task.
            let _ = self.src_pad().pause_task();
            self.begin_epoch();
        }
    }

    /// Stores sticky events that were dropped on the source pad, which sends them before the next
    /// buffer. EOS and, in a flush, SEGMENT are dropped: upstream sends them again. The push task is
    /// paused, or an older event in its hands could replace one of these.
    fn store_events(&self, events: &[gst::Event]) {
        for event in events {
            if let gst::EventView::Segment(e) = event.view() {
                self.set_output_segment(e);
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
