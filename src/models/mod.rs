// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one place where models are chosen and put together.

mod device;
mod diffusion;
mod memory;

use crate::{
    engine::{Cancel, Enhancer, Error, Format, Model, Options},
    lite::Lite,
    weights,
};
use device::{Device, cuda_usable};
use diffusion::{Networks, Request};

/// The model that will run, and why this one.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The model.
    pub model: Model,
    /// The reason, for people.
    pub reason: String,
    /// What a diffusion model is built from.
    request: Option<Request>,
}

impl Choice {
    /// The devices that it computes on, as in the property `device`.
    pub fn devices(&self) -> String {
        self.request.as_ref().map_or_else(|| Device::Cpu.to_string(), Request::devices)
    }
}

/// Decides which model runs, by the options and the hardware alone: the same for every video.
///
/// # Errors
/// [`Error::Setting`] for a device that does not exist or that the model cannot use.
pub fn choose(options: &Options) -> Result<Choice, Error> {
    let devices = Device::parse(&options.device)?;
    let (model, mut reason) = match options.model {
        Some(model) => (model, format!("model={model} was asked for")),
        None => match cuda_usable(0) {
            Ok(()) => (Model::V1, "model=auto: a CUDA device is usable".into()),
            Err(why) => (Model::Lite, format!("model=auto: no CUDA device is usable ({why})")),
        },
    };
    let request = Request::new(model, devices.as_deref(), options)?;
    if request.is_none() && devices.iter().flatten().any(|device| *device != Device::Cpu) {
        return Err(Error::Setting {
            setting: "device",
            value: options.device.clone(),
            why: "lite runs on the CPU only".into(),
            instead: "use device=auto or device=cpu".into(),
        });
    }
    if request.as_ref().is_some_and(Request::is_on_cpu) {
        reason += "; on a CPU the published model is far too slow for real use";
    }
    Ok(Choice { model, reason, request })
}

/// What a model will do with a clip of `keys` frames that are enlarged by `scale`, what it needs, and what its
/// devices have, for people. Takes no weights.
///
/// # Errors
/// [`Error::Weights`] if a folder's model is none.
pub fn plan(choice: &Choice, format: Format, scale: f64, keys: usize) -> Result<String, Error> {
    let Choice { model, reason, request } = choice;
    let plan = match request {
        Some(request) => diffusion::plan(request, *model, &format, scale, keys)?,
        None => {
            let Format { input, output, interpolated, .. } = format;
            format!(
                "output: {} frames, {} per input frame\nsize: {}×{} to {}×{}",
                keys + interpolated * keys.saturating_sub(1),
                interpolated + 1,
                input.0,
                input.1,
                output.0,
                output.1
            )
        }
    };
    Ok(format!("model: {model} ({reason})\n{plan}"))
}

/// Compares the memory that a model needs for frames that are enlarged by `scale` with what its devices have.
/// Takes no weights.
///
/// # Errors
/// [`Error::TooLittleMemory`], with the largest max-pixels that fits; [`Error::Weights`] if a folder's model is
/// none.
pub fn check_memory(choice: &Choice, format: &Format, scale: f64) -> Result<(), Error> {
    let check = |request| diffusion::check_memory(request, choice.model, Some((format, scale)));
    choice.request.as_ref().map_or(Ok(()), check)
}

/// The key frame that a run in the middle of a clip must begin with so that, from key frame `key` on, it
/// gives what a run from the beginning gives; with `interpolated` frames between two. A run that begins with
/// another is a good one as well, but not the same.
pub fn resume_from(choice: &Choice, interpolated: usize, key: usize) -> usize {
    match &choice.request {
        Some(request) => diffusion::resume_from(request, interpolated, key),
        // `lite` makes a frame of its neighbours alone.
        None => key.saturating_sub(1),
    }
}

/// What there is to say while a model is loaded.
#[derive(Debug)]
pub enum Note {
    /// How far downloads have come.
    Download(weights::Progress),
    /// How far the copy of a file has come: see [`weights::Checkpoint::open`].
    Copy(weights::Progress),
    /// Something that the user may not have wanted.
    Warning(String),
}

/// A model, ready to work.
pub struct Loaded {
    /// What it was built for.
    pub choice: Choice,
    /// The model.
    pub enhancer: Box<dyn Enhancer>,
    /// What it shares with the next, if that has the same weights on the same devices.
    networks: Option<Networks>,
}

#[cfg(test)]
impl Loaded {
    /// Any enhancer in place of a model.
    pub(crate) fn with_enhancer(choice: Choice, enhancer: Box<dyn Enhancer>) -> Self {
        Self { choice, enhancer, networks: None }
    }
}

/// Loads a model. May take minutes; `cancel` stops it. What was loaded `before` is used again as far as
/// it serves, and is let go of before anything else is loaded.
///
/// # Errors
/// [`Error::TooLittleMemory`] if a device has too little for any output, [`Error::Weights`] if there are no
/// weights, [`Error::DeviceMemory`] if a device has no memory for them, and [`Error::Cancelled`].
pub fn build(
    choice: &Choice,
    before: Option<Loaded>,
    cancel: &Cancel,
    note: &mut dyn FnMut(Note),
) -> Result<Loaded, Error> {
    cancel.check()?;
    let (enhancer, networks): (Box<dyn Enhancer>, _) = match &choice.request {
        None => (Box::new(Lite::new()?), None),
        Some(request) => {
            diffusion::check_memory(request, choice.model, None)?;
            let before = before.and_then(|before| before.networks);
            let (wavefront, networks) = diffusion::build(request, before, cancel, note)?;
            (Box::new(wavefront), Some(networks))
        }
    };
    Ok(Loaded { choice: choice.clone(), enhancer, networks })
}
