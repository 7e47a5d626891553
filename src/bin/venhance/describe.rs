// SPDX-License-Identifier: MIT OR Apache-2.0
//! Describes a run: what VEnhancer's script logs, and the plan.

use std::path::Path;

use gst::{ClockTime, prelude::*};
use gstvenhance::{Model, Output, engine};

use crate::{
    failure::Failure,
    pipeline::{Packets, Shots},
    properties,
    report::clock,
    run::End,
    session::{Session, cancelled},
    source::{ASSUMED_RATE, Source},
};

/// The smallest size of an encoded frame.
const MIN_FRAME_BYTES: usize = 16;

/// The input video.
struct Input {
    size: (usize, usize),
    fps: (u32, u32),
    /// Frames of a packet.
    fields: usize,
}

/// The number of input frames.
struct Frames {
    number: usize,
    /// The source of an estimate, in parentheses after a space; empty if the number was counted.
    origin: &'static str,
}

impl Session {
    /// Describes what would be done with a file. `index` is its position in the folder.
    pub fn plan(
        &self,
        input: &Path,
        output: Option<&Path>,
        index: usize,
    ) -> Result<String, Failure> {
        let source = self.check(input, output)?;
        self.set_prompt(input, index)?;
        let (input, frames) = self.count_input(&source)?;
        let plan = self.enhancer.plan(input.size, input.fps, frames.number);
        let plan = plan.map_err(|error| refused(&source, &error))?;
        let all = self.output_of(&source, &input)?.frames(frames.number, input.fps);
        let mut lines = self.describe_input(&source, &input, frames)?;
        lines.extend(plan.iter().map(|line| properties::with_flags(line)));
        lines.extend(self.count_shots(&source)?);
        if self.args.measure {
            lines.extend(self.measure(&source, all)?);
        }
        Ok(lines.join("\n"))
    }

    /// A line on the number of shots, unless the run does not look for them.
    fn count_shots(&self, source: &Source) -> Result<Option<String>, Failure> {
        if !self.enhancer.property::<bool>("shot-detection") {
            return Ok(None);
        }
        let shots = Shots::new(source)?;
        match self.run(&shots.pipeline, source, &source.path, None) {
            Ok(End::Interrupted) => return Err(cancelled("while looking for shots")),
            // Of a damaged file, what comes before the damage counts.
            Ok(End::Eos(_)) | Err(_) => {}
        }
        let found = shots.found();
        let searched = match found.until {
            Some(until) => format!(", in the first {}", clock(until.seconds())),
            None => String::new(),
        };
        Ok(Some(format!("shots found: {}{searched}", found.shots)))
    }

    /// What VEnhancer's script logs when it starts: frames, rates, sizes, and the parameters of the model.
    pub fn describe(&self, source: &Source) -> Result<String, Failure> {
        let (input, frames) = self.count_input(source)?;
        let lines = self.describe_input(source, &input, frames)?;
        Ok(lines.join("\n"))
    }

    fn describe_input(
        &self,
        source: &Source,
        input: &Input,
        frames: Frames,
    ) -> Result<Vec<String>, Failure> {
        let Input { size, fps, .. } = *input;
        let Frames { number, origin } = frames;
        let output = self.output_of(source, input)?;
        let Output { size: enlarged, .. } = output;
        let all = output.frames(number, fps);
        let rate = |(numer, denom): (u32, u32)| {
            let rate = f64::from(numer) / f64::from(denom);
            format!("{rate:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        let mut lines = vec![
            format!("frames: {number} in the input{origin}, {all} in the output"),
            format!("frame rate: {} to {} fps", rate(fps), rate(output.rate(fps))),
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
        Ok(lines)
    }

    /// Size and frame rate of the output.
    pub fn output(&self, source: &Source) -> Result<Output, Failure> {
        self.output_of(source, &input_of(source)?)
    }

    fn output_of(&self, source: &Source, input: &Input) -> Result<Output, Failure> {
        self.enhancer.output(input.size, input.fps).map_err(|error| refused(source, &error))
    }

    /// The input video and its number of frames, from which follows a rate that the file does not name.
    fn count_input(&self, source: &Source) -> Result<(Input, Frames), Failure> {
        let mut input = input_of(source)?;
        let frames = self.count_frames(source, &input)?;
        if input.fps.0 == 0
            && let Some(duration) = source.duration
        {
            input.fps = average_rate(duration, frames.number).unwrap_or(input.fps);
        }
        Ok((input, frames))
    }

    /// Number of frames according to the duration. If that is unknown, or cannot be right for a file of this size,
    /// counts the packets.
    fn count_frames(&self, source: &Source, input: &Input) -> Result<Frames, Failure> {
        if source.still {
            return Ok(Frames { number: 1, origin: "" });
        }
        let (numer, denom) = input.fps;
        let seconds = source.duration.unwrap_or(ClockTime::ZERO).seconds_f64();
        let number = (seconds * f64::from(numer) / f64::from(denom)).round() as usize;
        let bytes = source.path.metadata().map_or(0, |metadata| metadata.len()) as usize;
        if (1..=bytes / MIN_FRAME_BYTES).contains(&number) {
            // Sound can be longer, and the rate need not be constant.
            return Ok(Frames { number, origin: " (from its duration)" });
        }
        let packets = Packets::new(&source.path, None)?;
        match self.run(&packets.pipeline, source, &source.path, None) {
            Ok(End::Interrupted) => return Err(cancelled("before the first frame")),
            // Of a damaged file, what comes before the damage counts.
            Ok(End::Eos(_)) | Err(_) => {}
        }
        let streams = packets.streams();
        let number = streams.get(&source.video.id).map_or(0, |video| video.shown as usize);
        let number = number * input.fields;
        Ok(Frames { number, origin: "" })
    }
}

/// The rate (numerator, denominator) of this many frames: the standard rate that is near to it, if there is one.
fn average_rate(duration: ClockTime, frames: usize) -> Option<(u32, u32)> {
    let interval =
        duration.nseconds().checked_div(frames as u64).filter(|interval| *interval > 0)?;
    match gst_video::guess_framerate(ClockTime::from_nseconds(interval)) {
        Some(rate) => Some((rate.numer() as u32, rate.denom() as u32)),
        None => Some((1_000_000_000, u32::try_from(interval).ok()?)),
    }
}

/// The failure for an error of the element, of the kind that it has in a run.
fn refused(source: &Source, error: &engine::Error) -> Failure {
    match error {
        engine::Error::Setting {
            setting: "target-width" | "target-height" | "target-fps", ..
        } => Failure::input(&source.path, properties::with_flags(&error.to_string())),
        _ => Failure::model(error),
    }
}

fn input_of(source: &Source) -> Result<Input, Failure> {
    let info = gst_video::VideoInfo::from_caps(&source.video.caps);
    let Ok(info) = info else {
        return Err(Failure::input(&source.path, "the size of its video is unknown"));
    };
    let rate = if source.still { ASSUMED_RATE } else { info.fps() };
    // Interlaced video is deinterlaced to a frame for each field.
    let fields = match info.interlace_mode() {
        gst_video::VideoInterlaceMode::Progressive | gst_video::VideoInterlaceMode::Mixed => 1,
        _ => 2,
    };
    let fps = ((rate.numer().max(0) as u32).saturating_mul(fields), rate.denom().max(1) as u32);
    let (width, height) = (info.width() as usize, info.height() as usize);
    let size = if source.swaps_sides { (height, width) } else { (width, height) };
    Ok(Input { size, fps, fields: fields as usize })
}
