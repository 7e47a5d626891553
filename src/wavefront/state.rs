// SPDX-License-Identifier: MIT OR Apache-2.0
//! A run put down and taken up again: everything that is in flight, so that what follows is bit for bit
//! what would have followed.

use std::collections::{HashMap, VecDeque};

use candle_core::{Device, Tensor, safetensors::load_buffer};
use safetensors::SafeTensors;

use super::{
    decode::Latents,
    intake::Key,
    model::Encoded,
    stage::{Frame, Stage},
    windows::{Sliding, Windows},
};
use crate::engine::Error;

/// What is in flight between two frames of a clip.
#[derive(Debug, Clone, Default)]
pub struct State {
    tensors: HashMap<String, Tensor>,
    notes: HashMap<String, String>,
}

/// The note that says what the run does.
const RUN: &str = "run";
const FIRST: &str = "first";
const KEYS: &str = "keys";

fn invalid(why: impl ToString) -> Error {
    Error::State { why: why.to_string() }
}

impl State {
    /// Of a run that is described by `run`, and began with key frame `first` of its clip.
    pub(super) fn new(run: String, first: usize) -> Self {
        let notes = [(RUN.into(), run), (FIRST.into(), first.to_string())];
        Self { tensors: HashMap::new(), notes: notes.into() }
    }

    /// The key frame that the run began with.
    pub(super) fn first(&self) -> Result<usize, Error> {
        self.number(FIRST)
    }

