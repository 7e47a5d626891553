// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lanczos resize of a frame (a = 3) in floating point: each row horizontally, then vertically between these rows.

use std::{f64::consts::PI, ops::Range};

use multiversion::multiversion;
use rayon::prelude::*;

use crate::{
    engine::{Cancel, Error, Frame, zeroed},
    ops::band_rows,
};

/// Lobes of the filter on either side.
const LOBES: f64 = 3.0;
/// Input pixels of an output pixel, unless the filter is stretched.
const TAPS: usize = 6;
/// Values that [`sum_rows`] sums up in registers. Rows are padded to whole groups.
const GROUP: usize = 32;

/// Resizes `frame` to the size of `out`. With `alpha`, the colours are premultiplied while they are filtered, so that
/// transparent pixels do not bleed into their neighbours.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::Cancelled`].
pub(super) fn resize(
    frame: &Frame,
    mut out: Frame,
    alpha: bool,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    out.set_components(frame.components());
    let (width, height) = (out.width(), out.height());
    let resizer = Resizer::new(frame, (width, height), alpha);
    let rows = band_rows(height);
    let bands = out.pixels_mut().par_chunks_mut(rows * width * Frame::COMPONENTS).enumerate();
    bands.try_for_each(|(n, pixels)| resizer.write_rows(n * rows, pixels, cancel))?;
    Ok(out)
}

/// Resizes a frame, some rows at a time.
pub(super) struct Resizer<'a> {
    frame: &'a Frame,
    horizontal: Filter,
    vertical: Filter,
    alpha: bool,
}

impl<'a> Resizer<'a> {
    /// Resizes `frame` to (w, h).
    pub(super) fn new(frame: &'a Frame, (w, h): (usize, usize), alpha: bool) -> Self {
        let horizontal = Filter::new(frame.width(), w);
        Self { frame, horizontal, vertical: Filter::new(frame.height(), h), alpha }
    }

    /// Writes the rows from `first` on to `out`, [rows, w, 4].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cancelled`].
    pub(super) fn write_rows(
        &self,
        first: usize,
        out: &mut [u16],
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let width = self.horizontal.first.len();
        let count = self.vertical.count;
        let stride = width.next_multiple_of(GROUP / Frame::COMPONENTS);
        let mut line: Vec<[f32; 4]> = zeroed((self.frame.width(), 1), 1)?;
        // A ring: input row y after the horizontal filter is at y mod count.
        let mut filtered: Vec<[f32; 4]> = zeroed((stride, count), 1)?;
        let mut sums: Vec<[f32; 4]> = zeroed((stride, 1), 1)?;
        let mut weights = Vec::with_capacity(count);
        let mut done = self.vertical.first[first];
        for (y, out) in (first..).zip(out.chunks_exact_mut(width * Frame::COMPONENTS)) {
            cancel.check()?;
            let sources = self.vertical.sources(y);
            for source in done.max(sources.start)..sources.end {
                self.read(source, &mut line);
                let at = source % count * stride;
                filter_row(&line, &self.horizontal, &mut filtered[at..at + width]);
            }
            done = sources.end;
            weights.clear();
            weights.extend_from_slice(self.vertical.weights(y));
            weights.rotate_right(sources.start % count);
            sum_rows(filtered.as_flattened(), &weights, sums.as_flattened_mut());
            if self.alpha {
                unpremultiply(&mut sums);
            }
            round(sums.as_flattened(), out);
        }
        Ok(())
    }

    /// Converts a row of the frame to floating point, and premultiplies it.
    fn read(&self, y: usize, line: &mut [[f32; 4]]) {
        let pixels = self.frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
        for (out, pixel) in line.iter_mut().zip(&pixels[y * self.frame.width()..]) {
            *out = pixel.map(f32::from);
            if self.alpha {
                let [colours @ .., alpha] = out;
                colours.iter_mut().for_each(|colour| *colour *= *alpha / MAX);
            }
        }
    }
}

/// The largest value of a component.
const MAX: f32 = u16::MAX as f32;

