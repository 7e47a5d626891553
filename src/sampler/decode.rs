// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decodes latents to frames as they arrive, in cross-faded windows of a few frames and in tiles, because
//! decoding a whole clip or a large frame at once does not fit into memory.

use std::{cell::Cell, sync::Arc};

use candle_core::Tensor;

use super::{
    control::Control,
    model::{Autoencoder, Precision},
    slices::Slices,
    tiles::Tiles,
    windows::{Sliding, Windows},
};
use crate::engine::Error;

/// Windows of frames that are decoded in one call. Source: the reference implementation.
pub const FRAMES: Windows = Windows { length: 5, overlap: 2 };

/// Decodes latents [1, 4, 1, h, w] to frames [1, 3, 8h, 8w].
pub struct Decode {
    autoencoder: Arc<dyn Autoencoder>,
    tiles: Tiles,
    frames: Sliding<Tensor>,
    precision: Cell<Precision>,
    control: Control,
}

impl Decode {
    /// Creates a decoder for latents of size (h, w).
    pub fn new(
        autoencoder: Arc<dyn Autoencoder>,
        latent: (usize, usize),
        clip: crate::engine::ClipContext,
    ) -> Self {
        Self::with_control(autoencoder, latent, Control::new(clip), 0)
    }

    /// As [`new`](Self::new), within a run. `others` is the device memory in bytes that is reserved for
    /// other tensors.
    pub(super) fn with_control(
        autoencoder: Arc<dyn Autoencoder>,
        latent: (usize, usize),
        control: Control,
        others: usize,
    ) -> Self {
        let (tiles, frames) = (Tiles::for_decoding(latent), Sliding::new(FRAMES));
        let decode = Self { autoencoder, tiles, frames, precision: Cell::default(), control };
        decode.choose_slices(others);
        decode
    }

    fn choose_slices(&self, others: usize) {
        let budget = self.autoencoder.decode_budget(FRAMES.longest(), self.tiles.tile());
        self.control.set_slices(budget.map_or_else(Slices::default, |b| b.slices(others)));
    }

    /// Takes the next latents, each [1, 4, 1, h, w]. `ended` marks the end of the
    /// clip. Calls `out` in order with every frame that is final.
    ///
    /// # Errors
    /// Errors of the network and of `out`.
    pub fn push(
        &mut self,
        latents: impl IntoIterator<Item = Tensor>,
        ended: bool,
        mut out: impl FnMut(Tensor) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.frames.extend(latents);
        let non_final_windows =
            FRAMES.non_final_windows(self.frames.first() + self.frames.items().len());
        while let Some(window) = self.frames.window(non_final_windows, ended) {
            let number = self.frames.number();
            let what = format!("decoding window {number}");
            let items = || self.frames.items().iter().take(window.len());
            let decoded = loop {
                let decoded = self.control.evaluate(&what, &self.precision, |mode, check| {
                    let latents = Tensor::cat(&items().collect::<Vec<_>>(), 2)?
                        .squeeze(0)?
                        .transpose(0, 1)?;
                    Ok([self.tiles.decode(&latents, &*self.autoencoder, mode, check)?])
                });
                match decoded {
                    Ok([decoded]) => break decoded,
                    Err(error) => {
                        self.tiles = self.tiles.smaller(error, "decoding", &self.control)?;
                        self.choose_slices(0);
                    }
                }
            };
            // Copy, so that a frame does not keep the storage of the whole window alive.
            let split = window.map(|n| decoded.narrow(0, n, 1)?.force_contiguous());
            let split = self.control.attempt(&what, split.collect())?;
            drop(decoded);
            let mut done = Vec::new();
            let closed =
                self.frames.finish_window(split, number >= non_final_windows, |_, frame| {
                    done.push(frame);
                    Ok(())
                });
            self.control.attempt(&what, closed)?;
            done.into_iter().try_for_each(&mut out)?;
        }
        Ok(())
    }
}
