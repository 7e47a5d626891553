// SPDX-License-Identifier: MIT OR Apache-2.0
//! The properties of the element: names, ranges, defaults and descriptions.

use std::path::PathBuf;

use gst::{glib, prelude::*};
use once_cell::sync::Lazy;

use super::{ColourFix, Duplicates, Model, RateMode, Solver};
use crate::engine::{Error, Options, Sizing};

const DEFAULT_UP_SCALE: f64 = 4.0;

/// The values of the properties: those that are set, and those that are in effect.
#[derive(Debug, Default)]
pub(super) struct PropertyValues {
    set: Properties,
    /// From start to stop: the values of the start. Those that may change in PLAYING follow.
    started: Option<Properties>,
}

impl PropertyValues {
    /// Puts into effect what is set.
    pub(super) fn start(&mut self) -> &Properties {
        self.started.insert(self.set.clone())
    }

    pub(super) fn stop(&mut self) {
        self.started = None;
    }

    /// Sets a writable property. GObject checks the range.
    pub(super) fn set(&mut self, pspec: &glib::ParamSpec, value: &glib::Value) {
        self.set.set(pspec.name(), value);
        if let Some(started) = &mut self.started
            && pspec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING)
        {
            started.set(pspec.name(), value);
        }
    }

    /// The values that are set.
    pub(super) fn latest(&self) -> &Properties {
        &self.set
    }

    /// The values that apply now.
    pub(super) fn in_effect(&self) -> &Properties {
        self.started.as_ref().unwrap_or(&self.set)
    }
}

/// A value for each property.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    /// `None` until it is set.
    up_scale: Option<f64>,
    target_width: u32,
    target_height: u32,
    pub(super) target_fps: gst::Fraction,
    pub(super) rate_mode: RateMode,
    pub(super) shot_detection: bool,
    pub(super) duplicates: Duplicates,
    /// Input frames at the start of the stream that the model does not get.
    pub(super) skip_frames: u32,
    pub(super) options: Options,
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            up_scale: None,
            target_width: 0,
            target_height: 0,
            target_fps: gst::Fraction::new(24, 1),
            rate_mode: RateMode::Multiple,
            shot_detection: true,
            duplicates: Duplicates::Keep,
            skip_frames: 0,
            options: Options::default(),
        }
    }
}

