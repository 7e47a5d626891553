// SPDX-License-Identifier: MIT OR Apache-2.0
//! Latents to frames, as they come: in windows of a few frames, each in tiles.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    control::Control,
    model::{Autoencoder, COLOURS, Check, LATENT, Precision},
    windows::{Sliding, Windows},
};
use crate::engine::Error;

/// Frames that are decoded together.
pub const FRAMES: Windows = Windows { length: 5, overlap: 2 };
/// Latents of a tile.
pub const ROWS: Windows = Windows { length: 72, overlap: 12 };
/// See [`ROWS`].
pub const COLUMNS: Windows = Windows { length: 128, overlap: 25 };

/// What the rows and the columns of a tile of h×w decoded pixels count in the mean of tiles: the weight
/// of a pixel is the product. Source: the reference's own, whose rows are off the middle by half of one.
pub fn tile_weights(h: usize, w: usize) -> (Vec<f64>, Vec<f64>) {
    let gauss = |n: usize, middle: f64| {
        let size = (n * n) as f64;
        let value = move |v: usize| {
            let square = (v as f64 - middle).powi(2);
            (-square / (size * 0.04)).exp() / (2.0 * std::f64::consts::PI * 0.02).sqrt()
        };
        (0..n).map(value).collect()
    };
    (gauss(h, h as f64 / 2.0), gauss(w, (w - 1) as f64 / 2.0))
}

/// The tiles of a size of latents.
struct Tiles {
    size: (usize, usize),
    tiles: Vec<(Range<usize>, Range<usize>)>,
    /// For each pixel the sum of its tiles' weights, [h, w].
    sums: Vec<f32>,
}

/// A tile's place in pixels, and its weights.
struct Place {
    top: usize,
    left: usize,
    rows: Vec<f64>,
    columns: Vec<f64>,
}

impl Place {
    fn of((rows, columns): &(Range<usize>, Range<usize>)) -> Self {
        let (h, w) = (rows.len() * LATENT, columns.len() * LATENT);
        let (top, left) = (rows.start * LATENT, columns.start * LATENT);
        let (rows, columns) = tile_weights(h, w);
        Self { top, left, rows, columns }
    }

    /// Adds to planes of `width` columns and `height` rows what `value(plane, y, x)` gives for a pixel of
    /// the tile, weighted.
    fn add(
        &self,
        out: &mut [f32],
        (height, width): (usize, usize),
        value: impl Fn(usize, usize, usize) -> f32 + Sync,
    ) {
        out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
            let (plane, y) = (row / height, row % height);
            let Some(y) = y.checked_sub(self.top).filter(|y| *y < self.rows.len()) else { return };
            for (x, (out, weight)) in out[self.left..].iter_mut().zip(&self.columns).enumerate() {
                *out += value(plane, y, x) * (self.rows[y] * weight) as f32;
            }
        });
    }
}

impl Tiles {
    fn new((h, w): (usize, usize)) -> Self {
        let rows = ROWS.all(h);
        let columns = COLUMNS.all(w);
        let across = |row: &Range<usize>| {
            let row = row.clone();
            columns.iter().map(move |column| (row.clone(), column.clone()))
        };
        let tiles: Vec<_> = rows.iter().flat_map(across).collect();
        let size = (h * LATENT, w * LATENT);
        let mut sums = vec![0.0; size.0 * size.1];
        for tile in &tiles {
            Place::of(tile).add(&mut sums, size, |_, _, _| 1.0);
        }
        Self { size, tiles, sums }
    }

    /// Latents [f, 4, h, w], together, to [f, 3, 8h, 8w] on the CPU.
    fn decode(
        &self,
        latents: &Tensor,
        autoencoder: &dyn Autoencoder,
        precision: Precision,
        check: Check,
    ) -> Result<Tensor> {
        let frames = latents.dim(0)?;
        let (height, width) = self.size;
        let mut planes = vec![0.0; frames * COLOURS * height * width];
        for tile in &self.tiles {
            let (rows, columns) = tile;
            let part = latents.narrow(2, rows.start, rows.len())?;
            let part = part.narrow(3, columns.start, columns.len())?.contiguous()?;
            let decoded = autoencoder.decode(&part, precision, check)?;
            let (_, _, h, w) = decoded.dims4()?;
            let decoded = decoded.flatten_all()?.to_vec1::<f32>()?;
            Place::of(tile)
                .add(&mut planes, self.size, |plane, y, x| decoded[(plane * h + y) * w + x]);
        }
        planes.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
            let sums = &self.sums[row % height * width..][..width];
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value /= sum);
        });
        Tensor::from_vec(planes, (frames, COLOURS, height, width), &Device::Cpu)
    }
}

/// A frame that waits to be decoded: its latents [1, 4, 1, h, w] and what goes with it.
pub(super) type Latents = (Tensor, Option<Tensor>);

/// The end of the way: latents in, frames [1, 3, 8h, 8w] out.
pub struct Decode {
    autoencoder: Arc<dyn Autoencoder>,
    tiles: Tiles,
    frames: Sliding<Latents>,
    control: Control,
}

impl Decode {
    /// For latents of size (h, w).
    pub fn new(
        autoencoder: Arc<dyn Autoencoder>,
        latent: (usize, usize),
        clip: crate::engine::Clip,
    ) -> Self {
        Self::restore(autoencoder, latent, Sliding::new(FRAMES), Control::new(clip))
    }

    pub(super) fn restore(
        autoencoder: Arc<dyn Autoencoder>,
        latent: (usize, usize),
        frames: Sliding<Latents>,
        control: Control,
    ) -> Self {
        Self { autoencoder, tiles: Tiles::new(latent), frames, control }
    }

    pub(super) fn held(&self) -> &Sliding<Latents> {
        &self.frames
    }

    /// Takes the next latents, [1, 4, 1, h, w] each with what goes with it; after the last, `ended`.
    /// Hands over the frames that are final, in order.
    ///
    /// # Errors
    /// Those of the network and of `out`.
    pub fn push(
        &mut self,
        latents: impl IntoIterator<Item = (Tensor, Option<Tensor>)>,
        ended: bool,
        mut out: impl FnMut(Tensor, Option<Tensor>) -> std::result::Result<(), Error>,
    ) -> std::result::Result<(), Error> {
        self.frames.extend(latents);
        let ordinary = FRAMES.ordinary(self.frames.first() + self.frames.items().len());
        while let Some(window) = self.frames.window(ordinary, ended) {
            let number = self.frames.number();
            let what = format!("decoding window {number}");
            let items = || self.frames.items().iter().take(window.len());
            let [decoded] = self.control.evaluate(&what, |precision, check| {
                let latents: Vec<_> = items().map(|(latents, _)| latents).collect();
                let latents = Tensor::cat(&latents, 2)?.squeeze(0)?.transpose(0, 1)?;
                Ok([self.tiles.decode(&latents, &*self.autoencoder, precision, check)?])
            })?;
            // Copies, so that no frame holds on to the window.
            let split = window.map(|n| decoded.narrow(0, n, 1)?.force_contiguous());
            let split = self.control.attempt(&what, split.collect())?;
            drop(decoded);
            let mut done = Vec::new();
            let closed = self.frames.close(split, number >= ordinary, |(_, with), frame| {
                done.push((frame, with.take()));
                Ok(())
            });
            self.control.attempt(&what, closed)?;
            done.into_iter().try_for_each(|(frame, with)| out(frame, with))?;
        }
        Ok(())
    }
}