    /// The state in the safetensors format.
    ///
    /// # Errors
    /// [`Error::Compute`] if a device does not hand out what it holds.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        safetensors::serialize(&self.tensors, Some(self.notes.clone())).map_err(|error| {
            Error::Compute { what: "saving the state".into(), why: error.to_string() }
        })
    }

    /// What [`to_bytes`](Self::to_bytes) has given.
    ///
    /// # Errors
    /// [`Error::State`] on anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(invalid)?;
        let tensors = load_buffer(bytes, &Device::Cpu).map_err(invalid)?;
        Ok(Self { tensors, notes: metadata.metadata().clone().unwrap_or_default() })
    }

    /// How many frames of the clip have been pushed: the next one continues it.
    ///
    /// # Errors
    /// [`Error::State`] if this is no saved state.
    pub fn pushed(&self) -> Result<usize, Error> {
        self.number(KEYS)
    }

    /// Checks that it is of a run that does the same.
    pub(super) fn check(&self, run: &str) -> Result<(), Error> {
        match self.notes.get(RUN) {
            Some(saved) if saved == run => Ok(()),
            Some(saved) => Err(invalid(format!("it is of another run: {saved}, not {run}"))),
            None => Err(invalid("it holds no run")),
        }
    }

    fn put(&mut self, name: String, tensor: Option<&Tensor>) {
        if let Some(tensor) = tensor {
            self.tensors.insert(name, tensor.clone());
        }
    }

    fn note(&mut self, name: &str, number: usize) {
        self.notes.insert(name.into(), number.to_string());
    }

    fn number(&self, name: &str) -> Result<usize, Error> {
        let number = self.notes.get(name).and_then(|number| number.parse().ok());
        number.ok_or_else(|| invalid(format!("it has no {name}")))
    }

    fn get(&self, name: &str, device: &Device) -> Result<Option<Tensor>, Error> {
        self.tensors.get(name).map(|tensor| tensor.to_device(device).map_err(invalid)).transpose()
    }

    fn need(&self, name: &str, device: &Device) -> Result<Tensor, Error> {
        self.get(name, device)?.ok_or_else(|| invalid(format!("it has no {name}")))
    }

    /// Items that slide, each written by `item`.
    fn put_sliding<T>(
        &mut self,
        name: &str,
        sliding: &Sliding<T>,
        item: impl Fn(&mut Self, &str, &T),
    ) {
        self.note(&format!("{name}.number"), sliding.number());
        self.note(&format!("{name}.items"), sliding.items().len());
        self.note(&format!("{name}.waiting"), sliding.waiting().len());
        for (n, value) in sliding.items().iter().enumerate() {
            item(self, &format!("{name}.{n}"), value);
        }
        for (n, tensor) in sliding.waiting().iter().enumerate() {
            self.put(format!("{name}.{n}.waiting"), Some(tensor));
        }
    }

    fn sliding<T>(
        &self,
        name: &str,
        windows: Windows,
        device: &Device,
        item: impl Fn(&str) -> Result<T, Error>,
    ) -> Result<Sliding<T>, Error> {
        let items =
            (0..self.number(&format!("{name}.items"))?).map(|n| item(&format!("{name}.{n}")));
        let items = items.collect::<Result<VecDeque<_>, _>>()?;
        let waiting = (0..self.number(&format!("{name}.waiting"))?)
            .map(|n| self.need(&format!("{name}.{n}.waiting"), device));
        let waiting = waiting.collect::<Result<Vec<_>, _>>()?;
        Ok(Sliding::restore(windows, self.number(&format!("{name}.number"))?, items, waiting))
    }

    /// The key frames so far, and the last of them.
    pub(super) fn put_intake(&mut self, (keys, previous): (usize, Option<&Key>)) {
        self.note(KEYS, keys);
        if let Some(Key { encoded: Encoded { mean, deviation }, alpha }) = previous {
            self.put("key.mean".into(), Some(mean));
            self.put("key.deviation".into(), Some(deviation));
            self.put("key.alpha".into(), alpha.as_ref());
        }
    }

    /// See [`put_intake`](Self::put_intake).
    pub(super) fn intake(&self) -> Result<(usize, Option<Key>), Error> {
        let keys = self.pushed()?;
        let device = &Device::Cpu;
        let key = match keys {
            0 => None,
            _ => Some(Key {
                encoded: Encoded {
                    mean: self.need("key.mean", device)?,
                    deviation: self.need("key.deviation", device)?,
                },
                alpha: self.get("key.alpha", device)?,
            }),
        };
        Ok((keys, key))
    }

    pub(super) fn put_stage(&mut self, number: usize, stage: &Stage) {
        let name = format!("stage.{number}");
        let (frames, ordinary) = stage.held();
        self.note(&format!("{name}.ordinary"), ordinary);
        self.put_sliding(&name, frames, |state, name, frame| {
            state.put(format!("{name}.x"), Some(&frame.x));
            state.put(format!("{name}.memory"), frame.memory.as_ref());
            state.put(format!("{name}.hint"), frame.hint.as_ref());
            state.put(format!("{name}.alpha"), frame.alpha.as_ref());
        });
    }

    /// The frames of a stage, and how many of its windows are sure not to be the last.
    pub(super) fn stage(
        &self,
        number: usize,
        windows: Windows,
        device: &Device,
    ) -> Result<(Sliding<Frame>, usize), Error> {
        let name = format!("stage.{number}");
        let frames = self.sliding(&name, windows, device, |name| {
            Ok(Frame {
                x: self.need(&format!("{name}.x"), device)?,
                memory: self.get(&format!("{name}.memory"), device)?,
                hint: self.get(&format!("{name}.hint"), device)?,
                alpha: self.get(&format!("{name}.alpha"), &Device::Cpu)?,
            })
        })?;
        Ok((frames, self.number(&format!("{name}.ordinary"))?))
    }

    pub(super) fn put_decode(&mut self, latents: &Sliding<Latents>) {
        self.put_sliding("decode", latents, |state, name, (latents, alpha)| {
            state.put(format!("{name}.x"), Some(latents));
            state.put(format!("{name}.alpha"), alpha.as_ref());
        });
    }

    pub(super) fn decode(&self, windows: Windows) -> Result<Sliding<Latents>, Error> {
        let device = &Device::Cpu;
        self.sliding("decode", windows, device, |name| {
            let alpha = self.get(&format!("{name}.alpha"), device)?;
            Ok((self.need(&format!("{name}.x"), device)?, alpha))
        })
    }
}
