// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element's properties: their names, ranges, defaults and texts.

use std::path::PathBuf;

use gst::{glib, prelude::*};
use once_cell::sync::Lazy;

use super::{Model, Solver};
use crate::engine::Options;

/// What the user has set.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) up_scale: f64,
    pub(super) target_fps: gst::Fraction,
    /// The number, in its clip, of the first frame that comes.
    pub(super) first_frame: u32,
    pub(super) options: Options,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            up_scale: 4.0,
            target_fps: gst::Fraction::new(24, 1),
            first_frame: 0,
            options: Options::default(),
        }
    }
}

/// What a text says about the time at which a property is read.
const AT_START: &str = "Taken when the element starts (READY to PAUSED); a change in PLAYING acts \
    from the next start on";
const ANY_TIME: &str = "Can change in PLAYING: the frames held are finished as an end of clip, then \
    new caps follow";

pub(super) static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
    let Settings { up_scale, target_fps, first_frame, options } = Settings::default();
    let int = |name, low, high, default: u32, text: &str| {
        glib::ParamSpecInt::builder(name)
            .minimum(low)
            .maximum(high)
            .default_value(default as i32)
            .blurb(&format!("{text}. {AT_START}"))
            .mutable_ready()
            .build()
    };
    let text = |name, default: Option<&str>, text: &str| {
        glib::ParamSpecString::builder(name)
            .default_value(default)
            .blurb(&format!("{text}. {AT_START}"))
            .mutable_ready()
            .build()
    };
    let uint = |name, default, text: &str| {
        glib::ParamSpecUInt::builder(name)
            .default_value(default)
            .blurb(&format!("{text}. {AT_START}"))
            .mutable_ready()
            .build()
    };
    vec![
        glib::ParamSpecEnum::builder_with_default("model", Model::Auto)
            .blurb(&format!(
                "The model. auto: v1 where a CUDA device is usable, else lite. {AT_START}"
            ))
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("active-model", Model::Auto)
            .blurb("The model that runs; auto before the element has started")
            .read_only()
            .build(),
        glib::ParamSpecDouble::builder("up-scale")
            .minimum(1.0)
            .maximum(8.0)
            .default_value(up_scale)
            .blurb(&format!(
                "Spatial factor: each side becomes floor(side * up-scale / 2) * 2, and stays as it is \
                 at 1. {ANY_TIME}"
            ))
            .mutable_playing()
            .build(),
        gst::ParamSpecFraction::builder("target-fps")
            .minimum(gst::Fraction::new(0, 1))
            .maximum(gst::Fraction::new(i32::MAX, 1))
            .default_value(target_fps)
            .blurb(&format!(
                "Frame rate to come near to, such as 24 or 24000/1001 (not 23.976): the rate grows by \
                 the whole factor nearest to target / input, 1 to 9; 0/1 keeps it. {ANY_TIME}"
            ))
            .mutable_playing()
            .build(),
        int("noise-aug", 0, 300, options.noise_aug, "v1, v2: strength of the refinement; up to 200 for good input, 250 to 300 for very poor input"),
        glib::ParamSpecEnum::builder_with_default("solver", Solver::from(options.solver))
            .blurb(&format!("v1, v2: the sampler. {AT_START}"))
            .mutable_ready()
            .build(),
        int("steps", 1, 100, options.steps, "v1, v2: sampler steps; not with solver=fast, which has its own"),
        glib::ParamSpecDouble::builder("guidance-scale")
            .minimum(1.0)
            .maximum(20.0)
            .default_value(options.guidance_scale)
            .blurb(&format!("v1, v2: weight of the prompt. {AT_START}"))
            .mutable_ready()
            .build(),
        int("downscale-cond", 1, 8, options.downscale_cond, "v1, v2: the downscale factor told to the network"),
        text("prompt", Some(&options.prompt), "v1, v2: what the video shows"),
        text("negative-prompt", Some(&options.negative_prompt), "v1, v2: what the video must not look like"),
        uint("first-frame", first_frame, "v1, v2: the number of the first input frame in the clip that it is a part of, which gives it the same noise as there; the clips after it count from 0"),
        glib::ParamSpecUInt64::builder("seed")
            .default_value(options.seed)
            .blurb(&format!("v1, v2: start of all randomness. {AT_START}"))
            .mutable_ready()
            .build(),
        uint("min-height", options.min_height, "v1, v2: the smallest output height; smaller output is enlarged to it, with a warning"),
        uint("max-pixels", options.max_pixels, "v1, v2: the largest output area, 0 for no limit; larger output is reduced to it, with a warning"),
        text("model-dir", None, "v1, v2: folder with the weights, instead of the hub"),
        text("device", Some(&options.device), "Where to compute: auto, cpu, cuda:N, or a comma-separated list; lite runs on the CPU"),
        glib::ParamSpecBoxed::builder::<gst::Structure>("progress")
            .blurb(
                "Progress of the work, as in the element messages venhance-progress: frames-in, \
                 frames-out (uint64), unit (string), seconds-per-unit and eta-seconds (double, -1: not \
                 known)",
            )
            .read_only()
            .build(),
    ]
});

