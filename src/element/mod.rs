// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element `venhance`. The only module that knows GStreamer.
//!
//! # Threads
//!
//! | thread | runs | waits for |
//! |---|---|---|
//! | streaming thread, of upstream | `imp` and `imp/stream`: negotiates, converts input buffers, finds clip boundaries | room in the queue; in a drain, for everything to be pushed |
//! | compute thread `venhance`, from start to stop | `imp/compute`: loads the model; `worker`: gives it clips | input; room in the queue |
//! | push task, on the source pad | `imp/push`: pushes all buffers, and the serialized events between them. CAPS are pushed by BaseTransform on the streaming thread, after a drain; flush and non-serialized events on the caller's | output; downstream |
//! | any | properties, queries, state changes, FLUSH_START | nothing but the locks below |
//!
//! A model may deliver from threads of its own.
//!
//! BaseTransform negotiates only: `generate_output` never returns a buffer, because a model delivers
//! many frames for one input frame, or none.
//!
//! # Life of a frame
//!
//! 1. `submit_input_buffer` converts the buffer to a [`Frame`](crate::engine::Frame) and releases it.
//! 2. [`Clips`](clips::Clips) gives the frame its timestamp and decides whether it begins a clip; the
//!    [`Queue`](queue::Queue) takes it. If the caps do not name a frame rate, the first frames wait
//!    until it is [measured](rate).
//! 3. The [`Worker`](worker::Worker) notes it in the clip's pending queue and gives it to the model.
//! 4. The model delivers the output frames that the [`Schedule`](schedule::Schedule) of the clip has planned.
//!    The pending queue gives each the fields of its buffer, and releases the events that came after it.
//! 5. The push task converts the output frame and pushes the buffer.
//!
//! Serialized events pass through the same queue, so the order is kept.
//!
//! # End of a clip
//!
//! [`ClipEnd`](timeline::ClipEnd) lists the reasons. The model finishes a clip before what ended it
//! passes: all frames of the clip leave before new caps, a new segment, or EOS.
//!
//! # Flush
//!
//! FLUSH_START, on any thread, empties the queue, cancels the computation and makes everything that
//! waits return FLUSHING; it does not wait for the model. The queue keeps the sticky events.
//! FLUSH_STOP stores them on the source pad, as the element `queue` does, and begins a new epoch of the
//! queue; results of the old one are dropped. The model stays loaded. Stopping does the same as
//! FLUSH_START, then joins the compute thread. See `imp/flush`.
//!
//! # Locks
//!
//! Three mutexes: the queue's (with the only condition variable), the element's properties, and the
//! element's state. Each field says what it protects. No thread holds two of them, and none is held
//! while a frame is converted, computed or pushed, or a message posted.

mod caps;
mod clips;
mod convert;
mod enums;
mod grid;
mod imp;
mod logging;
mod progress;
mod properties;
mod queue;
mod rate;
mod schedule;
mod timecode;
mod timeline;
mod worker;

use gst::{glib, prelude::*, subclass::prelude::*};

pub use enums::{ColourFix, Duplicates, Model, RateMode, Solver};

use crate::engine;

