// SPDX-License-Identifier: MIT OR Apache-2.0
//! The choice of the model, and what depends on it: output size, memory, warnings.

use gst::{prelude::*, subclass::prelude::*};
use gst_video::VideoInfo;

use super::{CAT, VEnhance};
use crate::{
    element::{
        Duplicates, Model, Output, RateMode, caps,
        queue::{ClipFormat, InputFrame},
        rate::{ASSUMED_RATE, RateSource},
        schedule::OutputRate,
        timeline::Cadence,
    },
    engine,
    models::{self, Choice},
};

impl VEnhance {
    /// Posts and logs which model runs, where, and why.
    pub(super) fn announce(&self, choice: &Choice) {
        let Choice { model, reason, warning, .. } = choice;
        gst::info!(CAT, imp = self, "Model {model} on {}: {reason}", choice.devices());
        self.obj().notify("active-model");
        self.post(
            gst::Structure::builder("venhance-model")
                .field("model", model.to_string())
                .field("reason", reason)
                .build(),
        );
        if let Some(warning) = warning {
            gst::element_imp_warning!(self, gst::ResourceError::Settings, ("{warning}"));
        }
    }

    /// See [`crate::VEnhance::choice`].
    pub(in crate::element) fn choice(&self) -> Result<(Model, String), engine::Error> {
        let options = self.properties.lock().latest().options.clone();
        let choice = models::choose(&options)?;
        models::check_folder(&choice)?;
        let Choice { model, reason, .. } = choice;
        Ok((model.into(), reason))
    }

    /// See [`crate::VEnhance::plan`].
    pub(in crate::element) fn plan(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
        inputs: usize,
    ) -> Result<Vec<String>, engine::Error> {
        let properties = self.properties.lock().latest().clone();
        let choice = models::choose(&properties.options)?;
        let Output { size, interpolated, exact } = self.output(input, fps)?;
        let exact = exact.is_some();
        let format = engine::Format { input, output: size, interpolated, exact, alpha: false };
        let sizing = properties.sizing();
        let limit = size_limit(choice.model, sizing, input, size);
        let mut plan: Vec<_> = limit.map(|limit| format!("size: {limit}")).into_iter().collect();
        plan.extend(models::plan(&choice, format, sizing, inputs)?);
        if properties.shot_detection {
            let windows = match choice.model {
                engine::Model::Lite => "",
                _ => "; the windows and evaluations above are those of a video with one shot",
            };
            plan.push(format!("shots: each is enhanced separately{windows}"));
        }
        if properties.duplicates == Duplicates::Merge {
            plan.push("repeated frames: merged".into());
        }
        Ok(plan)
    }

    /// See [`crate::VEnhance::output`].
    pub(in crate::element) fn output(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
    ) -> Result<Output, engine::Error> {
        let properties = self.properties.lock().latest().clone();
        properties.check()?;
        let model = models::choose(&properties.options)?.model;
        let target = caps::rate(properties.target_fps);
        let (interpolated, exact) = match (properties.rate_mode, target.0) {
            (RateMode::Exact, 0) => (0, (fps.0 > 0).then_some(fps)),
            (RateMode::Exact, _) => (engine::covering_frames(target, fps), Some(target)),
            (RateMode::Multiple, _) => (engine::interpolated_frames(target, fps), None),
        };
        if let Some(rate) = exact {
            let cadence = (fps.0 > 0).then(|| Cadence::new(fps, 0));
            OutputRate::Exact(rate).check(cadence)?;
        }
        Ok(Output {
            size: properties.options.output_size(model, input, properties.sizing())?,
            interpolated,
            exact,
        })
    }

