// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pipeline of a dry run, which finds the resume points of a video.

use std::sync::Arc;

use gst::{ClockTime, prelude::*};
use gstvenhance::VEnhance;
use parking_lot::Mutex;

use super::{
    conform::conform,
    parts::{add, drop_if, running_time, static_pad},
    work::{add_input, output_rate, resume_point},
};
use crate::{
    failure::{Failure, make},
    partial::ResumePoint,
    run::Shown,
    source::Source,
};

/// An output frame.
#[derive(Debug, Clone, Copy)]
pub struct ScannedFrame {
    /// The resume point before it.
    pub point: ResumePoint,
    /// The number of input frames before the one at its time.
    pub input: u64,
}

/// The pipeline of a dry run.
pub struct Scan {
    pub pipeline: gst::Pipeline,
    enhancer: VEnhance,
    /// Position in the output, and number of frames.
    seen: Arc<Mutex<(ClockTime, u64)>>,
}

impl Shown for Scan {
    fn progress(&self) -> (ClockTime, u64, Option<f64>) {
        let (position, frames) = *self.seen.lock();
        (position, frames, output_rate(self.enhancer.upcast_ref()))
    }

    fn stop(&self) -> bool {
        false
    }
}

/// Builds the pipeline from the input to `enhancer`, which makes a dry run. `visit` gets every output frame.
pub fn scan(
    source: &Source,
    enhancer: &VEnhance,
    visit: impl FnMut(ScannedFrame) + Send + 'static,
) -> Result<Scan, Failure> {
    let pipeline = gst::Pipeline::new();
    let mut path = conform(source, enhancer.upcast_ref())?;
    let sink = make("fakesink")?;
    sink.set_property("sync", false);
    path.extend([enhancer.clone().upcast(), sink]);
    add(&pipeline, &path.iter().collect::<Vec<_>>())?;
    add_input(&pipeline, source, &static_pad(&path[0], "sink")?)?;

    let seen = Arc::new(Mutex::new((ClockTime::ZERO, 0)));
    let (weak, visit, shown) = (enhancer.downgrade(), Mutex::new(visit), seen.clone());
    static_pad(enhancer.upcast_ref(), "src")?.add_probe(gst::PadProbeType::BUFFER, {
        move |pad, info| {
            let time = info.buffer().and_then(|buffer| running_time(pad, buffer));
            if let (Some(enhancer), Some(time)) = (weak.upgrade(), time) {
                // The same point as in a run.
                let frames = shown.lock().1;
                let point = resume_point(enhancer.upcast_ref(), time, frames);
                let input = enhancer.input_frame().unwrap_or_default();
                (*visit.lock())(ScannedFrame { point, input });
                *shown.lock() = (time, frames + 1);
            }
            drop_if(false)
        }
    });
    Ok(Scan { pipeline, enhancer: enhancer.clone(), seen })
}
