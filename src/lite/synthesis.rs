// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frame interpolation: both neighbours are warped backward along the flow, and blended by their visibility.

#[cfg(target_arch = "x86_64")]
mod avx2;

use rayon::prelude::*;

use super::{
    flow::Motion,
    overlay::OverlayRow,
    plane::{LinearTap, cubic_neighbourhood, cubic_weights},
    tone::Tone,
};
use crate::engine::{Cancel, Components, Error, Format, Frame};

/// Rows per task of the thread pool.
const BAND_ROWS: usize = 16;

/// Writes to `out` the frame at `time`, 0 to 1, between two frames of the output size. With [`Format::alpha`],
/// colours are blended by their alpha.
pub(super) fn interpolate(
    neighbours: [&Frame; 2],
    motion: &Motion,
    time: f32,
    format: &Format,
    out: &mut Frame,
    cancel: &Cancel,
) -> Result<(), Error> {
    let (w, h) = (out.width(), out.height());
    let components = neighbours[0].components();
    out.set_components(components);
    let tones = motion.tones.map(|tone| ComponentTone::new(tone, components));
    let stride = w * Frame::COMPONENTS;
    let columns = upsampling_taps(motion.width, w);
    let lines = upsampling_taps(motion.height, h);
    let scale = [w as f32 / motion.width as f32, h as f32 / motion.height as f32];
    out.pixels_mut()
        .par_chunks_mut(BAND_ROWS * stride)
        .zip(lines.par_chunks(BAND_ROWS))
        .enumerate()
        .try_for_each(|(band, (pixels, lines))| {
            cancel.check()?;
            let mut guide = vec![[0.0; 4]; motion.width];
            for (n, (pixels, line)) in pixels.chunks_exact_mut(stride).zip(lines).enumerate() {
                motion.write_guide(*line, scale, &mut guide);
                let y = band * BAND_ROWS + n;
                let overlay = motion.overlay.as_ref();
                Row {
                    neighbours,
                    tones,
                    guide: &guide,
                    columns: &columns,
                    overlay: overlay.and_then(|overlay| overlay.row(y, (w, h))),
                    y: y as f32,
                    time,
                    alpha: format.alpha,
                    // Enlarged frames have nothing as fine as what linear interpolation loses.
                    cubic: format.input == format.output,
                }
                .write(pixels);
            }
            Ok(())
        })
}

/// The taps that upsample an axis of `from` pixels to `to` pixels.
fn upsampling_taps(from: usize, to: usize) -> Vec<LinearTap> {
    let ratio = from as f32 / to as f32;
    (0..to).map(|n| LinearTap::new((n as f32 + 0.5) * ratio - 0.5, from, 1)).collect()
}

impl Motion {
    /// Interpolates one row vertically at `line`: for each column, the flow (x, y) times `scale`, the blend
    /// weight of the first frame, and 0.
    fn write_guide(&self, line: LinearTap, scale: [f32; 2], guide: &mut [[f32; 4]]) {
        let row = |y: usize| y * self.width..(y + 1) * self.width;
        let (upper, lower) = (row(line.lower), row(line.upper));
        let flows = self.flow[upper.clone()].iter().zip(&self.flow[lower.clone()]);
        let weights = self.first_weight[upper].iter().zip(&self.first_weight[lower]);
        for ((guide, (a, b)), (wa, wb)) in guide.iter_mut().zip(flows).zip(weights) {
            let lerp = |a: f32, b: f32| a + line.weight * (b - a);
            let (x, y) = (lerp(a[0], b[0]) * scale[0], lerp(a[1], b[1]) * scale[1]);
            *guide = [x, y, lerp(*wa, *wb), 0.0];
        }
    }
}

/// A [`Tone`] for the four components of a pixel. Alpha stays.
#[derive(Clone, Copy)]
struct ComponentTone {
    gain: [f32; 4],
    offset: [f32; 4],
}

impl ComponentTone {
    fn new(Tone { gain, offset }: Tone, components: Components) -> Self {
        // Black and white at both ends of the scale of the luma, and grey, which a gain keeps.
        let (black, white, colours) = match components {
            Components::Rgb => (0.0, 65535.0, None),
            Components::Ycbcr { black, white, neutral } => {
                (f32::from(black), f32::from(white), Some(f32::from(neutral)))
            }
        };
        let luma = offset * (white - black) + (1.0 - gain) * black;
        let colour = colours.map_or(luma, |neutral| (1.0 - gain) * neutral);
        Self { gain: [gain, gain, gain, 1.0], offset: [luma, colour, colour, 0.0] }
    }

    fn map(&self, pixel: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| self.gain[i] * pixel[i] + self.offset[i])
    }
}

/// A row of the interpolated frame.
#[derive(Clone, Copy)]
struct Row<'a> {
    neighbours: [&'a Frame; 2],
    tones: [ComponentTone; 2],
    /// For each column of the motion: the flow (x, y) in pixels of the frame, the blend weight of the first
    /// frame, and 0.
    guide: &'a [[f32; 4]],
    /// For each column of the frame: its tap in `guide`.
    columns: &'a [LinearTap],
    /// What stands still near the row.
    overlay: Option<OverlayRow<'a>>,
    y: f32,
    time: f32,
    alpha: bool,
    /// Whether the frames are sampled with cubic convolution, or else linearly.
    cubic: bool,
}