/// The filter along an axis: an output is a weighted sum of consecutive inputs.
struct Filter {
    /// Inputs of an output.
    count: usize,
    /// The first input of each output.
    first: Vec<usize>,
    /// [outputs, count]. The weights of an output have a sum of 1.
    weights: Vec<f32>,
}

impl Filter {
    /// Resizes an axis of `from` pixels to `to`. To a smaller size, the filter is stretched; beyond the ends, it is cut off.
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let radius = LOBES * scale.max(1.0);
        let count = ((2.0 * radius).ceil() as usize).min(from);
        let (mut first, mut weights) = (Vec::with_capacity(to), Vec::with_capacity(to * count));
        let mut values = Vec::with_capacity(count);
        for n in 0..to {
            let centre = (n as f64 + 0.5) * scale;
            let start = ((centre - radius + 0.5).max(0.0) as usize).min(from - count);
            first.push(start);
            let distance = |k: usize| ((start + k) as f64 + 0.5 - centre) / scale.max(1.0);
            values.clear();
            values.extend((0..count).map(|k| lanczos(distance(k))));
            let sum: f64 = values.iter().sum();
            weights.extend(values.iter().map(|value| (value / sum) as f32));
        }
        Self { count, first, weights }
    }

    /// The inputs of output n.
    fn sources(&self, n: usize) -> Range<usize> {
        self.first[n]..self.first[n] + self.count
    }

    /// The weights of output n.
    fn weights(&self, n: usize) -> &[f32] {
        &self.weights[n * self.count..][..self.count]
    }
}

/// sinc(x)·sinc(x/3) for |x| < 3, otherwise 0. Source: Duchon, "Lanczos filtering in one and two dimensions", 1979.
fn lanczos(x: f64) -> f64 {
    match x.abs() {
        0.0 => 1.0,
        LOBES.. => 0.0,
        _ => LOBES * (PI * x).sin() * (PI * x / LOBES).sin() / (PI * x).powi(2),
    }
}

/// Filters a row horizontally.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn filter_row(line: &[[f32; 4]], filter: &Filter, out: &mut [[f32; 4]]) {
    let weights = filter.weights.chunks_exact(filter.count);
    for ((out, weights), first) in out.iter_mut().zip(weights).zip(&filter.first) {
        let pixels = &line[*first..][..weights.len()];
        let (groups, rest) = weights.as_chunks::<TAPS>();
        let (pixel_groups, last_pixels) = pixels.as_chunks::<TAPS>();
        let mut sums = [0.0; 4];
        for (weights, pixels) in groups.iter().zip(pixel_groups) {
            for n in 0..TAPS {
                add(&mut sums, weights[n], &pixels[n]);
            }
        }
        for (weight, pixel) in rest.iter().zip(last_pixels) {
            add(&mut sums, *weight, pixel);
        }
        *out = sums;
    }
}

/// Adds `weight` times `values`.
#[inline(always)]
fn add<const N: usize>(sums: &mut [f32; N], weight: f32, values: &[f32; N]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += weight * value;
    }
}

/// The sum of rows, one after the other in `rows`, each times its weight.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn sum_rows(rows: &[f32], weights: &[f32], sums: &mut [f32]) {
    let length = sums.len();
    for (n, sums) in sums.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let mut group = [0.0; GROUP];
        for (row, weight) in rows.chunks_exact(length).zip(weights) {
            add(&mut group, *weight, &row.as_chunks::<GROUP>().0[n]);
        }
        *sums = group;
    }
}

/// Divides the colours by alpha.
fn unpremultiply(pixels: &mut [[f32; 4]]) {
    for [colours @ .., alpha] in pixels {
        // An alpha that rounds to 0 has no colour.
        let factor = if *alpha <= 0.5 { 0.0 } else { MAX / *alpha };
        colours.iter_mut().for_each(|colour| *colour *= factor);
    }
}

