// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds VEnhancer: locates the files, loads the networks, encodes the prompts and creates the sampler.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;

use super::{
    config::Config,
    device::Device,
    files::{Files, locate, sizes},
    load_event::LoadEvent,
    memory::{MemoryCheck, Sizes},
};
use crate::{
    engine::{
        self, Cancel, Error, Format, Model, Options, POSITIVE_PROMPT, Sizing, Version,
        log::{self, Area},
    },
    lite::Retimed,
    networks::{
        text::{TextEncoder, Tokenizer},
        unet::{Prompted, UNet},
        vae::Vae,
    },
    ops,
    sampler::{self, DiffusionEnhancer, Models, Plan, SamplerParams, Seeded},
    weights::{Checkpoint, Hub, Source, keys::Keys},
};

/// A requested diffusion model with its devices and options.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    version: Version,
    /// Each device runs a share of the evaluations. The first one also encodes, the last one also decodes.
    devices: Vec<Device>,
    options: Options,
}

impl Request {
    /// Creates a request, or returns `None` if `model` is not a diffusion model. Without `devices`, chooses
    /// the first CUDA device, or the CPU if the system has none.
    ///
    /// # Errors
    /// [`Error::Setting`] if the CUDA device is not usable.
    pub(super) fn new(
        model: Model,
        devices: Option<&[Device]>,
        options: &Options,
    ) -> Result<Option<Self>, Error> {
        let version = match model {
            Model::Diffusion(version) => version,
            Model::Lite => return Ok(None),
        };
        let devices = match devices {
            Some(devices) => devices.to_vec(),
            None => vec![Device::best()?],
        };
        Ok(Some(Self { version, devices, options: options.clone() }))
    }

    pub(super) fn devices(&self) -> String {
        self.devices.iter().map(Device::to_string).collect::<Vec<_>>().join(",")
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        self.devices.contains(&Device::Cpu)
    }

    /// The layer sizes of the model.
    ///
    /// # Errors
    /// [`Error::Weights`] if the model folder cannot be used.
    pub(super) fn sizes(&self) -> Result<Config, Error> {
        sizes(&self.source(), self.version)
    }

    fn source(&self) -> Source {
        Source { path: self.options.model_dir.clone(), hub: Hub::from_env() }
    }

    /// Returns a function from max-pixels to the output size (w, h).
    fn output(
        &self,
        model: Model,
        &Format { input, output, .. }: &Format,
        sizing: Sizing,
    ) -> impl Fn(u32) -> (usize, usize) {
        let options = self.options.clone();
        move |max_pixels| {
            let options = Options { max_pixels, ..options.clone() };
            // The format is the result of a sizing, but the user may have set another one since.
            options.output_size(model, input, sizing).unwrap_or(output)
        }
    }

    fn params(&self, config: &Config) -> SamplerParams {
        SamplerParams { smallest: config.min_padded, ..SamplerParams::from(&self.options) }
    }
}

/// The networks, which do not depend on the prompts.
pub(super) struct Networks {
    /// The files that they are loaded from.
    files: Files,
    devices: Vec<Device>,
    denoisers: Vec<Arc<UNet>>,
    encoder: Arc<Vae>,
    decoder: Arc<Vae>,
}

/// Converts a candle error of `what` into an [`Error`]: [`Error::Cancelled`] after a cancellation.
fn failed(what: &str, cancel: &Cancel, error: &candle_core::Error) -> Error {
    cancel.check().err().unwrap_or_else(|| sampler::failed(what.into(), error))
}

/// Checks the CUDA kernels on every device. A kernel with wrong results is disabled there, with a warning.
fn check_kernels(devices: &[Device], loader: &mut Loader) -> Result<(), Error> {
    for device in devices {
        loader.cancel.check()?;
        let warnings = device.open().and_then(|device| ops::check_kernels(&device));
        let warnings =
            warnings.map_err(|error| failed("checking the CUDA kernels", loader.cancel, &error))?;
        warnings.into_iter().map(LoadEvent::Warning).for_each(&mut *loader.note);
    }
    Ok(())
}

impl Networks {
    fn load(files: Files, devices: &[Device], loader: &mut Loader) -> Result<Self, Error> {
        let config = &files.config;
        let denoiser = |device: &Device| {
            let keys = config.unet_keys()?;
            loader.load("denoiser", &files.unet, &keys, *device, |vb| {
                UNet::new(&config.unet, vb).map(Arc::new)
            })
        };
        let denoisers = devices.iter().map(denoiser).collect::<Result<_, _>>()?;
        let mut vae = |device: &Device| {
            let keys = config.vae_keys()?;
            loader.load("autoencoder", &files.vae, &keys, *device, |vb| {
                Vae::new(&config.vae, vb).map(Arc::new)
            })
        };
        let (first, last) = (&devices[0], &devices[devices.len() - 1]);
        let encoder = vae(first)?;
        let decoder = if first == last { encoder.clone() } else { vae(last)? };
        Ok(Self { denoisers, encoder, decoder, devices: devices.to_vec(), files })
    }
}

/// Loads networks with cancellation and notifications.
struct Loader<'a> {
    cancel: &'a Cancel,
    note: &'a mut dyn FnMut(LoadEvent),
}

impl Loader<'_> {
    /// Loads one network.
    fn load<T>(
        &mut self,
        name: &str,
        file: &Checkpoint,
        keys: &Keys,
        device: Device,
        network: impl FnOnce(VarBuilder) -> candle_core::Result<T>,
    ) -> Result<T, Error> {
        let Self { cancel, note } = self;
        cancel.check()?;
        let failed = |error| failed(&format!("loading the {name}"), cancel, &error);
        let dtype = device.dtype();
        log::info(Area::Models, format_args!("Loading the {name} on {device} as {dtype:?}"));
        let device = device.open().map_err(failed)?;
        let vb = file.open(keys, dtype, &device, cancel, &mut |progress| {
            note(LoadEvent::Conversion(progress));
        })?;
        network(vb).map_err(failed)
    }
}

