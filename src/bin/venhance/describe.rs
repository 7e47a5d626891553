// SPDX-License-Identifier: MIT OR Apache-2.0
//! Describes a run: what VEnhancer's script logs, and the plan.

use std::path::Path;

use gst::{ClockTime, prelude::*};
use gstvenhance::{Model, Output, engine};

use crate::{
    failure::Failure,
    properties,
    session::Session,
    source::{ASSUMED_RATE, Source},
};

/// The input video.
struct Input {
    size: (usize, usize),
    fps: (u32, u32),
    frames: usize,
}

impl Session {
    /// Describes what would be done with a file. `index` is its position in the folder.
    pub fn plan(&self, input: &Path, index: usize) -> Result<String, Failure> {
        let source = Source::open(input)?;
        self.set_prompt(input, index)?;
        let Input { size, fps, frames } = input_of(&source)?;
        let plan = self.enhancer.plan(size, fps, frames);
        let plan = plan.map_err(|error| refused(&source, &error))?;
        Ok(format!("{}\n{plan}", self.describe(&source)?))
    }

    /// What VEnhancer's script logs when it starts: frames, rates, sizes, and what the model is told.
    pub fn describe(&self, source: &Source) -> Result<String, Failure> {
        let Input { size, fps, frames } = input_of(source)?;
        let Output { size: enlarged, interpolated } = self.output(source)?;
        let all = frames + interpolated * frames.saturating_sub(1);
        let rate = |factor: usize| {
            let rate = f64::from(fps.0) * factor as f64 / f64::from(fps.1);
            format!("{rate:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        let mut lines = vec![
            format!("frames: {frames} to {all}"),
            format!("frame rate: {} to {} fps", rate(1), rate(interpolated + 1)),
            format!("resolution: {}x{} to {}x{}", size.0, size.1, enlarged.0, enlarged.1),
        ];
        if self.model != Model::Lite {
            let enhancer = &self.enhancer;
            lines.extend([
                format!("prompt: {}", enhancer.property::<String>("prompt")),
                format!("negative prompt: {}", enhancer.property::<String>("negative-prompt")),
                format!("noise augmentation: {}", enhancer.property::<i32>("noise-aug")),
                format!("s: {}", enhancer.property::<i32>("downscale-cond")),
            ]);
        }
        lines.push(format!("model: {} ({})", self.model_name(), self.why));
        Ok(lines.join("\n"))
    }

    /// What the element makes of a video.
    pub fn output(&self, source: &Source) -> Result<Output, Failure> {
        let Input { size, fps, .. } = input_of(source)?;
        self.enhancer.output(size, fps).map_err(|error| refused(source, &error))
    }
}

/// The failure for an error of the element, of the kind that it has in a run.
fn refused(source: &Source, error: &engine::Error) -> Failure {
    match error {
        engine::Error::Setting { setting: "target-width" | "target-height", .. } => {
            Failure::input(&source.path, properties::with_flags(&error.to_string()))
        }
        _ => Failure::model(error),
    }
}

fn input_of(source: &Source) -> Result<Input, Failure> {
    let info = gst_video::VideoInfo::from_caps(&source.video.caps);
    let Ok(info) = info else {
        return Err(Failure::input(&source.path, "the size of its video is unknown"));
    };
    let rate = if source.still { ASSUMED_RATE } else { info.fps() };
    let fps = (rate.numer().max(0) as u32, rate.denom().max(1) as u32);
    let seconds = source.duration.unwrap_or(ClockTime::ZERO).seconds_f64();
    let frames = (seconds * f64::from(fps.0) / f64::from(fps.1)).round() as usize;
    let (width, height) = (info.width() as usize, info.height() as usize);
    Ok(Input {
        size: if source.swaps_sides { (height, width) } else { (width, height) },
        fps,
        frames: if source.still { 1 } else { frames },
    })
}