impl Settings {
    /// Sets a writable property; its range is GObject's to keep.
    pub(super) fn set(&mut self, name: &str, value: &glib::Value) {
        let options = &mut self.options;
        match name {
            "model" => options.model = get::<Model>(value).into(),
            "up-scale" => self.up_scale = get(value),
            "target-fps" => self.target_fps = get(value),
            "noise-aug" => options.noise_aug = get::<i32>(value) as u32,
            "solver" => options.solver = get::<Solver>(value).into(),
            "steps" => options.steps = get::<i32>(value) as u32,
            "guidance-scale" => options.guidance_scale = get(value),
            "downscale-cond" => options.downscale_cond = get::<i32>(value) as u32,
            "prompt" => options.prompt = get::<Option<String>>(value).unwrap_or_default(),
            "negative-prompt" => {
                options.negative_prompt = get::<Option<String>>(value).unwrap_or_default()
            }
            "first-frame" => self.first_frame = get(value),
            "seed" => options.seed = get(value),
            "min-height" => options.min_height = get(value),
            "max-pixels" => options.max_pixels = get(value),
            "model-dir" => options.model_dir = get::<Option<String>>(value).map(PathBuf::from),
            "device" => {
                options.device = get::<Option<String>>(value).unwrap_or_else(|| "auto".into())
            }
            _ => unreachable!("no writable property {name}"),
        }
    }

    /// The value of a property that [`set`](Self::set) knows.
    pub(super) fn value(&self, name: &str) -> glib::Value {
        let options = &self.options;
        match name {
            "model" => options.model.map_or(Model::Auto, Model::from).to_value(),
            "up-scale" => self.up_scale.to_value(),
            "target-fps" => self.target_fps.to_value(),
            "noise-aug" => (options.noise_aug as i32).to_value(),
            "solver" => Solver::from(options.solver).to_value(),
            "steps" => (options.steps as i32).to_value(),
            "guidance-scale" => options.guidance_scale.to_value(),
            "downscale-cond" => (options.downscale_cond as i32).to_value(),
            "prompt" => options.prompt.to_value(),
            "negative-prompt" => options.negative_prompt.to_value(),
            "first-frame" => self.first_frame.to_value(),
            "seed" => options.seed.to_value(),
            "min-height" => options.min_height.to_value(),
            "max-pixels" => options.max_pixels.to_value(),
            "model-dir" => options.model_dir.as_ref().and_then(|path| path.to_str()).to_value(),
            "device" => options.device.to_value(),
            _ => unreachable!("no such property: {name}"),
        }
    }
}

/// The value of a property, whose type GObject has checked.
fn get<'a, T: glib::value::FromValue<'a>>(value: &'a glib::Value) -> T {
    value.get().unwrap_or_else(|_| unreachable!("GObject checks the type of a property"))
}
