// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element `venhance`: everything that knows GStreamer.

mod caps;
mod clips;
mod convert;
mod imp;
mod progress;
mod properties;
mod queue;
mod timeline;
mod worker;

use gst::{glib, prelude::*, subclass::prelude::*};

use crate::engine;

/// The `model` property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstVEnhanceModel")]
#[repr(i32)]
pub enum Model {
    /// The best model that this machine can run.
    #[default]
    #[enum_value(name = "Auto: v1 where a CUDA device is usable, else lite", nick = "auto")]
    Auto,
    /// VEnhancer as published with its paper.
    #[enum_value(name = "VEnhancer v1: creative", nick = "v1")]
    V1,
    /// VEnhancer's second version.
    #[enum_value(name = "VEnhancer v2: keeps texture and identity", nick = "v2")]
    V2,
    /// The small enhancer inside the plugin.
    #[enum_value(name = "Lite: embedded, for any CPU", nick = "lite")]
    Lite,
}

impl From<engine::Model> for Model {
    fn from(model: engine::Model) -> Self {
        match model {
            engine::Model::V1 => Self::V1,
            engine::Model::V2 => Self::V2,
            engine::Model::Lite => Self::Lite,
        }
    }
}

impl From<Model> for Option<engine::Model> {
    fn from(model: Model) -> Self {
        match model {
            Model::Auto => None,
            Model::V1 => Some(engine::Model::V1),
            Model::V2 => Some(engine::Model::V2),
            Model::Lite => Some(engine::Model::Lite),
        }
    }
}

/// The `solver` property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVEnhanceSolver")]
#[repr(i32)]
pub enum Solver {
    /// See [`engine::Solver::Fast`].
    #[enum_value(name = "Fast: 14 evaluations on a fixed schedule", nick = "fast")]
    Fast,
    /// See [`engine::Solver::Normal`].
    #[enum_value(name = "Normal: DPM-Solver++ with a free number of steps", nick = "normal")]
    Normal,
    /// See [`engine::Solver::Heun`].
    #[enum_value(name = "Heun: two evaluations a step", nick = "heun")]
    Heun,
}

impl From<engine::Solver> for Solver {
    fn from(solver: engine::Solver) -> Self {
        match solver {
            engine::Solver::Fast => Self::Fast,
            engine::Solver::Normal => Self::Normal,
            engine::Solver::Heun => Self::Heun,
        }
    }
}

impl From<Solver> for engine::Solver {
    fn from(solver: Solver) -> Self {
        match solver {
            Solver::Fast => Self::Fast,
            Solver::Normal => Self::Normal,
            Solver::Heun => Self::Heun,
        }
    }
}

glib::wrapper! {
    /// The element; see the README for its properties and the pipelines it is made for.
    pub struct VEnhance(ObjectSubclass<imp::VEnhance>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

impl VEnhance {
    /// What the element would do, as it is set, with a clip of `keys` frames of size (w, h) at a rate
    /// (numerator, denominator): for people. Takes no weights.
    ///
    /// # Errors
    /// On settings that cannot be used.
    pub fn plan(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
        keys: usize,
    ) -> Result<String, engine::Error> {
        imp::VEnhance::from_obj(self).plan(input, fps, keys)
    }

    /// The input frame of a clip, at a rate (numerator, denominator), that must be the first to come, with
    /// its number in the property `first-frame`, so that from input frame `key` on the element as it is
    /// set makes what it makes of the whole clip.
    ///
    /// # Errors
    /// On settings that cannot be used.
    pub fn resume_from(&self, fps: (u32, u32), key: usize) -> Result<usize, engine::Error> {
        imp::VEnhance::from_obj(self).resume_from(fps, key)
    }
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        Model::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        Solver::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "venhance", gst::Rank::NONE, VEnhance::static_type())
}
