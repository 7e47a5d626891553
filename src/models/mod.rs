// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chooses and builds a model, so that the element knows neither devices nor weights.

mod config;
mod device;
mod diffusion;
mod files;
mod load_event;
mod memory;

use crate::{
    engine::{Cancel, Enhancer, Error, Format, Model, Options, Sizing, Version},
    lite::{Lite, Retimed},
};
#[doc(hidden)]
pub use config::Config;
use device::{Device, cuda_usable};
use diffusion::{Networks, Request};
#[doc(hidden)]
pub use files::{Files, locate, synthesize};
pub use load_event::LoadEvent;

/// The chosen model and the reason for the choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The model.
    pub model: Model,
    /// The reason, for users.
    pub reason: String,
    /// A problem with the choice that the user should know of.
    pub warning: Option<String>,
    /// Parameters of a diffusion model. `None` for `lite`.
    request: Option<Request>,
}

impl Choice {
    /// Returns the devices in the syntax of the property `device`.
    pub fn devices(&self) -> String {
        self.request.as_ref().map_or_else(|| Device::Cpu.to_string(), Request::devices)
    }
}

/// Chooses the model from the options and the hardware. The choice does not depend on the video.
///
/// # Errors
/// [`Error::Setting`] for a device that does not exist or that the model does not support.
pub fn choose(options: &Options) -> Result<Choice, Error> {
    let devices = Device::parse(&options.device)?;
    if options.model != Some(Model::Lite) {
        devices.iter().flatten().try_for_each(|device| device.check())?;
    }
    let (model, reason) = match options.model {
        Some(model) => (model, format!("model={model} is set")),
        None => match cuda_usable(0) {
            Ok(()) => (Model::Diffusion(Version::V1), "model=auto: a CUDA device is usable".into()),
            Err(why) => (Model::Lite, format!("model=auto: no CUDA device is usable ({why})")),
        },
    };
    let request = Request::new(model, devices.as_deref(), options)?;
    if request.is_none() && devices.iter().flatten().any(|device| *device != Device::Cpu) {
        return Err(Error::Setting {
            setting: "device",
            value: options.device.clone(),
            why: "model lite runs on the CPU only".into(),
            instead: "use device=auto or device=cpu".into(),
        });
    }
    let warning = request.as_ref().filter(|request| request.is_on_cpu()).map(|_| {
        let why = match cuda_usable(0) {
            Ok(()) => format!("device={} is set", options.device),
            Err(why) => why,
        };
        format!(
            "model {model} runs on the CPU ({why}); with the published weights, a clip can take days: use a GPU, or \
             model=lite"
        )
    });
    Ok(Choice { model, reason, warning, request })
}

/// Checks the model folder. Loads no weights.
///
/// # Errors
/// [`Error::Weights`] if it cannot be used.
pub fn check_folder(choice: &Choice) -> Result<(), Error> {
    choice.request.as_ref().map_or(Ok(()), |request| request.sizes().map(drop))
}

/// Describes for users what a model computes for a clip of `inputs` frames, the memory that it needs, and the memory of
/// the devices: one line for each fact, none for `lite`. `sizing` is the request that the output size of `format`
/// results from. Loads no weights.
///
/// # Errors
/// [`Error::Weights`] if the model folder is invalid.
pub fn plan(
    choice: &Choice,
    format: Format,
    sizing: Sizing,
    inputs: usize,
) -> Result<Vec<String>, Error> {
    let plan = |request| diffusion::plan(request, choice.model, &format, sizing, inputs);
    choice.request.as_ref().map_or(Ok(Vec::new()), plan)
}

/// Checks that the devices have enough memory for a format. `sizing` is the request that its output size
/// results from. Loads no weights.
///
/// # Errors
/// [`Error::TooLittleMemory`] with the largest max-pixels that fits, or [`Error::Weights`] if the model folder
/// is invalid.
pub fn check_memory(choice: &Choice, format: &Format, sizing: Sizing) -> Result<(), Error> {
    let check = |request| diffusion::check_memory(request, choice.model, Some((format, sizing)));
    choice.request.as_ref().map_or(Ok(()), check)
}

/// Returns the input frame from which a run must start so that its output from input frame `resume_point` on
/// equals the output of a run over the whole clip. There are `interpolated` frames between two input frames.
/// A run that starts elsewhere is of the same quality, but its frames differ.
pub fn resume_from(choice: &Choice, interpolated: usize, resume_point: usize) -> usize {
    match &choice.request {
        Some(request) => diffusion::resume_from(request, interpolated, resume_point),
        // A frame of `lite` depends on the two neighbouring input frames only.
        None => resume_point.saturating_sub(1),
    }
}

/// A loaded model.
pub struct Loaded {
    /// The choice that it was built from.
    pub choice: Choice,
    /// The model.
    pub enhancer: Box<dyn Enhancer>,
    /// Networks that the next model reuses if it has the same weights and devices.
    networks: Option<Networks>,
}

#[cfg(test)]
impl Loaded {
    /// Wraps any enhancer, for tests.
    pub(crate) fn with_enhancer(choice: Choice, enhancer: Box<dyn Enhancer>) -> Self {
        Self { choice, enhancer, networks: None }
    }
}

/// Loads a model. May take minutes; `cancel` stops it. Reuses the networks of `previous` if they have the same
/// weights and devices. Otherwise frees them before loading.
///
/// # Errors
/// - [`Error::TooLittleMemory`] if a device has too little memory for the smallest output.
/// - [`Error::Weights`] if the weights are missing or invalid.
/// - [`Error::DeviceMemory`] if the weights do not fit into device memory.
/// - [`Error::Cancelled`].
pub fn build(
    choice: &Choice,
    previous: Option<Loaded>,
    cancel: &Cancel,
    note: &mut dyn FnMut(LoadEvent),
) -> Result<Loaded, Error> {
    cancel.check()?;
    let (enhancer, networks): (Box<dyn Enhancer>, _) = match &choice.request {
        None => (Box::new(Lite::new()?), None),
        Some(request) => {
            diffusion::check_memory(request, choice.model, None)?;
            let previous = previous.and_then(|loaded| loaded.networks);
            let (wavefront, networks) = diffusion::build(request, previous, cancel, note)?;
            (Box::new(Retimed::new(Box::new(wavefront))), Some(networks))
        }
    };
    Ok(Loaded { choice: choice.clone(), enhancer, networks })
}
