// SPDX-License-Identifier: MIT OR Apache-2.0
//! What downstream asks: upstream events and queries.

use gst::{prelude::*, subclass::prelude::*};
use gst_base::subclass::base_transform::BaseTransformImplExt;
use gst_video::VideoInfo;

use super::{CAT, Output, VEnhance};

impl VEnhance {
    pub(super) fn upstream_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        let event = match event.view() {
            EventView::Reconfigure(_) => {
                self.restart_after(gst::FlowError::NotLinked);
                event
            }
            EventView::Seek(e) if e.get().0 < 0.0 => {
                gst::warning!(CAT, imp = self, "Refusing a seek backwards: {event:?}");
                return false;
            }
            EventView::Navigation(_) => self.scale_pointer(event),
            _ => event,
        };
        self.parent_src_event(event)
    }

    /// Scales the position of a navigation event from output to input coordinates.
    fn scale_pointer(&self, mut event: gst::Event) -> gst::Event {
        let sizes = self.state.lock().input.clips.as_ref().map(|clips| clips.sizes());
        if let Some((input, output)) = sizes {
            let structure = event.make_mut().structure_mut();
            for (field, input, output) in
                [("pointer_x", input.0, output.0), ("pointer_y", input.1, output.1)]
            {
                if let Ok(position) = structure.get::<f64>(field) {
                    structure.set(field, position * input as f64 / output as f64);
                }
            }
        }
        event
    }

    pub(super) fn answer(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        use gst::QueryViewMut;
        match query.view_mut() {
            QueryViewMut::Position(q)
                if direction == gst::PadDirection::Src && q.format() == gst::Format::Time =>
            {
                let state = self.state.lock();
                let Output { position, segment, .. } = &state.output;
                match position.and_then(|time| segment.to_stream_time(time)) {
                    Some(position) => {
                        q.set(position);
                        true
                    }
                    None => false,
                }
            }
            QueryViewMut::Latency(_) => {
                if !BaseTransformImplExt::parent_query(self, direction, query) {
                    return false;
                }
                if let QueryViewMut::Latency(q) = query.view_mut() {
                    let (live, min, max) = q.result();
                    let latency = self.state.lock().statistics.latency();
                    gst::debug!(CAT, imp = self, "Latency {latency}, upstream {min}, live {live}");
                    if live {
                        q.set(true, min + latency, max.map(|max| max + latency));
                    }
                }
                true
            }
            // Downstream cannot pull.
            QueryViewMut::Scheduling(q) if direction == gst::PadDirection::Src => {
                q.set(gst::SchedulingFlags::SEQUENTIAL, 1, -1, 0);
                q.add_scheduling_modes([gst::PadMode::Push]);
                true
            }
            _ => BaseTransformImplExt::parent_query(self, direction, query),
        }
    }

    /// Chooses the pool of the output buffers.
    pub(super) fn choose_pool(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (caps, _) = query.get_owned();
        let caps =
            caps.ok_or_else(|| gst::loggable_error!(CAT, "allocation query without caps"))?;
        let info = VideoInfo::from_caps(&caps)?;
        let proposed = query.allocation_pools().next();
        let proposes = proposed.is_some();
        let (pool, size, min, max) = match proposed {
            Some((pool, size, min, max)) => (pool, size.max(info.size() as u32), min, max),
            None => (None, info.size() as u32, 0, 0),
        };
        let pool = pool.unwrap_or_else(|| gst_video::VideoBufferPool::new().upcast());
        gst::debug!(CAT, imp = self, "Output buffers of {size} bytes from {}", pool.name());
        let mut config = pool.config();
        config.set_params(Some(&caps), size, min, max);
        if query.find_allocation_meta::<gst_video::VideoMeta>().is_some() {
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        }
        // Fails also if the pool changes the configuration, which the parent then checks.
        let _ = pool.set_config(config);
        match proposes {
            true => query.set_nth_allocation_pool(0, Some(&pool), size, min, max),
            false => query.add_allocation_pool(Some(&pool), size, min, max),
        }
        Ok(())
    }
}