/// Builds the model. Reuses the networks of `previous` if the files and devices are the same.
pub(super) fn build(
    request: &Request,
    previous: Option<Networks>,
    cancel: &Cancel,
    note: &mut dyn FnMut(LoadEvent),
) -> Result<(DiffusionEnhancer, Networks), Error> {
    let Request { version, devices, options } = request;
    let mut download = |progress| note(LoadEvent::Download(progress));
    let files = locate(&request.source(), *version, cancel, &mut download)?;
    let same = |networks: &Networks| networks.files == files && networks.devices == *devices;
    let networks = match previous.filter(same) {
        Some(networks) => {
            log::info(Area::Models, format_args!("Reusing the loaded networks"));
            networks
        }
        None => {
            let mut loader = Loader { cancel, note };
            check_kernels(devices, &mut loader)?;
            Networks::load(files, devices, &mut loader)?
        }
    };

    let context = encode_prompts(request, &networks.files, &mut Loader { cancel, note })?;
    let prompted = |denoiser: &Arc<UNet>| {
        let prompted = Prompted::new(denoiser.clone(), &context);
        let prompted = prompted.map_err(|error| failed("encoding the prompt", cancel, &error))?;
        Ok::<_, Error>(Arc::new(prompted) as Arc<dyn sampler::Denoiser>)
    };
    let models = Models {
        encoder: networks.encoder.clone(),
        denoisers: networks.denoisers.iter().map(prompted).collect::<Result<_, _>>()?,
        decoder: networks.decoder.clone(),
    };
    let params = request.params(&networks.files.config);
    Ok((DiffusionEnhancer::new(models, params, Arc::new(Seeded(options.seed))), networks))
}

/// Returns each device with its memory in bytes, if known.
fn memory(devices: &[Device]) -> Vec<(Device, Option<usize>)> {
    devices.iter().map(|device| (*device, device.memory())).collect()
}

/// Checks that the devices have enough memory: for a format and its sizing, or for the smallest output if the format
/// is not known yet. Loads no weights.
///
/// # Errors
/// [`Error::TooLittleMemory`], or [`Error::Weights`] if the model folder is invalid.
pub(super) fn check_memory(
    request: &Request,
    model: Model,
    format: Option<(&Format, Sizing)>,
) -> Result<(), Error> {
    let devices = memory(&request.devices);
    if devices.iter().all(|(_, memory)| memory.is_none()) {
        return Ok(());
    }
    let config = request.sizes()?;
    let networks = &Sizes::new(&config, request.devices[0].dtype())?;
    let params = &request.params(&config);
    let check = MemoryCheck { networks, params, devices: &devices };
    let name = format!("model {model}");
    match format {
        Some((format, sizing)) => check.check(&name, format, request.output(model, format, sizing)),
        None => check.check_any(&name),
    }
}

/// See [`super::plan`].
pub(super) fn plan(
    request: &Request,
    model: Model,
    format: &Format,
    sizing: Sizing,
    inputs: usize,
) -> Result<Vec<String>, Error> {
    let config = request.sizes()?;
    let networks = &Sizes::new(&config, request.devices[0].dtype())?;
    let params = &request.params(&config);
    let check = MemoryCheck { networks, params, devices: &memory(&request.devices) };
    let plan = Plan::new(params, *format, inputs);
    let mut lines: Vec<_> = plan.to_string().lines().map(str::to_owned).collect();
    if format.exact {
        let frames = engine::count(plan.frames() as u64, "frame");
        let gib = Retimed::host_bytes(format.output) as f64 / f64::from(1 << 30);
        lines.push(format!(
            "exact rate: interpolated from {frames} of the model, {gib:.2} GiB of host memory"
        ));
    }
    lines.extend(check.describe(format, request.output(model, format, sizing)));
    Ok(lines)
}

/// See [`super::resume_from`].
pub(super) fn resume_from(request: &Request, interpolated: usize, resume_point: usize) -> usize {
    sampler::resume_from(&SamplerParams::from(&request.options), interpolated, resume_point)
}

/// Encodes the prompt and the negative prompt to [2, 77, c]. The text encoder is loaded only for this call.
fn encode_prompts(request: &Request, files: &Files, loader: &mut Loader) -> Result<Tensor, Error> {
    let tokenizer = Tokenizer::default();
    let mut tokens = |what: &str, text: &str| {
        let (tokens, truncated) = tokenizer.encode(text);
        if !truncated.is_empty() {
            (loader.note)(LoadEvent::Warning(format!(
                "{what} exceeds 77 tokens: the model does not see “{truncated}”; shorten it"
            )));
        }
        tokens
    };
    let Options { prompt, negative_prompt, .. } = &request.options;
    let tokens = [
        tokens(
            "prompt, with the text that is appended to it,",
            &format!("{prompt}{POSITIVE_PROMPT}"),
        ),
        tokens("negative-prompt", negative_prompt),
    ];
    let config = &files.config;
    let keys = config.text_keys()?;
    let encoder = loader.load("text encoder", &files.text, &keys, request.devices[0], |vb| {
        TextEncoder::new(&config.text, vb)
    })?;
    let cancel = loader.cancel;
    let check = || cancel.check().map_err(candle_core::Error::wrap);
    encoder.forward(&tokens, &check).map_err(|error| failed("encoding the prompt", cancel, &error))
}
