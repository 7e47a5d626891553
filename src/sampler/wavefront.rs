// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wavefront: every evaluation of the solver is a stage, which works on a window as soon as its
//! frames are there. So window n is at evaluation 0 when window n − 1 is at evaluation 1, n − 2 at 2, …,
//! and a clip of any length goes run_from memory of one size. The numbers are those of sampling the whole
//! clip step by step: the solver updates each frame by itself, and a window needs of others only what
//! its neighbours give for the same evaluation.
//!
//! Several devices have contiguous ranges of stages, and a thread each; batches of frames move from one
//! to the next.

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{
    budget::stage_range,
    control::Control,
    model::Denoiser,
    slices::Slices,
    solver::Evaluation,
    stage::{Batch, SamplerParams, Stage},
    windows::Windows,
};
use crate::engine::{ClipContext, Error};

/// Batches that wait for a device that is busy.
const WAITING: usize = 1;

/// What comes after the last evaluation.
pub trait LatentSink: Send + 'static {
    /// Takes the next frames, without noise. Called on the last device's thread.
    ///
    /// # Errors
    /// Ends the run.
    fn take(&mut self, batch: Batch) -> Result<(), Error>;
}

/// The stages of one device.
struct DeviceStages {
    denoiser: Arc<dyn Denoiser>,
    stages: Vec<Stage>,
    params: Arc<SamplerParams>,
    control: Control,
}

/// Where batches go from a part.
type Out<'a> = &'a mut dyn FnMut(Batch) -> Result<(), Error>;

impl DeviceStages {
    fn take(&mut self, batch: Batch, out: Out) -> Result<(), Error> {
        self.run_from(0, batch, out)
    }

    /// Takes a batch run_from the stages from `number` on.
    fn run_from(&mut self, number: usize, batch: Batch, out: Out) -> Result<(), Error> {
        let Self { denoiser, stages, control, .. } = self;
        let Some(stage) = stages.get_mut(number) else {
            return out(batch);
        };
        control.check()?;
        control.attempt("moving frames to a device", stage.take(batch, denoiser.device()))?;
        while let Some(batch) =
            self.stages[number].step(&*self.denoiser, &self.params, &self.control)?
        {
            self.run_from(number + 1, batch, out)?;
        }
        Ok(())
    }

    /// Takes all that comes, and gives itself back at the end.
    fn receive_all(mut self, input: Receiver<Batch>, out: Out) -> (Self, Result<(), Error>) {
        let result = input.into_iter().try_for_each(|batch| self.take(batch, &mut *out));
        (self, result)
    }
}

/// A thread's part, how it ended, and from the last one the output.
type ThreadResult<T> = (DeviceStages, Option<T>, Result<(), Error>);

/// Parts on their threads.
struct Threads<T> {
    input: SyncSender<Batch>,
    threads: Vec<JoinHandle<ThreadResult<T>>>,
}

/// All evaluations of a clip.
pub struct Sampler<T: LatentSink> {
    /// Unless they are on their threads.
    devices: Vec<DeviceStages>,
    output: Option<T>,
    threads: Option<Threads<T>>,
    control: Control,
}

impl<T: LatentSink> Sampler<T> {
    /// Of a clip's evaluations, on at least one device.
    ///
    /// # Errors
    /// [`Error::Setting`] without a device.
    pub fn new(
        denoisers: &[Arc<dyn Denoiser>],
        evaluations: &[Evaluation],
        params: SamplerParams,
        clip: ClipContext,
        output: T,
    ) -> Result<Self, Error> {
        let slices = vec![Slices::default(); denoisers.len()];
        Self::build((denoisers, &*slices), evaluations, params, Control::new(clip), output)
    }

