// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which model runs, and what that means for a video.

use gst::{prelude::*, subclass::prelude::*};
use gst_video::VideoInfo;

use super::{CAT, VEnhance, lock};
use crate::{
    engine,
    models::{self, Choice},
    venhance::{caps, settings::Settings},
};

impl VEnhance {
    /// Says which model runs, and why.
    pub(super) fn announce(&self, choice: &Choice) {
        gst::info!(CAT, imp = self, "{}", choice.reason);
        *lock(&self.active_model) = choice.model.into();
        self.obj().notify("active-model");
        self.post(
            gst::Structure::builder("venhance-model")
                .field("model", choice.model.to_string())
                .field("reason", &choice.reason)
                .build(),
        );
    }

    /// See [`crate::VEnhance::plan`].
    pub(in crate::venhance) fn plan(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
        keys: usize,
    ) -> Result<String, engine::Error> {
        let Settings { up_scale, target_fps, options, .. } = lock(&self.settings).clone();
        let choice = models::choose(&options)?;
        let output = options.output_size(choice.model, input, up_scale);
        let made = engine::made_frames(caps::rate(target_fps), fps);
        let format = engine::Format { input, output, made, alpha: false };
        models::plan(&choice, format, up_scale, keys)
    }

    /// Compares the memory that the running model needs for a format with what its devices have. Too little
    /// ends the stream, without waiting for the model to be loaded.
    pub(super) fn check_memory(&self, format: &engine::Format) -> Result<(), gst::FlowError> {
        let scale = lock(&self.settings).up_scale;
        let choice = lock(&self.choice).clone();
        let check = |choice: Choice| models::check_memory(&choice, format, scale);
        choice.map_or(Ok(()), check).map_err(|error| {
            gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{error}"));
            self.keep_sticky(self.queue.fail(gst::FlowError::Error));
            gst::FlowError::Error
        })
    }

    /// See [`crate::VEnhance::resume_from`].
    pub(in crate::venhance) fn resume_from(
        &self,
        fps: (u32, u32),
        key: usize,
    ) -> Result<usize, engine::Error> {
        let Settings { target_fps, options, .. } = lock(&self.settings).clone();
        let made = engine::made_frames(caps::rate(target_fps), fps);
        Ok(models::resume_from(&models::choose(&options)?, made, key))
    }

    /// The model that runs, or that will as far as it is known.
    pub(super) fn model(&self) -> engine::Model {
        let active: Option<engine::Model> = (*lock(&self.active_model)).into();
        active.or(lock(&self.settings).options.model).unwrap_or(engine::Model::Lite)
    }

    /// Says that the output is not of the size that up-scale asks for.
    pub(super) fn warn_of_size(&self, input: &VideoInfo, output: &VideoInfo) {
        let scale = lock(&self.settings).up_scale;
        let height = engine::scaled_side(input.height() as usize, scale) as u32;
        // By more than the rounding to even sides.
        if self.model() == engine::Model::Lite || height.abs_diff(output.height()) <= 1 {
            return;
        }
        let property = if output.height() > height { "min-height" } else { "max-pixels" };
        gst::element_imp_warning!(
            self,
            gst::StreamError::Format,
            (
                "up-scale={scale} asks for a height of {height}; {property} makes it {}: \
                 {property}=0 lifts that",
                output.height()
            )
        );
    }
}
