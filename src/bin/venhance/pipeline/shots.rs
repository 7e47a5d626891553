// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counts the shots of a video, for the plan.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::{
    parts::{running_time, static_pad},
    scan::scan,
};
use crate::{
    failure::{Failure, make_enhancer},
    source::Source,
};

/// The longest time for it: nobody waits longer for a plan.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Counts the shots of a video, as an enhancer finds them.
pub struct Shots {
    /// It ends at the end of the video, or after [`TIMEOUT`].
    pub pipeline: gst::Pipeline,
    found: Arc<Mutex<Found>>,
}

/// What was found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The number of shots.
    pub shots: u64,
    /// If not all of the video was searched: up to where.
    pub until: Option<ClockTime>,
}

impl Shots {
    /// Builds the pipeline. Its enhancer passes frames unchanged, as `lite` does at the size and rate of its input.
    pub fn new(source: &Source) -> Result<Self, Failure> {
        let enhancer = make_enhancer()?;
        enhancer.set_property("model", gstvenhance::Model::Lite);
        enhancer.set_property("up-scale", 1.0);
        enhancer.set_property("target-fps", gst::Fraction::new(0, 1));
        let shots =
            Self { pipeline: scan(source, &enhancer, |_| {})?.pipeline, found: Arc::default() };
        shots.watch(&static_pad(enhancer.upcast_ref(), "src")?);
        Ok(shots)
    }

    /// Counts the shots in the output of the enhancer.
    fn watch(&self, src: &gst::Pad) {
        let (found, bus, started) = (self.found.clone(), self.pipeline.bus(), Instant::now());
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        src.add_probe(kinds, move |pad, info| {
            let mut found = found.lock();
            match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => {
                    found.shots = found.shots.max(1);
                    if started.elapsed() > TIMEOUT
                        && let Some(bus) = &bus
                    {
                        found.until = found.until.or(running_time(pad, buffer));
                        let _ = bus.post(gst::message::Eos::new());
                    }
                }
                // It announces a shot.
                Some(gst::PadProbeData::Event(event))
                    if gst_video::ForceKeyUnitEvent::is(event) && found.until.is_none() =>
                {
                    found.shots += 1;
                }
                _ => {}
            }
            gst::PadProbeReturn::Ok
        });
    }

    pub fn found(&self) -> Found {
        *self.found.lock()
    }
}

impl Drop for Shots {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