    /// As [`new`](Self::new), within a run. Each device works in slices of its own size.
    pub(super) fn build(
        (denoisers, slices): (&[Arc<dyn Denoiser>], &[Slices]),
        evaluations: &[Evaluation],
        params: SamplerParams,
        control: Control,
        output: T,
    ) -> Result<Self, Error> {
        if denoisers.is_empty() {
            return Err(Error::Setting {
                setting: "device",
                value: String::new(),
                why: "there is none".into(),
                instead: "name at least one, or use device=auto".into(),
            });
        }
        let params = Arc::new(params);
        let windows = Windows::of_clip(params.interpolated);
        let count = evaluations.len();
        let devices = denoisers.len().min(count);
        let part = |(number, denoiser): (usize, &Arc<dyn Denoiser>)| {
            let stages = stage_range(number, devices, count);
            let control = control.clone();
            control.set_slices(slices[number]);
            DeviceStages {
                denoiser: denoiser.clone(),
                stages: stages.map(|n| Stage::new(evaluations[n].clone(), windows)).collect(),
                params: params.clone(),
                control,
            }
        };
        let devices = denoisers.iter().take(devices).enumerate().map(part).collect();
        Ok(Self { devices, output: Some(output), threads: None, control })
    }

    /// Takes the clip's next frames. With several devices it may return before they have been worked on.
    ///
    /// # Errors
    /// Those of any part of the run, which is lost then.
    pub fn push(&mut self, batch: Batch) -> Result<(), Error> {
        if let ([part], Some(output)) = (&mut *self.devices, &mut self.output) {
            return part.take(batch, &mut |batch| output.take(batch));
        }
        if self.threads.is_none() {
            self.start_threads()?;
        }
        let sent = self.threads.as_ref().is_some_and(|threads| threads.input.send(batch).is_ok());
        if sent { Ok(()) } else { self.wait().and(Err(Error::Cancelled)) }
    }

    /// Waits until all that was pushed has been worked on.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn wait(&mut self) -> Result<(), Error> {
        let Some(Threads { input, threads }) = self.threads.take() else {
            return Ok(());
        };
        drop(input);
        let mut result = Ok(());
        for thread in threads {
            let (part, output, ended) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            self.devices.push(part);
            self.output = output;
            // Who has lost the next device says only that it was cancelled.
            if ended.is_err() && matches!(result, Ok(()) | Err(Error::Cancelled)) {
                result = ended;
            }
        }
        result
    }

    /// Frames of latents in flight at [`wait`](Self::wait), with what the solver remembers of them and
    /// what waits for the next window.
    pub fn latents(&self) -> usize {
        self.devices.iter().flat_map(|part| &part.stages).map(Stage::latents).sum()
    }

    fn start_threads(&mut self) -> Result<(), Error> {
        let (input, mut receiver) = sync_channel(WAITING);
        let mut threads = Vec::new();
        let (Some(last), Some(mut output)) = (self.devices.pop(), self.output.take()) else {
            return Err(Error::Cancelled);
        };
        for part in self.devices.drain(..) {
            let (sender, next) = sync_channel(WAITING);
            let input = std::mem::replace(&mut receiver, next);
            threads.push(spawn(move || {
                let mut send = |batch| sender.send(batch).map_err(|_| Error::Cancelled);
                let (part, result) = part.receive_all(input, &mut send);
                (part, None, result)
            })?);
        }
        threads.push(spawn(move || {
            let (part, result) = last.receive_all(receiver, &mut |batch| output.take(batch));
            (part, Some(output), result)
        })?);
        self.threads = Some(Threads { input, threads });
        Ok(())
    }
}

fn spawn<T: LatentSink>(
    work: impl FnOnce() -> ThreadResult<T> + Send + 'static,
) -> Result<JoinHandle<ThreadResult<T>>, Error> {
    let thread = thread::Builder::new().name("sampler".into()).spawn(work);
    thread.map_err(|error| Error::Compute {
        what: "starting a device's thread".into(),
        why: error.to_string(),
    })
}

impl<T: LatentSink> Drop for Sampler<T> {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(Threads { input, threads }) = self.threads.take() {
            drop(input);
            for thread in threads {
                // What it says was said, or nobody asks any more.
                let _ = thread.join();
            }
        }
    }
}
