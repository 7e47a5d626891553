// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the autoencoder on overlapping tiles of a frame, because a large frame does not fit into memory at
//! once. The result is the weighted mean of the tiles.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::{
    control::Control,
    model::{Autoencoder, Check, Encoded, LATENT, Mode},
    windows::Windows,
};
use crate::engine::Error;

/// Rows of a tile, in latents. Source: the reference implementation.
pub const ROWS: Windows = Windows { length: 72, overlap: 12 };
/// Columns of a tile, in latents. Source: the reference implementation.
pub const COLUMNS: Windows = Windows { length: 128, overlap: 25 };

/// Tile sizes in rows and columns, in descending order. Sizes below [`PUBLISHED`] are the fallback when
/// the device is out of memory. Tiles that are smaller still give the network too little context.
const SIZES: [(Windows, Windows); 4] = {
    const UNLIMITED: Windows = Windows { length: 1 << 20, overlap: 0 };
    const fn divide(windows: Windows, n: usize) -> Windows {
        Windows { length: windows.length / n, overlap: windows.overlap / n }
    }
    [
        (UNLIMITED, UNLIMITED),
        (ROWS, COLUMNS),
        (divide(ROWS, 2), divide(COLUMNS, 2)),
        (divide(ROWS, 4), divide(COLUMNS, 4)),
    ]
};
/// Indices into [`SIZES`]: the whole frame, used for encoding, and the published size, used for decoding.
const UNTILED: usize = 0;
const PUBLISHED: usize = 1;

/// Returns the weights of the rows and of the columns of a tile of h×w decoded pixels. The weight of a pixel
/// in the weighted mean is their product. Source: the reference implementation, whose Gaussian is half a
/// row off-centre vertically.
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

/// Rows and columns of a tile in a frame, in latents.
type Tile = (Range<usize>, Range<usize>);

/// The tiles of a frame, and how to combine their results.
pub(super) struct Tiles {
    /// Size of the frame in latents, (h, w).
    latent: (usize, usize),
    /// Output values per latent along each side: 8 for decoding, 1 for encoding.
    scale: usize,
    /// Index of the tile size in [`SIZES`].
    level: usize,
    tiles: Vec<Tile>,
    /// Sum of the tile weights for each value of an output plane, [scale·h, scale·w].
    sums: Vec<f32>,
}

/// Position of a tile in the output, and its weights.
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

    /// Adds the weighted tile `value(plane, y, x)` to planes of `height` rows and `width` columns.
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
    /// Creates tiles of the published size for decoding latents of size (h, w).
    pub(super) fn for_decoding(latent: (usize, usize)) -> Self {
        Self::new(latent, LATENT, PUBLISHED)
    }

    /// Creates a single tile for encoding a frame to latents of size (h, w).
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

    /// Decodes latents [f, 4, h, w] to frames [f, 3, 8h, 8w] on the CPU.
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

    /// Encodes frames [f, 3, 8h, 8w] to [f, 4, h, w], each frame independently.
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

    /// Returns the weighted mean of the tiles on the CPU. `each` returns a tile as
    /// [n, c, scale·h, scale·w].
    fn blend(&self, each: impl Fn(&Tile) -> Result<Tensor>) -> Result<Tensor> {
        // The weighted mean of a single tile would only add rounding.
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

    /// Returns smaller tiles and posts a warning if `error` is [`Error::DeviceMemory`].
    ///
    /// # Errors
    /// Returns `error` if it is another error, or if these are the smallest tiles.
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
            "{what} does not fit into the device memory: continuing in tiles of {}×{} pixels, \
             whose values differ slightly; to avoid this, use a smaller up-scale, target-height or \
             max-pixels, or another device",
            w * LATENT,
            h * LATENT
        ));
        Ok(smaller)
    }

    /// Returns the size of the largest tile, (h, w) in latents.
    pub(super) fn tile(&self) -> (usize, usize) {
        let sizes = self.tiles.iter().map(|(rows, columns)| (rows.len(), columns.len()));
        sizes.max().unwrap_or_default()
    }
}
