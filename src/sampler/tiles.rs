// SPDX-License-Identifier: MIT OR Apache-2.0
//! The autoencoder's work on a large frame: in tiles that overlap, whose results are put together in a
//! weighted mean.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    control::Control,
    model::{Autoencoder, Check, Encoded, LATENT, Mode},
    windows::Windows,
};
use crate::engine::Error;

/// Latents of a tile.
pub const ROWS: Windows = Windows { length: 72, overlap: 12 };
/// See [`ROWS`].
pub const COLUMNS: Windows = Windows { length: 128, overlap: 25 };

/// The sizes of tiles, rows and columns, from the largest on. Those after [`PUBLISHED`] are for devices
/// that have no memory for it; still smaller ones show too little of a picture at once.
const SIZES: [(Windows, Windows); 4] = {
    const ALL: Windows = Windows { length: 1 << 20, overlap: 0 };
    const fn part(windows: Windows, n: usize) -> Windows {
        Windows { length: windows.length / n, overlap: windows.overlap / n }
    }
    [
        (ALL, ALL),
        (ROWS, COLUMNS),
        (part(ROWS, 2), part(COLUMNS, 2)),
        (part(ROWS, 4), part(COLUMNS, 4)),
    ]
};
/// Places in [`SIZES`]: a frame as it is encoded, and the tiles that it is decoded in.
const UNTILED: usize = 0;
const PUBLISHED: usize = 1;

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

/// A part of a frame, in latents.
type Tile = (Range<usize>, Range<usize>);

/// The tiles of a size of latents, and of what becomes of each.
pub(super) struct Tiles {
    /// Of the latents, (h, w).
    latent: (usize, usize),
    /// What a latent's side is long in the result.
    scale: usize,
    /// The place of their size in [`SIZES`].
    level: usize,
    tiles: Vec<Tile>,
    /// For each value of a plane of the result the sum of its tiles' weights, [h, w].
    sums: Vec<f32>,
}

/// A tile's place in the result, and its weights.
struct PlacedTile {
    top: usize,
    left: usize,
    rows: Vec<f64>,
    columns: Vec<f64>,
}

impl PlacedTile {
    fn of((rows, columns): &Tile, scale: usize) -> Self {
        let (h, w) = (rows.len() * scale, columns.len() * scale);
        let (top, left) = (rows.start * scale, columns.start * scale);
        let (rows, columns) = tile_weights(h, w);
        Self { top, left, rows, columns }
    }

    /// Adds to planes of `width` columns and `height` rows what `value(plane, y, x)` gives for a value of
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
    /// For latents of size (h, w) to be decoded: of the published size.
    pub(super) fn for_decoding(latent: (usize, usize)) -> Self {
        Self::new(latent, LATENT, PUBLISHED)
    }

    /// For frames to be encoded to latents of size (h, w): one.
    pub(super) fn for_encoding(latent: (usize, usize)) -> Self {
        Self::new(latent, 1, UNTILED)
    }

    fn new(latent: (usize, usize), scale: usize, level: usize) -> Self {
        let (rows, columns) = SIZES[level];
        let (rows, columns) = (rows.all(latent.0), columns.all(latent.1));
        let across = |row: &Range<usize>| {
            let row = row.clone();
            columns.iter().map(move |column| (row.clone(), column.clone()))
        };
        let tiles: Vec<_> = rows.iter().flat_map(across).collect();
        let size = (latent.0 * scale, latent.1 * scale);
        let mut sums = vec![0.0; size.0 * size.1];
        for tile in &tiles {
            PlacedTile::of(tile, scale).add(&mut sums, size, |_, _, _| 1.0);
        }
        Self { latent, scale, level, tiles, sums }
    }

    /// Latents [f, 4, h, w], together, to [f, 3, 8h, 8w] on the CPU.
    pub(super) fn decode(
        &self,
        latents: &Tensor,
        autoencoder: &dyn Autoencoder,
        mode: Mode,
        check: Check,
    ) -> Result<Tensor> {
        self.blend(|(rows, columns)| {
            let part = latents.narrow(2, rows.start, rows.len())?;
            let part = part.narrow(3, columns.start, columns.len())?.contiguous()?;
            autoencoder.decode(&part, mode, check)
        })
    }

    /// Frames [f, 3, 8h, 8w], each for itself.
    pub(super) fn encode(
        &self,
        frames: &Tensor,
        autoencoder: &dyn Autoencoder,
        mode: Mode,
        check: Check,
    ) -> Result<Encoded> {
        let both = self.blend(|(rows, columns)| {
            let part = frames.narrow(2, rows.start * LATENT, rows.len() * LATENT)?;
            let part = part.narrow(3, columns.start * LATENT, columns.len() * LATENT)?;
            let Encoded { mean, std } = autoencoder.encode(&part.contiguous()?, mode, check)?;
            Tensor::cat(&[mean, std], 1)
        })?;
        let channels = both.dim(1)? / 2;
        let half = |first| both.narrow(1, first, channels)?.contiguous();
        Ok(Encoded { mean: half(0)?, std: half(channels)? })
    }

    /// What `each` makes of the tiles, [n, c, scale·h, scale·w], put together on the CPU.
    fn blend(&self, each: impl Fn(&Tile) -> Result<Tensor>) -> Result<Tensor> {
        // A mean would round it.
        if let (UNTILED, [tile]) = (self.level, &*self.tiles) {
            return each(tile)?.to_device(&Device::Cpu);
        }
        let (height, width) = (self.latent.0 * self.scale, self.latent.1 * self.scale);
        let (mut planes, mut shape) = (Vec::new(), (0, 0));
        for tile in &self.tiles {
            let part = each(tile)?;
            let (n, c, h, w) = part.dims4()?;
            shape = (n, c);
            planes.resize(n * c * height * width, 0.0);
            let part = part.flatten_all()?.to_vec1::<f32>()?;
            PlacedTile::of(tile, self.scale)
                .add(&mut planes, (height, width), |plane, y, x| part[(plane * h + y) * w + x]);
        }
        planes.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
            let sums = &self.sums[row % height * width..][..width];
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value /= sum);
        });
        Tensor::from_vec(planes, (shape.0, shape.1, height, width), &Device::Cpu)
    }

    /// The next smaller tiles, after an error that says that a device has no memory for these, with a
    /// warning; any other error, or the last of these, is given back.
    pub(super) fn smaller(
        &self,
        error: Error,
        what: &str,
        control: &Control,
    ) -> std::result::Result<Self, Error> {
        let smaller = (self.level + 1..SIZES.len())
            .map(|level| Self::new(self.latent, self.scale, level))
            .find(|tiles| tiles.tiles.len() > self.tiles.len());
        let (Some(smaller), Error::DeviceMemory { .. }) = (smaller, &error) else {
            return Err(error);
        };
        let (h, w) = smaller.tile();
        control.sink.warning(format!(
            "the device has no memory left for {what} as it should be done: it goes on in tiles of \
             {}×{} pixels, whose values differ slightly; a smaller up-scale or max-pixels, or another \
             device, avoids that",
            w * LATENT,
            h * LATENT
        ));
        Ok(smaller)
    }

    /// The largest tile, (h, w) in latents.
    pub(super) fn tile(&self) -> (usize, usize) {
        let sizes = self.tiles.iter().map(|(rows, columns)| (rows.len(), columns.len()));
        sizes.max().unwrap_or_default()
    }
}
