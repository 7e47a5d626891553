// SPDX-License-Identifier: MIT OR Apache-2.0
//! The enumerations among the properties, as GObject types.

use gst::glib;

use crate::engine::{self, Version};

/// The property `model`.
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
            engine::Model::Diffusion(Version::V1) => Self::V1,
            engine::Model::Diffusion(Version::V2) => Self::V2,
            engine::Model::Lite => Self::Lite,
        }
    }
}

impl From<Model> for Option<engine::Model> {
    fn from(model: Model) -> Self {
        match model {
            Model::Auto => None,
            Model::V1 => Some(engine::Model::Diffusion(Version::V1)),
            Model::V2 => Some(engine::Model::Diffusion(Version::V2)),
            Model::Lite => Some(engine::Model::Lite),
        }
    }
}

/// The property `rate-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVEnhanceRateMode")]
#[repr(i32)]
pub enum RateMode {
    /// The input rate is multiplied by an integer.
    #[enum_value(
        name = "Multiple: the multiple of the input rate nearest to target-fps",
        nick = "multiple"
    )]
    Multiple,
    /// The output has the target rate.
    #[enum_value(name = "Exact: target-fps, whatever the input rate", nick = "exact")]
    Exact,
}

/// The property `duplicates`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVEnhanceDuplicates")]
#[repr(i32)]
pub enum Duplicates {
    /// A repeated frame is a frame like any other.
    #[enum_value(name = "Keep: repeated frames stay", nick = "keep")]
    Keep,
    /// See [`engine::duplicates::DuplicateMerger`].
    #[enum_value(name = "Merge: interpolated over the whole run", nick = "merge")]
    Merge,
}

/// The property `solver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVEnhanceSolver")]
#[repr(i32)]
pub enum Solver {
    /// See [`engine::Solver::Fast`].
    #[enum_value(name = "Fast: 14 evaluations on a fixed schedule", nick = "fast")]
    Fast,
    /// See [`engine::Solver::Normal`].
    #[enum_value(
        name = "Normal: DPM-Solver++ with a configurable number of steps",
        nick = "normal"
    )]
    Normal,
    /// See [`engine::Solver::Heun`].
    #[enum_value(name = "Heun: two evaluations per step", nick = "heun")]
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

/// The property `colour-fix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstVEnhanceColourFix")]
#[repr(i32)]
pub enum ColourFix {
    /// See [`engine::ColourFix::None`].
    #[enum_value(name = "None: as the model makes them", nick = "none")]
    None,
    /// See [`engine::ColourFix::Wavelet`].
    #[enum_value(name = "Wavelet: low frequencies of the input", nick = "wavelet")]
    Wavelet,
    /// See [`engine::ColourFix::Mean`].
    #[enum_value(name = "Mean: mean colour of the input", nick = "mean")]
    Mean,
}

impl From<engine::ColourFix> for ColourFix {
    fn from(fix: engine::ColourFix) -> Self {
        match fix {
            engine::ColourFix::None => Self::None,
            engine::ColourFix::Wavelet => Self::Wavelet,
            engine::ColourFix::Mean => Self::Mean,
        }
    }
}

impl From<ColourFix> for engine::ColourFix {
    fn from(fix: ColourFix) -> Self {
        match fix {
            ColourFix::None => Self::None,
            ColourFix::Wavelet => Self::Wavelet,
            ColourFix::Mean => Self::Mean,
        }
    }
}
