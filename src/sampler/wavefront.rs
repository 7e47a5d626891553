// SPDX-License-Identifier: MIT OR Apache-2.0
//! The wavefront: runs all evaluations of a clip concurrently over its windows, so that a clip of any length
//! is sampled in constant memory.
//!
//! Every evaluation of the solver is a stage. A stage evaluates a window as soon as all frames of that window
//! arrive. Window n is at evaluation 0 while window n − 1 is at evaluation 1 and window n − 2 at evaluation 2:
//! the active windows form a diagonal front that moves along the clip.
//!
//! The result equals that of sampling the whole clip step by step, bit for bit. The solver updates each
//! frame independently, and a window depends on its neighbours only through the cross-fade of the same
//! evaluation.
//!
//! With several devices, each device runs a contiguous range of stages on its own thread. Batches of frames
//! move from each device to the next.

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
    params::ClipParams,
    slices::Slices,
    solver::Evaluation,
    stage::{Batch, Stage},
    windows::Windows,
};
use crate::engine::{ClipContext, Error};

/// Batches that are queued for a busy device.
const QUEUED: usize = 1;

/// Receives the sampled latents.
pub trait LatentSink: Send + 'static {
    /// Takes the next sampled frames. Called on the thread of the last device.
    ///
    /// # Errors
    /// An error ends the run.
    fn take(&mut self, batch: Batch) -> Result<(), Error>;
}

/// The stages of one device.
struct DeviceStages {
    denoiser: Arc<dyn Denoiser>,
    stages: Vec<Stage>,
    params: Arc<ClipParams>,
    control: Control,
}

/// Takes the batches that leave the last stage of a device.
type Output<'a> = &'a mut dyn FnMut(Batch) -> Result<(), Error>;

impl DeviceStages {
    /// Runs the batch through all stages of the device as far as it fills windows.
    fn push(&mut self, batch: Batch, output: Output) -> Result<(), Error> {
        self.run_from(0, batch, output)
    }

    /// Runs a batch through the stages from `number` on.
    fn run_from(&mut self, number: usize, batch: Batch, output: Output) -> Result<(), Error> {
        let Self { denoiser, stages, control, .. } = self;
        let Some(stage) = stages.get_mut(number) else {
            return output(batch);
        };
        control.check()?;
        control.attempt("copying latents to the device", stage.push(batch, denoiser.device()))?;
        while let Some(batch) =
            self.stages[number].step(&*self.denoiser, &self.params, &self.control)?
        {
            self.run_from(number + 1, batch, output)?;
        }
        Ok(())
    }

    /// Runs all batches of `input` until the channel closes. Returns the stages for later use.
    fn receive_all(mut self, input: Receiver<Batch>, output: Output) -> (Self, Result<(), Error>) {
        let result = input.into_iter().try_for_each(|batch| self.push(batch, &mut *output));
        (self, result)
    }
}

/// Result of a device's thread: its stages, the output if it is the last device, and the result of the run.
type ThreadResult<T> = (DeviceStages, Option<T>, Result<(), Error>);

/// The devices' threads and the channel to the first of them.
struct Threads<T> {
    input: SyncSender<Batch>,
    threads: Vec<JoinHandle<ThreadResult<T>>>,
}

/// Samples a clip: runs all evaluations as a wavefront.
pub struct Sampler<T: LatentSink> {
    /// Stages of each device. Empty while the threads own them.
    devices: Vec<DeviceStages>,
    /// `None` while the thread of the last device owns it.
    output: Option<T>,
    threads: Option<Threads<T>>,
    control: Control,
}

impl<T: LatentSink> Sampler<T> {
    /// Creates a sampler that runs `evaluations` on one device per denoiser.
    ///
    /// # Errors
    /// [`Error::Setting`] if `denoisers` is empty.
    pub fn new(
        denoisers: &[Arc<dyn Denoiser>],
        evaluations: &[Evaluation],
        params: ClipParams,
        clip: ClipContext,
        output: T,
    ) -> Result<Self, Error> {
        let slices = vec![Slices::default(); denoisers.len()];
        Self::build(
            (denoisers, &*slices),
            evaluations,
            Arc::new(params),
            Control::new(clip),
            output,
        )
    }

    /// As [`new`](Self::new), within a run and with the slices of each device.
    pub(super) fn build(
        (denoisers, slices): (&[Arc<dyn Denoiser>], &[Slices]),
        evaluations: &[Evaluation],
        params: Arc<ClipParams>,
        control: Control,
        output: T,
    ) -> Result<Self, Error> {
        if denoisers.is_empty() {
            return Err(Error::Setting {
                setting: "device",
                value: String::new(),
                why: "the list of devices is empty".into(),
                instead: "use device=auto or at least one device".into(),
            });
        }
        let windows = Windows::of_clip(params.interpolated);
        let count = evaluations.len();
        let devices = denoisers.len().min(count);
        let device = |(number, denoiser): (usize, &Arc<dyn Denoiser>)| {
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
        let devices = denoisers.iter().take(devices).enumerate().map(device).collect();
        Ok(Self { devices, output: Some(output), threads: None, control })
    }

    /// Takes the next frames of the clip. With several devices, may return before they are evaluated.
    ///
    /// # Errors
    /// Any error of the run. The run cannot continue after an error.
    pub fn push(&mut self, batch: Batch) -> Result<(), Error> {
        if let ([device], Some(output)) = (&mut *self.devices, &mut self.output) {
            return device.push(batch, &mut |batch| output.take(batch));
        }
        if self.threads.is_none() {
            self.start_threads()?;
        }
        let sent = self.threads.as_ref().is_some_and(|threads| threads.input.send(batch).is_ok());
        if sent {
            return Ok(());
        }
        self.wait()?;
        Err(Error::Internal { what: "the thread of a device ended early".into() })
    }

    /// Waits until all pushed frames are evaluated as far as they fill windows.
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
            let (device, output, ended) =
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            self.devices.push(device);
            self.output = output;
            // A device whose successor failed reports only `Cancelled`: prefer the successor's error.
            if ended.is_err() && matches!(result, Ok(()) | Err(Error::Cancelled)) {
                result = ended;
            }
        }
        result
    }

    /// Returns the frames of latents that all stages hold, after [`wait`](Self::wait): queued frames, their
    /// history, and results that are kept for the overlap.
    pub fn latents(&self) -> usize {
        self.devices.iter().flat_map(|device| &device.stages).map(Stage::latents).sum()
    }

    fn start_threads(&mut self) -> Result<(), Error> {
        let (input, mut receiver) = sync_channel(QUEUED);
        let mut threads = Vec::new();
        let (Some(last), Some(mut output)) = (self.devices.pop(), self.output.take()) else {
            return Err(Error::Internal { what: "a sampler without devices".into() });
        };
        for device in self.devices.drain(..) {
            let (sender, next) = sync_channel(QUEUED);
            let input = std::mem::replace(&mut receiver, next);
            threads.push(spawn(move || {
                let mut send = |batch| sender.send(batch).map_err(|_| Error::Cancelled);
                let (device, result) = device.receive_all(input, &mut send);
                (device, None, result)
            })?);
        }
        threads.push(spawn(move || {
            let (device, result) = last.receive_all(receiver, &mut |batch| output.take(batch));
            (device, Some(output), result)
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
        what: "starting the thread of a device".into(),
        why: error.to_string(),
    })
}

impl<T: LatentSink> Drop for Sampler<T> {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(Threads { input, threads }) = self.threads.take() {
            drop(input);
            for thread in threads {
                // The run is dropped: nobody waits for its result.
                let _ = thread.join();
            }
        }
    }
}