/// Rounds to integers, and clamps to their range.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
fn round(values: &[f32], out: &mut [u16]) {
    // From here on, floating-point numbers are integers: the sum is rounded, and its lowest bits are the integer.
    const INTEGERS: f32 = (1 << 23) as f32;
    for (out, value) in out.iter_mut().zip(values) {
        *out = (value.clamp(0.0, MAX) + INTEGERS).to_bits() as u16;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resized(frame: &Frame, (w, h): (usize, usize), alpha: bool) -> Frame {
        resize(frame, Frame::new(w, h).unwrap(), alpha, &Cancel::default()).unwrap()
    }

    /// The weights of all inputs for output n of an axis, by the definition.
    fn axis_weights(n: usize, from: usize, to: usize) -> Vec<f64> {
        let scale = from as f64 / to as f64;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let weight = |j: usize| {
            let x = (j as f64 + 0.5 - (n as f64 + 0.5) * scale) / scale.max(1.0);
            if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 }
        };
        let weights: Vec<_> = (0..from).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    /// Pixel (x, y) by the definition. With `alpha`, also what the colours are divided by.
    fn expected(
        frame: &Frame,
        (x, y): (usize, usize),
        to: (usize, usize),
        alpha: bool,
    ) -> [f64; 4] {
        let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
        let columns = axis_weights(x, frame.width(), to.0);
        let rows = axis_weights(y, frame.height(), to.1);
        let mut sums = [0.0; 4];
        for (n, pixel) in pixels.iter().enumerate() {
            let weight = columns[n % frame.width()] * rows[n / frame.width()];
            let mut pixel = pixel.map(f64::from);
            if alpha {
                let opacity = pixel[3] / 65535.0;
                pixel[..3].iter_mut().for_each(|colour| *colour *= opacity);
            }
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += weight * value);
        }
        if alpha {
            let opacity = sums[3] / 65535.0;
            sums[..3].iter_mut().for_each(|colour| *colour /= opacity);
        }
        sums.map(|value| value.clamp(0.0, 65535.0))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn every_pixel_is_as_defined(
            from in (1..=20usize, 1..=20usize),
            to in (1..=50usize, 1..=50usize),
            alpha: bool,
            seed in 0..1000usize,
        ) {
            let mut frame = Frame::new(from.0, from.1).unwrap();
            for (n, value) in frame.pixels_mut().iter_mut().enumerate() {
                *value = ((n + seed) * 40_503 % 65_536) as u16;
                // So opaque that no alpha is near 0 after the filter, where colours are undefined.
                if alpha && n % 4 == 3 {
                    *value = 50_000 + *value / 8;
                }
            }
            let out = resized(&frame, to, alpha);
            for (n, pixel) in out.pixels().as_chunks::<{ Frame::COMPONENTS }>().0.iter().enumerate() {
                let expected = expected(&frame, (n % to.0, n / to.0), to, alpha);
                for (value, expected) in pixel.iter().zip(expected) {
                    prop_assert!((f64::from(*value) - expected).abs() < 1.0, "pixel {n}: {pixel:?}, {expected}");
                }
            }
        }
    }

    #[test]
    fn bands_equal_the_whole() {
        let mut frame = Frame::new(300, 190).unwrap();
        let values = frame.pixels_mut().iter_mut().enumerate();
        values.for_each(|(n, value)| *value = (n * 40_503 % 65_536) as u16);
        for (w, h) in [(1800, 1140), (301, 191), (120, 150)] {
            let mut whole = vec![0; w * h * Frame::COMPONENTS];
            let resizer = Resizer::new(&frame, (w, h), false);
            resizer.write_rows(0, &mut whole, &Cancel::default()).unwrap();
            assert!(resized(&frame, (w, h), false).pixels() == whole);
        }
    }

    #[test]
    fn transparent_pixels_do_not_bleed_into_their_neighbours() {
        let mut frame = Frame::new(8, 8).unwrap();
        for (i, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
            let opaque = i % 8 < 4;
            pixel.copy_from_slice(if opaque {
                &[40000, 30000, 20000, 65535]
            } else {
                &[0, 0, 0, 0]
            });
        }
        let out = resized(&frame, (16, 16), true);
        for pixel in out.pixels().chunks_exact(4).filter(|pixel| pixel[3] > 2000) {
            let expected = [40000, 30000, 20000].into_iter().zip(pixel);
            assert!(expected.map(|(a, b)| b.abs_diff(a)).max() <= Some(1), "{pixel:?}");
        }
    }
}
