// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one place where models are chosen and put together.

mod device;

use crate::{
    engine::{Cancel, Enhancer, Error, Model, Options},
    lite::Lite,
};
use device::{Device, cuda_usable};

/// The model that will run, and why this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The model.
    pub model: Model,
    /// The reason, for people.
    pub reason: String,
}

/// Decides which model runs, by the options and the hardware alone: the same for every video.
///
/// # Errors
/// [`Error::Unavailable`] for a model that cannot run here, [`Error::Setting`] for a device that
/// does not exist or that the model cannot use.
pub fn choose(options: &Options) -> Result<Choice, Error> {
    let devices = Device::parse(&options.device)?;
    let choice = match options.model {
        None => Choice {
            model: Model::Lite,
            reason: format!(
                "model=auto: {}; v1 and v2 are not built yet, so lite runs on the CPU",
                match cuda_usable(0) {
                    Ok(()) => "a CUDA device is usable".into(),
                    Err(why) => format!("no CUDA device is usable ({why})"),
                }
            ),
        },
        Some(model) => Choice { model, reason: format!("model={model} was asked for") },
    };
    if choice.model != Model::Lite {
        return Err(not_built(choice.model));
    }
    if devices.iter().flatten().any(|device| *device != Device::Cpu) {
        return Err(Error::Setting {
            setting: "device",
            value: options.device.clone(),
            why: "lite runs on the CPU only".into(),
            instead: "use device=auto or device=cpu".into(),
        });
    }
    Ok(choice)
}

/// Loads a model. May take minutes; `cancel` stops it.
///
/// # Errors
/// Those of [`choose`], and [`Error::Cancelled`].
pub fn build(choice: &Choice, cancel: &Cancel) -> Result<Box<dyn Enhancer>, Error> {
    cancel.check()?;
    match choice.model {
        Model::Lite => Ok(Box::new(Lite::default())),
        model => Err(not_built(model)),
    }
}

fn not_built(model: Model) -> Error {
    Error::Unavailable {
        model: format!("model={model}"),
        why: "it is not built yet".into(),
        instead: "use model=lite or model=auto".into(),
    }
}
