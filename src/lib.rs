// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GStreamer plugin `venhance`: its element of the same name raises the resolution and the
//! frame rate of video.
//!
//! # Map of the crate
//!
//! Frames flow one way. A module imports only from modules below it in the table.
//!
//! ```text
//! buffers ─► element ─► [ Enhancer ] ─► element ─► buffers
//!                             ▲ built by models
//!                    sampler ─┤
//!                       lite ─┘ implement engine's trait; networks implement sampler's traits
//! ```
//!
//! | module | knows | does not know |
//! |---|---|---|
//! | this file | the plugin's definition, this map | |
//! | `element` | GStreamer: see the next table | tensors, networks |
//! | [`models`] | all models and devices; chooses a model and builds it from its `files`, with the layer sizes in its `config` | GStreamer |
//! | [`weights`] | files: the published models (`published`), search paths (`locate`), the hub and its cache (`hub`), PyTorch files (`torch`, `archive`, `pickle`), mapped files (`checkpoint`, `store`); tensor names and shapes (`keys`), synthetic weights (`synth`) | the meaning of tensors |
//! | [`lite`] | the small embedded networks: upscaling (`resize`, `upscale`; `statistics`: noise, sharpness and blockiness of a frame, on which upscaling depends), optical flow (`flow`), frame interpolation (`synthesis`), buffer reuse (`pool`), any output times for a model with fixed ones (`retimed`), network shapes (`network`) and weights (`weights`) | their training, which is in `examples/train_lite` |
//! | [`networks`] | candle tensors: text encoder (`text`), denoiser (`unet`) and autoencoder (`vae`) of VEnhancer, each from a config and weights | files, sampler steps |
//! | [`sampler`] | latents: the sampler of the diffusion models, and the traits that it requires of networks | the structure of a denoiser |
//! | [`ops`] | devices: operations that candle lacks or is slow at, for CPUs and, with the feature `cuda`, for NVIDIA GPUs (`cuda`: kernels and their launches) | models |
//! | [`engine`] | the contract: plain data, and the trait that every model implements; `shots` finds hard cuts and gives each shot to the model as a clip of its own; `duplicates` leaves repeated frames out of it; `blank` stands in for a model in a dry run | everything else |
//!
//! The parts of `element`, whose first page describes its threads and locks:
//!
//! | part | |
//! |---|---|
//! | `imp` | BaseTransform: negotiation and state changes |
//! | `imp/stream`, `imp/compute`, `imp/push` | streaming thread, compute thread, push task |
//! | `imp/flush` | flush, stop and restart |
//! | `imp/model` | chosen model, its memory, and warnings that follow |
//! | `imp/upstream` | events and queries |
//! | `properties`, `enums` | properties |
//! | `caps`, `convert` | output formats and sizes; conversion of frames |
//! | `clips`, `timeline`, `rate` | clip boundaries; timestamps and frame rate of the input |
//! | `schedule`, `grid`, `timecode` | timestamps of the output; those of an exact rate; timecodes |
//! | `queue`, `worker` | items between the threads; what feeds the model |
//! | `progress`, `logging` | progress and latency; debug categories |
//!
//! # Where to look
//!
//! | question | code |
//! |---|---|
//! | Where is a window cross-faded? | [`sampler::cross_fade`], called by `Sliding::finish_window` in `sampler/windows` |
//! | What ends a clip? | `ClipEnd` in `element/timeline` lists the reasons; `element/clips` finds those in buffers, `imp/stream` those in events. For the model, a hard cut ends a clip as well: `engine/shots` |
//! | How does `noise-aug` reach the network? | The property sets [`engine::Options::noise_aug`], which [`sampler::SamplerParams`] takes over. `SamplerParams::t_hint` turns it into a timestep: `sampler/encode` diffuses the hint to that timestep, `sampler/stage` passes both in [`sampler::Conditions`], and `ControlNet::embedding` in `networks/unet` embeds the timestep |
//! | Which thread pushes? | The push task on the source pad: `push_next` in `element/imp/push`. Only CAPS, flush and non-serialized events come from other threads |
//! | What happens on a flush? | `flush_start` and `flush_stop` in `element/imp/flush`: everything queued is dropped, the computation is cancelled, the model stays loaded |
//! | Where is the output size decided? | `Options::output_size` in `engine/options`, with the request in `engine/sizing` and the formulas in `engine/rules`. `element/caps` negotiates it |
//! | How does a piece make the frames of a whole run? | `src/bin/venhance/jobs/mod.rs` |
//! | How is a model added? | A module that implements [`engine::Enhancer`], as [`lite`] does; a variant of [`engine::Model`] in `engine/options` and of the property in `element/enums`; its choice, loading, memory and resume point in `models/mod.rs`; its row in the README |
//! | How much memory does a run take? | `sampler/budget` and `models/memory`; `sampler/plan`: frames in flight |
#![deny(missing_docs)]

mod element;
pub mod engine;
pub mod lite;
pub mod models;
pub mod networks;
pub mod ops;
pub mod sampler;
pub mod weights;

use gst::glib;

pub use element::{ColourFix, Duplicates, Model, Output, RateMode, Solver, VEnhance};
pub use plugin::plugin_register_static;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    element::register(plugin)
}

#[allow(missing_docs, reason = "the macro generates items without documentation")]
mod plugin {
    use super::plugin_init;

    gst::plugin_define!(
        venhance,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        // The crate is MIT OR Apache-2.0. GStreamer knows only the former by name.
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("BUILD_REL_DATE")
    );
}