    /// Compares the memory that the model needs for a format with the memory of its devices. If there is too little, the
    /// stream ends with an error, before the model is loaded.
    pub(super) fn check_memory(&self, format: &engine::Format) {
        let sizing = self.properties.lock().in_effect().sizing();
        let choice = {
            let state = self.state.lock();
            state.choice.clone().filter(|_| !state.dry_run)
        };
        let check = |choice: Choice| models::check_memory(&choice, format, sizing);
        if let Err(error) = choice.map_or(Ok(()), check) {
            self.fail(gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{error}")));
            self.queue.abort(gst::FlowError::Error);
        }
    }

    /// Ends the stream with an error if the output rate is too high for the rate of the input.
    pub(super) fn check_rate(&self, format: &ClipFormat) {
        if let Err(error) = format.rate.check(format.cadence) {
            self.fail(gst::error_msg!(gst::StreamError::Format, ("{error}")));
            self.queue.abort(gst::FlowError::Error);
        }
    }

    /// See [`crate::VEnhance::resume_from`].
    pub(in crate::element) fn resume_from(&self) -> Option<u64> {
        let (choice, input) = {
            let state = self.state.lock();
            (state.choice.clone()?, state.output.input?)
        };
        let InputFrame { number, shot, clip, interpolated } = input;
        let number = usize::try_from(number - shot).ok()?;
        let first = match self.properties.lock().in_effect().duplicates {
            Duplicates::Keep => models::resume_from(&choice, interpolated, number) as u64,
            // Which frames the model got depends on all frames of the shot.
            Duplicates::Merge => 0,
        };
        Some(clip + shot + first)
    }

    /// See [`crate::VEnhance::input_frame`].
    pub(in crate::element) fn input_frame(&self) -> Option<u64> {
        let input = self.state.lock().output.input?;
        Some(input.clip + input.number)
    }

    /// See [`crate::VEnhance::set_dry_run`].
    pub(in crate::element) fn set_dry_run(&self) {
        self.state.lock().dry_run = true;
    }

    /// The model of the last start; `Auto` before the first one.
    pub(super) fn active_model(&self) -> Model {
        self.state.lock().choice.as_ref().map_or(Model::Auto, |choice| choice.model.into())
    }

    /// The model that runs, or that will run as far as it is known.
    pub(super) fn model(&self) -> engine::Model {
        let active: Option<engine::Model> = self.active_model().into();
        let set = self.properties.lock().in_effect().options.model;
        active.or(set).unwrap_or(engine::Model::Lite)
    }

    /// Posts a warning if the output does not have the requested size.
    pub(super) fn warn_of_size(&self, input: &VideoInfo, output: &VideoInfo) {
        let sizing = self.properties.lock().in_effect().sizing();
        let size = |info: &VideoInfo| (info.width() as usize, info.height() as usize);
        if let Some(limit) = size_limit(self.model(), sizing, size(input), size(output)) {
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{limit}"));
        }
    }

    /// Posts a warning, once, if the frame rate is not that of the caps.
    pub(super) fn warn_of_rate(&self, format: &ClipFormat) {
        let (text, advice) = match (format.source, format.cadence) {
            (RateSource::NotCaps, Some(cadence)) => (
                format!(
                    "the timestamps contradict the frame rate of the caps; frames are interpolated at the \
                     measured rate, one input frame every {} ms",
                    cadence.frame().nseconds() as f64 / 1e6
                ),
                "To keep the rate of the caps, put videorate before venhance",
            ),
            (RateSource::Assumed, _) => (
                format!(
                    "the input has neither a frame rate nor timestamps; {} frames per second are assumed",
                    ASSUMED_RATE.0
                ),
                "To set another rate, name it in the caps, such as caps=image/png,framerate=30/1 of \
                 multifilesrc",
            ),
            _ => return,
        };
        if !std::mem::replace(&mut self.state.lock().warned_of_rate, true) {
            gst::element_imp_warning!(self, gst::StreamError::Format, ("{text}"), ["{advice}"]);
        }
    }
}

/// If the output (w, h) does not have the requested size: which limit is the cause, and how to remove it.
fn size_limit(
    model: engine::Model,
    sizing: engine::Sizing,
    input: (usize, usize),
    (_, height): (usize, usize),
) -> Option<String> {
    let (_, requested) = sizing.size(input).ok()?;
    // A difference of 1 is rounding to even sizes.
    if model == engine::Model::Lite || requested.abs_diff(height) <= 1 {
        return None;
    }
    let property = if height > requested { "min-height" } else { "max-pixels" };
    Some(format!(
        "the output is {height} pixels high, not {requested} as {sizing} asks, because of {property}; set \
         {property}=0 to remove the limit"
    ))
}