glib::wrapper! {
    /// The element. The README lists its properties and the pipelines that it is made for.
    ///
    /// # Formats
    /// Every raw format of GStreamer's converter goes in and comes out, in system memory. Frames in other
    /// memory, such as `memory:GLMemory`, are an error that says what to put before the element. The output
    /// has the format of the input where downstream takes it. Otherwise it has the format that keeps alpha
    /// and is nearest in depth, then in chroma subsampling, and of these the one that encoders take. RGB in
    /// front of an encoder becomes 4:2:0, because few players support High 4:4:4. A palette (RGB8P) is
    /// read, but written only where downstream takes nothing else. Depth, range, matrix, transfer, primaries
    /// and aspect ratio stay.
    ///
    /// Alpha is kept where input and output format have it, and enlarged with the picture. With `model=lite`
    /// transparent pixels do not bleed into their neighbours; v1 and v2 ignore alpha, which is resized linearly.
    /// Where the output has no alpha, the colours stay as they are.
    ///
    /// # Size
    /// Each side becomes floor(side·`up-scale`/2)·2; `lite` keeps odd sides at 1. With `target-width` or
    /// `target-height` the output is the largest of the input's aspect ratio that fits, up to 8 times the
    /// input. v1 and v2 raise an output lower than `min-height`, and reduce one of more than `max-pixels`.
    ///
    /// # Clips and timestamps
    /// N input frames of a clip become N + k(N−1) output frames. Nothing is interpolated across the end of
    /// a clip: a DISCONT buffer, missing frames (a timestamp gap or GAP event of more than 1.5 frames),
    /// timestamps that begin anew, new caps, a segment that does not continue the last one, and EOS. A frame
    /// whose timestamp is not after that of the last one comes half a frame later; timestamps catch up in this
    /// way, unless they are more than a second behind: then they have begun anew, and are counted on from there.
    /// With `rate-mode=exact`, each output frame ends where the next one begins, also at the end of a clip.
    /// A change of the size or of `target-fps` in PLAYING drains the element as at the end of a clip; new caps
    /// follow. Frames of a variable rate keep their own timestamps.
    ///
    /// Where the timestamps of five frames all contradict the frame rate of the caps, by more than half, the
    /// measured rate decides how many frames are interpolated, and a warning says so. The caps of the output
    /// stay a multiple of the caps' rate. A rate above 1000 in the caps is never used: it is measured. Images
    /// without a rate and without timestamps are played at 25 frames a second, with a warning;
    /// `multifilesrc location=%04d.png caps=image/png,framerate=30/1`
    /// sets another rate. On Debian 12 a pipeline that reads a GIF never ends, with or without this element,
    /// because libav's demuxer sends no end of stream.
    ///
    /// # Messages
    /// - `venhance-model`: the model that runs, and the reason for the choice.
    /// - `venhance-progress`, at most ten times a second: the fields of the property `progress`.
    /// - `venhance-shot`, with `shot-detection`: the next frame begins a shot. `running-time` is that of the frame,
    ///   `frame` its number in the clip, which is the offset of its buffer.
    /// - `venhance-download`, `venhance-conversion`: progress of the weights.
    ///
    /// # Weights
    /// v1 and v2 download their weights on first use into the cache of the Hugging Face tools. The
    /// environment variables of `huggingface_hub` apply (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, …).
    /// Every file is checked by size and SHA-256, and an interrupted download resumes. `model-dir` names a
    /// folder with these files, or the file of the denoiser; what is not beside it comes from the cache or
    /// the hub. A folder can also hold a model of another size. PyTorch files are parsed as data and never
    /// executed; each is converted once into a file that can be mapped.
    ///
    /// # Memory
    /// It does not grow with the length of the video, but with the size of its frames, of which the element
    /// holds several at 16 bits per component. 1920×1080 with `model=lite up-scale=2` takes 320 MB, 500 MB
    /// with an interpolated frame.
    pub struct VEnhance(ObjectSubclass<imp::VEnhance>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object;
}

/// What the element makes of a video: see [`VEnhance::output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Size (w, h).
    pub size: (usize, usize),
    /// Number of frames that the model makes between two input frames.
    pub interpolated: usize,
    /// With rate-mode=exact, the output rate (numerator, denominator).
    pub exact: Option<(u32, u32)>,
}

impl Output {
    /// The output rate for an input rate (numerator, denominator).
    pub fn rate(&self, fps: (u32, u32)) -> (u32, u32) {
        self.exact.unwrap_or((fps.0.saturating_mul(self.interpolated as u32 + 1), fps.1))
    }

    /// The number of output frames for a clip of `inputs` frames at a rate (numerator, denominator).
    pub fn frames(&self, inputs: usize, fps: (u32, u32)) -> usize {
        match self.exact {
            Some(exact) => grid::frames(inputs, fps, exact),
            None => engine::output_frames(inputs, self.interpolated),
        }
    }
}

impl VEnhance {
    /// The model that runs with the current properties, never [`Model::Auto`], and the reason for the choice. Reads no
    /// weights.
    ///
    /// # Errors
    /// [`engine::Error::Setting`] if a property cannot be used, [`engine::Error::Weights`] if model-dir
    /// cannot.
    pub fn choice(&self) -> Result<(Model, String), engine::Error> {
        imp::VEnhance::from_obj(self).choice()
    }

    /// What the element, with its current properties, makes of a video of size (w, h) at a frame rate
    /// (numerator, denominator). Reads no weights.
    ///
    /// # Errors
    /// [`engine::Error::Setting`] if a property cannot be used.
    pub fn output(&self, input: (usize, usize), fps: (u32, u32)) -> Result<Output, engine::Error> {
        imp::VEnhance::from_obj(self).output(input, fps)
    }

    /// Describes what the element, with its current properties, would do with a clip of `inputs` frames of
    /// size (w, h) at a frame rate (numerator, denominator): a line for each fact that [`output`](Self::output)
    /// and [`choice`](Self::choice) do not tell. Reads no weights.
    ///
    /// # Errors
    /// As those of both.
    pub fn plan(
        &self,
        input: (usize, usize),
        fps: (u32, u32),
        inputs: usize,
    ) -> Result<Vec<String>, engine::Error> {
        imp::VEnhance::from_obj(self).plan(input, fps, inputs)
    }

    /// How many input frames a run can skip, with the property `skip-frames`, to reproduce the output from the last
    /// pushed frame on. In a source-pad probe: from the probed frame on. `None` before the first frame.
    pub fn resume_from(&self) -> Option<u64> {
        imp::VEnhance::from_obj(self).resume_from()
    }

    /// The number of input frames before the one at the time of the last pushed frame. In a source-pad probe: of the
    /// probed frame. `None` before the first frame.
    pub fn input_frame(&self) -> Option<u64> {
        imp::VEnhance::from_obj(self).input_frame()
    }

    /// Makes black frames from the next start on, instead of enhancing. Their timestamps, shots and resume points are
    /// those of a run; the weights are not read.
    pub fn set_dry_run(&self) {
        imp::VEnhance::from_obj(self).set_dry_run();
    }
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    logging::install();
    #[cfg(feature = "doc")]
    {
        Model::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        ColourFix::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        Duplicates::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        RateMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        Solver::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "venhance", gst::Rank::NONE, VEnhance::static_type())
}