impl Row<'_> {
    /// Writes the row, [w, 4].
    fn write(self, out: &mut [u16]) {
        let pixels = out.as_chunks_mut::<{ Frame::COMPONENTS }>().0;
        #[cfg(target_arch = "x86_64")]
        if !self.alpha && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU supports AVX2 and FMA.
            return unsafe {
                match self.cubic {
                    true => avx2::write_row::<true>(self, pixels),
                    false => avx2::write_row::<false>(self, pixels),
                }
            };
        }
        pixels.iter_mut().enumerate().for_each(|(x, out)| *out = self.pixel(x));
    }

    /// Computes pixel x of the row.
    fn pixel(&self, x: usize) -> [u16; 4] {
        let column = self.columns[x];
        let (a, b) = (&self.guide[column.lower], &self.guide[column.upper]);
        let lerp = |n: usize| a[n] + column.weight * (b[n] - a[n]);
        let (vx, vy, weight) = (lerp(0), lerp(1), lerp(2));
        let (before, after) = (-self.time, 1.0 - self.time);
        let ends = [before, after].map(|time| [x as f32 + time * vx, self.y + time * vy]);
        let [a, b] = std::array::from_fn(|n| {
            self.tones[n].map(sample(self.neighbours[n], ends[n], self.cubic))
        });
        let (still, weight) = match self.overlay {
            Some(overlay) if overlay.is_near(x) => overlay.weigh(x, ends, weight),
            _ => (0.0, weight),
        };
        let moving = blend(a, b, weight, self.alpha);
        if still == 0.0 {
            return moving.map(round);
        }
        let [a, b] = self.pixels_at(x);
        let unmoved = blend(a, b, 1.0 - self.time, self.alpha);
        blend(unmoved, moving, still, self.alpha).map(round)
    }

    /// Pixel x of both frames, in the tone of the interpolated frame.
    fn pixels_at(&self, x: usize) -> [[f32; 4]; 2] {
        std::array::from_fn(|n| {
            let frame = self.neighbours[n];
            let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
            self.tones[n].map(pixels[self.y as usize * frame.width() + x].map(f32::from))
        })
    }
}

#[inline(always)]
fn round(value: f32) -> u16 {
    (value.clamp(0.0, 65535.0) + 0.5) as i32 as u16
}

/// Blends two pixels; `weight` is that of `a`. With `alpha`, colours count by their alpha, which is not premultiplied.
fn blend(a: [f32; 4], b: [f32; 4], weight: f32, alpha: bool) -> [f32; 4] {
    if !alpha {
        return std::array::from_fn(|i| b[i] + weight * (a[i] - b[i]));
    }
    let (wa, wb) = (weight * a[3].max(0.0), (1.0 - weight) * b[3].max(0.0));
    let sum = wa + wb;
    let colour = |i: usize| if sum > 0.0 { (wa * a[i] + wb * b[i]) / sum } else { 0.0 };
    [colour(0), colour(1), colour(2), sum]
}

/// Samples a frame, with [`cubic_weights`] or linearly. Coordinates outside the frame are clamped.
fn sample(frame: &Frame, [x, y]: [f32; 2], cubic: bool) -> [f32; 4] {
    let weights = |fraction: f32| match cubic {
        true => cubic_weights(fraction),
        false => [0.0, 1.0 - fraction, fraction, 0.0],
    };
    let (w, h) = (frame.width(), frame.height());
    let (x, y) = (LinearTap::new(x, w, 1), LinearTap::new(y, h, 1));
    let columns = weights(x.weight).into_iter().zip(cubic_neighbourhood(x.lower, w));
    let pixels = frame.pixels().as_chunks::<{ Frame::COMPONENTS }>().0;
    let mut sums = [0.0; Frame::COMPONENTS];
    for (row_weight, row) in weights(y.weight).into_iter().zip(cubic_neighbourhood(y.lower, h)) {
        for (weight, column) in columns.clone() {
            let pixel = pixels[row * w + column];
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += row_weight * weight * f32::from(value);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_equal_single_pixels_up_to_rounding() {
        let image = |seed: usize| {
            let mut frame = Frame::new(37, 5).unwrap();
            let values = frame.pixels_mut().iter_mut().enumerate();
            values.for_each(|(n, value)| *value = ((n + seed) * 40_503 % 65_536) as u16);
            frame
        };
        let (first, second) = (image(1), image(77));
        // Some vectors point outside the frames, some are zero, also at the borders.
        let guide: Vec<[f32; 4]> = (0..10)
            .map(|n| match n {
                0 | 4..=6 | 9 => [0.0, 0.0, 0.1 * n as f32, 0.0],
                _ => [n as f32 * 1.7 - 6.0, 2.9 - n as f32 * 0.6, 0.1 * n as f32, 0.0],
            })
            .collect();
        let columns = upsampling_taps(10, 37);
        for (y, cubic) in (0..5).flat_map(|y| [(y, false), (y, true)]) {
            let row = Row {
                neighbours: [&first, &second],
                tones: [(0.9, 0.02), (1.2, -0.05)].map(|(gain, offset)| {
                    ComponentTone::new(Tone { gain, offset }, Components::Rgb)
                }),
                guide: &guide,
                columns: &columns,
                overlay: None,
                y: y as f32,
                time: 0.3,
                alpha: false,
                cubic,
            };
            let mut out = vec![0; 37 * Frame::COMPONENTS];
            row.write(&mut out);
            for (x, pixel) in out.as_chunks::<{ Frame::COMPONENTS }>().0.iter().enumerate() {
                let error = pixel.iter().zip(row.pixel(x)).map(|(a, b)| a.abs_diff(b)).max();
                assert!(error <= Some(2), "at ({x}, {y}): {error:?} of 65535");
            }
        }
    }
}
