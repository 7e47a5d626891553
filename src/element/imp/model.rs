// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which model runs, and what follows from that.

use gst::{prelude::*, subclass::prelude::*};
use gst_video::VideoInfo;

use super::{CAT, VEnhance};
use crate::{
    element::{caps, properties::Settings},
    engine,
    models::{self, Choice},
};

impl VEnhance {
    /// Posts and logs which model runs, where, and why.
    pub(super) fn announce(&self, choice: &Choice) {
        let Choice { model, reason, warning, .. } = choice;
        gst::info!(CAT, imp = self, "Model {model} on {}: {reason}", choice.devices());
        self.settings.lock().active_model = (*model).into();
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

    /// See [`crate::VEnhance::plan`].
    pub(in crate::element) fn plan(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
        inputs: usize,
    ) -> Result<String, engine::Error> {
        let Settings { up_scale, target_fps, options, .. } = self.settings.lock().clone();
        let choice = models::choose(&options)?;
        let output = options.output_size(choice.model, input, up_scale);
        let interpolated = engine::interpolated_frames(caps::rate(target_fps), fps);
        let format = engine::Format { input, output, interpolated, alpha: false };
        models::plan(&choice, format, up_scale, inputs)
    }

    /// Compares the memory that the model needs for a format with the memory of its devices. If there is too little, the
    /// stream ends with an error, before the model is loaded.
    pub(super) fn check_memory(&self, format: &engine::Format) -> Result<(), gst::FlowError> {
        let scale = self.settings.lock().up_scale;
        let choice = self.state.lock().choice.clone();
        let check = |choice: Choice| models::check_memory(&choice, format, scale);
        choice.map_or(Ok(()), check).map_err(|error| {
            gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{error}"));
            self.keep_sticky_events(self.queue.abort(gst::FlowError::Error));
            gst::FlowError::Error
        })
    }

    /// See [`crate::VEnhance::resume_from`].
    pub(in crate::element) fn resume_from(
        &self,
        fps: (u32, u32),
        frame: usize,
    ) -> Result<usize, engine::Error> {
        let Settings { target_fps, options, .. } = self.settings.lock().clone();
        let interpolated = engine::interpolated_frames(caps::rate(target_fps), fps);
        Ok(models::resume_from(&models::choose(&options)?, interpolated, frame))
    }

    /// The model that runs, or that will run as far as it is known.
    pub(super) fn model(&self) -> engine::Model {
        let settings = self.settings.lock();
        let active: Option<engine::Model> = settings.active_model.into();
        active.or(settings.options.model).unwrap_or(engine::Model::Lite)
    }

    /// Posts a warning if the output does not have the size that up-scale asks for.
    pub(super) fn warn_of_size(&self, input: &VideoInfo, output: &VideoInfo) {
        let scale = self.settings.lock().up_scale;
        let height = engine::scaled_side(input.height() as usize, scale) as u32;
        // A difference of 1 is rounding to even sizes.
        if self.model() == engine::Model::Lite || height.abs_diff(output.height()) <= 1 {
            return;
        }
        let property = if output.height() > height { "min-height" } else { "max-pixels" };
        gst::element_imp_warning!(
            self,
            gst::StreamError::Format,
            (
                "the output is {} pixels high, not {height} as up-scale={scale} asks, because of {property}; set \
                 {property}=0 to remove the limit",
                output.height()
            )
        );
    }
}