/// The description of a property that only the diffusion models use contains “(v1, v2)”: the application relies on that.
pub(super) static PROPERTIES: Lazy<Vec<glib::ParamSpec>> = Lazy::new(|| {
    let Properties {
        target_fps, rate_mode, shot_detection, duplicates, skip_frames, options, ..
    } = Properties::default();
    let int = |name, nick, low, high, default: u32, blurb| {
        glib::ParamSpecInt::builder(name)
            .nick(nick)
            .blurb(blurb)
            .minimum(low)
            .maximum(high)
            .default_value(default as i32)
            .mutable_ready()
            .build()
    };
    let uint = |name, nick, default, blurb| {
        glib::ParamSpecUInt::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(default)
            .mutable_ready()
            .build()
    };
    let target = |name, nick, blurb| {
        glib::ParamSpecUInt::builder(name).nick(nick).blurb(blurb).mutable_playing().build()
    };
    let string = |name, nick, default: Option<&str>, blurb| {
        glib::ParamSpecString::builder(name)
            .nick(nick)
            .blurb(blurb)
            .default_value(default)
            .mutable_ready()
            .build()
    };
    vec![
        glib::ParamSpecEnum::builder_with_default("model", Model::Auto)
            .nick("Model")
            .blurb(
                "lite runs on any CPU and adds no detail. v1 and v2 add detail, and are for GPUs: v1 is more \
                 creative, v2 keeps texture and identity. auto is v1 where a CUDA device is usable, else lite.",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("active-model", Model::Auto)
            .nick("Active model")
            .blurb("Model that runs; auto before the first start.")
            .read_only()
            .build(),
        glib::ParamSpecDouble::builder("up-scale")
            .nick("Upscaling factor")
            .blurb(
                "Factor for width and height, 1 to 8. Sides are rounded down to even numbers; model lite \
                 keeps odd sides at factor 1.",
            )
            .minimum(1.0)
            .maximum(8.0)
            .default_value(DEFAULT_UP_SCALE)
            .mutable_playing()
            .build(),
        target(
            "target-width",
            "Target width",
            "Maximum output width in pixels, instead of up-scale; 0 for no limit. The output is the largest size \
             of the input's aspect ratio that fits, 1 to 8 times the input.",
        ),
        target(
            "target-height",
            "Target height",
            "Maximum output height in pixels, instead of up-scale; 0 for no limit. With target-width as well, the \
             output fits both.",
        ),
        gst::ParamSpecFraction::builder("target-fps")
            .nick("Target frame rate")
            .blurb(
                "Frames per second of the output, such as 24 or 24000/1001 (not 23.976); 0 keeps the input rate. \
                 rate-mode sets how exactly the output follows it.",
            )
            .minimum(gst::Fraction::new(0, 1))
            .maximum(gst::Fraction::new(i32::MAX, 1))
            .default_value(target_fps)
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("rate-mode", rate_mode)
            .nick("Rate mode")
            .blurb(
                "multiple: the input rate is multiplied by the integer, 1 to 9, that comes nearest to target-fps; \
                 all input frames stay. exact: the output has exactly target-fps, higher or lower than the input \
                 rate, at most 240 times it.",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecBoolean::builder("shot-detection")
            .nick("Shot detection")
            .blurb(
                "Whether to find hard cuts and enhance each shot separately, so that nothing is interpolated across \
                 a cut. VEnhancer's own script does not.",
            )
            .default_value(shot_detection)
            .mutable_ready()
            .build(),
        glib::ParamSpecEnum::builder_with_default("duplicates", duplicates)
            .nick("Repeated frames")
            .blurb(
                "merge: runs of two to four equal frames, as in animation on twos, become motion of the same \
                 duration; longer runs stay still pictures. keep: repeated frames stay.",
            )
            .mutable_ready()
            .build(),
        int(
            "noise-aug",
            "Noise augmentation",
            0,
            300,
            options.noise_aug,
            "How much the model changes the picture, 0 to 300 (v1, v2). Up to 200 suits good input, 250 to 300 \
             very poor input.",
        ),
        glib::ParamSpecEnum::builder_with_default("solver", Solver::from(options.solver))
            .nick("Solver")
            .blurb(
                "Sampler (v1, v2). fast: 14 evaluations of the model. normal: one for each of the steps. heun: two \
                 for each of the steps. The time is proportional to the evaluations.",
            )
            .mutable_ready()
            .build(),
        int(
            "steps",
            "Sampler steps",
            1,
            1000,
            options.steps,
            "Number of steps of the solvers normal and heun, 1 to 1000 (v1, v2). The time is proportional to it.",
        ),
        glib::ParamSpecDouble::builder("guidance-scale")
            .nick("Guidance scale")
            .blurb(
                "How closely the output follows the prompt and avoids the negative prompt, -100 to 100 (v1, v2). A \
                 lower value leaves the model more freedom. 1 ignores the negative prompt and takes half the time.",
            )
            .minimum(-100.0)
            .maximum(100.0)
            .default_value(options.guidance_scale)
            .mutable_ready()
            .build(),
        int(
            "downscale-cond",
            "Downscale condition",
            1,
            8,
            options.downscale_cond,
            "How much detail the model adds, 1 to 8 (v1, v2): the factor by which it assumes the input to have been \
             downscaled. A lower one stays closer to the input.",
        ),
        string(
            "prompt",
            "Prompt",
            Some(&options.prompt),
            "Description of what the video shows (v1, v2).",
        ),
        string(
            "negative-prompt",
            "Negative prompt",
            Some(&options.negative_prompt),
            "Description of what the output must not look like (v1, v2).",
        ),
        uint(
            "skip-frames",
            "Skipped frames",
            skip_frames,
            "Number of input frames at the start of the stream that give no output. The output from a later \
             frame on is that of a run without skipping: this continues an interrupted run.",
        ),
        glib::ParamSpecEnum::builder_with_default("colour-fix", ColourFix::from(options.colour_fix))
            .nick("Colour fix")
            .blurb(
                "What is kept of the colours of the input (v1, v2). wavelet: those of large areas. mean: the mean \
                 colour. none: nothing, as in VEnhancer's own script.",
            )
            .mutable_ready()
            .build(),
        glib::ParamSpecUInt64::builder("seed")
            .nick("Seed")
            .blurb("Seed of the random noise (v1, v2). A different seed gives different details.")
            .default_value(options.seed)
            .mutable_ready()
            .build(),
        uint(
            "min-height",
            "Minimum height",
            options.min_height,
            "Minimum output height in pixels (v1, v2). Smaller output is scaled up to it, with a \
             warning.",
        ),
        uint(
            "max-pixels",
            "Maximum area",
            options.max_pixels,
            "Maximum output area in pixels, 0 for no limit (v1, v2). Larger output is scaled down to it, with a \
             warning. A smaller area needs less memory.",
        ),
        string(
            "model-dir",
            "Model folder",
            None,
            "Folder with the weights, or the file of the denoiser (v1, v2). What is not there is downloaded \
             from the Hugging Face hub and cached.",
        ),
        string(
            "device",
            "Device",
            Some(&options.device),
            "Device to compute on: auto, cpu, cuda:N, or a list such as cuda:0,cuda:1, which share the work. lite \
             runs on the CPU.",
        ),
        glib::ParamSpecBoxed::builder::<gst::Structure>("progress")
            .nick("Progress")
            .blurb(
                "Progress, as in the element message venhance-progress: frames-in and frames-out \
                 (uint64), unit (string), seconds-per-unit and eta-seconds (double, -1 if unknown).",
            )
            .read_only()
            .build(),
    ]
});

impl Properties {
    /// What the output size follows from: a target size, if one is set.
    pub(super) fn sizing(&self) -> Sizing {
        match (self.target_width, self.target_height) {
            (0, 0) => Sizing::Scale(self.up_scale.unwrap_or(DEFAULT_UP_SCALE)),
            (width, height) => Sizing::Fit(width, height),
        }
    }

    /// Checks the properties against each other.
    ///
    /// # Errors
    /// [`Error::Setting`] if two properties contradict each other.
    pub(super) fn check(&self) -> Result<(), Error> {
        match (self.up_scale, self.sizing()) {
            (Some(scale), fit @ Sizing::Fit(..)) => Err(Error::Setting {
                setting: "up-scale",
                value: scale.to_string(),
                why: format!("{fit} sets the size of the output as well"),
                instead: "set only one of them".into(),
            }),
            _ => Ok(()),
        }
    }

    fn set(&mut self, name: &str, value: &glib::Value) {
        let options = &mut self.options;
        match name {
            "model" => options.model = get::<Model>(value).into(),
            "up-scale" => self.up_scale = Some(get(value)),
            "target-width" => self.target_width = get(value),
            "target-height" => self.target_height = get(value),
            "target-fps" => self.target_fps = get(value),
            "rate-mode" => self.rate_mode = get(value),
            "shot-detection" => self.shot_detection = get(value),
            "duplicates" => self.duplicates = get(value),
            "noise-aug" => options.noise_aug = get::<i32>(value) as u32,
            "solver" => options.solver = get::<Solver>(value).into(),
            "steps" => options.steps = get::<i32>(value) as u32,
            "guidance-scale" => options.guidance_scale = get(value),
            "downscale-cond" => options.downscale_cond = get::<i32>(value) as u32,
            "prompt" => options.prompt = get::<Option<String>>(value).unwrap_or_default(),
            "negative-prompt" => {
                options.negative_prompt = get::<Option<String>>(value).unwrap_or_default()
            }
            "skip-frames" => self.skip_frames = get(value),
            "colour-fix" => options.colour_fix = get::<ColourFix>(value).into(),
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

    /// The value of a writable property.
    pub(super) fn value(&self, name: &str) -> glib::Value {
        let options = &self.options;
        match name {
            "model" => options.model.map_or(Model::Auto, Model::from).to_value(),
            "up-scale" => self.up_scale.unwrap_or(DEFAULT_UP_SCALE).to_value(),
            "target-width" => self.target_width.to_value(),
            "target-height" => self.target_height.to_value(),
            "target-fps" => self.target_fps.to_value(),
            "rate-mode" => self.rate_mode.to_value(),
            "shot-detection" => self.shot_detection.to_value(),
            "duplicates" => self.duplicates.to_value(),
            "noise-aug" => (options.noise_aug as i32).to_value(),
            "solver" => Solver::from(options.solver).to_value(),
            "steps" => (options.steps as i32).to_value(),
            "guidance-scale" => options.guidance_scale.to_value(),
            "downscale-cond" => (options.downscale_cond as i32).to_value(),
            "prompt" => options.prompt.to_value(),
            "negative-prompt" => options.negative_prompt.to_value(),
            "skip-frames" => self.skip_frames.to_value(),
            "colour-fix" => ColourFix::from(options.colour_fix).to_value(),
            "seed" => options.seed.to_value(),
            "min-height" => options.min_height.to_value(),
            "max-pixels" => options.max_pixels.to_value(),
            "model-dir" => options.model_dir.as_ref().and_then(|path| path.to_str()).to_value(),
            "device" => options.device.to_value(),
            _ => unreachable!("no writable property {name}"),
        }
    }
}

/// The value of a property. GObject has checked the type.
fn get<'a, T: glib::value::FromValue<'a>>(value: &'a glib::Value) -> T {
    value.get().unwrap_or_else(|_| unreachable!("GObject checks the type of a property"))
}
