// SPDX-License-Identifier: MIT OR Apache-2.0
//! The matrix between a format's components and R'G'B'.
//!
//! GStreamer's converter has coefficients of 8 bits and truncates: 10-bit 4:4:4 video loses up to 4 code
//! values on the way to R'G'B' and back, and gets darker. So the converter only packs and unpacks, and
//! this module applies the matrix.

use gst_video::{VideoColorMatrix, VideoInfo};
use multiversion::multiversion;
use rayon::prelude::*;

/// Values in the piece of a frame that a thread takes at a time.
const BLOCK: usize = 1 << 16;
/// The largest 16-bit value.
const MAX: f64 = 65535.0;

/// An affine map of the three components of a 16-bit pixel: the weight of each input in each output, and
/// a constant, in units of 2^-13. With that precision sums fit in 32 bits, and the error of an output is
/// less than a fifth of a 10-bit code value.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Affine {
    columns: [[i32; 3]; 3],
    constant: [i32; 3],
}

impl Affine {
    const SHIFT: u32 = 13;

    /// Rounds to fixed point. `rows`: for each output the weights of the inputs, and the constant.
    fn new(rows: [([f64; 3], f64); 3]) -> Self {
        let fixed = |x: f64| (x * f64::from(1 << Self::SHIFT)).round() as i32;
        let half = 1 << (Self::SHIFT - 1);
        Self {
            columns: std::array::from_fn(|j| std::array::from_fn(|i| fixed(rows[i].0[j]))),
            constant: std::array::from_fn(|i| fixed(rows[i].1).wrapping_add(half)),
        }
    }

    #[inline(always)]
    fn apply(&self, [x, y, z]: [u16; 3]) -> [u16; 3] {
        let (x, y, z) = (i32::from(x), i32::from(y), i32::from(z));
        std::array::from_fn(|i| {
            let [a, b, c] = &self.columns;
            // Partial sums may wrap; the sum is in range.
            let sum = a[i].wrapping_mul(x).wrapping_add(b[i].wrapping_mul(y));
            let sum = sum.wrapping_add(c[i].wrapping_mul(z)).wrapping_add(self.constant[i]);
            (sum >> Self::SHIFT).clamp(0, 65535) as u16
        })
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn unpack(step: &Affine, pixels: &mut [u16]) {
    for pixel in pixels.as_chunks_mut().0 {
        let [a, x, y, z] = *pixel;
        let [r, g, b] = step.apply([x, y, z]);
        *pixel = [r, g, b, a];
    }
}

#[multiversion(targets("x86_64+avx2"))]
fn pack(step: &Affine, rgba: &[u16], pixels: &mut [u16]) {
    for (pixel, rgba) in pixels.as_chunks_mut().0.iter_mut().zip(rgba.as_chunks().0) {
        let [r, g, b, a] = *rgba;
        let [x, y, z] = step.apply([r, g, b]);
        *pixel = [a, x, y, z];
    }
}

/// Converts 16-bit components [A, c1, c2, c3] of a format to [R, G, B, A] and back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Colour {
    to_rgb: Affine,
    from_rgb: Affine,
}

impl Colour {
    /// With matrix and range of the colorimetry of `info`. R'G'B' formats have no matrix and differ only
    /// in depth.
    pub(super) fn new(info: &VideoInfo) -> Self {
        let format = info.format_info();
        let (kr, kb) = match info.colorimetry().matrix() {
            VideoColorMatrix::Unknown | VideoColorMatrix::Rgb => VideoColorMatrix::Bt709.kr_kb(),
            matrix => matrix.kr_kb(),
        }
        .unwrap_or((0.2126, 0.0722));
        let kg = 1.0 - kr - kb;
        // R'G'B' to Y'CbCr (Y' in 0–1, Cb and Cr in ±½), and back. Source: ITU-R BT.601, 709, 2020.
        let (analysis, synthesis) = match format.is_rgb() {
            true => (IDENTITY, IDENTITY),
            false => (
                [
                    [kr, kg, kb],
                    [-kr / (2.0 - 2.0 * kb), -kg / (2.0 - 2.0 * kb), 0.5],
                    [0.5, -kg / (2.0 - 2.0 * kr), -kb / (2.0 - 2.0 * kr)],
                ],
                [
                    [1.0, 0.0, 2.0 - 2.0 * kr],
                    [1.0, -(2.0 - 2.0 * kb) * kb / kg, -(2.0 - 2.0 * kr) * kr / kg],
                    [1.0, 2.0 - 2.0 * kb, 0.0],
                ],
            ),
        };

        let depth = format.depth()[0];
        let (offsets, scales) = format.range_offsets(info.colorimetry().range());
        // GRAY8 has one component; the other two are chroma at zero.
        let component = |i: usize| match format.is_gray() && i > 0 {
            true => (f64::from(1 << (depth - 1)), f64::from(scales[0])),
            false => (f64::from(offsets[i]), f64::from(scales[i])),
        };
        // The converter widens a code value by repeating its bits, so the largest stays the largest,
        // and narrows it by truncation: half a step added makes that rounding.
        let widen = MAX / f64::from((1u32 << depth) - 1);
        let step = f64::from(1u32 << (16 - depth));

        let to_rgb = std::array::from_fn(|i| {
            let weight = |j| synthesis[i][j] * MAX / component(j).1;
            let constant = -(0..3).map(|j| weight(j) * component(j).0).sum::<f64>();
            (std::array::from_fn(|j| weight(j) / widen), constant)
        });
        let from_rgb = std::array::from_fn(|i| {
            let (offset, scale) = component(i);
            (analysis[i].map(|weight| weight * scale * step / MAX), (offset + 0.5) * step - 0.5)
        });
        Self { to_rgb: Affine::new(to_rgb), from_rgb: Affine::new(from_rgb) }
    }

    /// [A, c1, c2, c3] to [R, G, B, A], in place.
    pub(super) fn unpack(&self, pixels: &mut [u16]) {
        pixels.par_chunks_mut(BLOCK).for_each(|pixels| unpack(&self.to_rgb, pixels));
    }

    /// [R, G, B, A] to [A, c1, c2, c3].
    pub(super) fn pack(&self, rgba: &[u16], pixels: &mut [u16]) {
        pixels
            .par_chunks_mut(BLOCK)
            .zip(rgba.par_chunks(BLOCK))
            .for_each(|(pixels, rgba)| pack(&self.from_rgb, rgba, pixels));
    }
}

const IDENTITY: [[f64; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

#[cfg(test)]
mod tests {
    use gst_video::{
        VideoColorPrimaries, VideoColorRange, VideoColorimetry, VideoFormat, VideoTransferFunction,
    };

    use super::*;

    fn colour(format: VideoFormat, range: VideoColorRange, matrix: VideoColorMatrix) -> Colour {
        gst::init().unwrap();
        let colorimetry = VideoColorimetry::new(
            range,
            matrix,
            VideoTransferFunction::Bt709,
            VideoColorPrimaries::Bt709,
        );
        Colour::new(&VideoInfo::builder(format, 16, 16).colorimetry(&colorimetry).build().unwrap())
    }

    /// A code value as the converter widens it.
    fn widen(code: u32, depth: u32) -> u16 {
        (code << (16 - depth) | code >> (2 * depth - 16)) as u16
    }

    #[test]
    fn black_white_and_primaries_are_those_of_the_standards() {
        let bt601 =
            colour(VideoFormat::Y444, VideoColorRange::Range16_235, VideoColorMatrix::Bt601);
        let rgb = |y, u, v| {
            let mut pixel = [65535, widen(y, 8), widen(u, 8), widen(v, 8)];
            bt601.unpack(&mut pixel);
            pixel.map(|component| (u32::from(component) + 128) / 257)
        };
        assert_eq!(rgb(16, 128, 128), [0, 0, 0, 255]);
        assert_eq!(rgb(235, 128, 128), [255, 255, 255, 255]);
        assert_eq!(rgb(126, 128, 128), [128, 128, 128, 255]);
        // ITU-R BT.601: red is (81, 90, 240).
        let [r, g, b, _] = rgb(81, 90, 240);
        assert!(r >= 254 && g <= 1 && b <= 1, "{r} {g} {b}");
        let bt2020 =
            colour(VideoFormat::Y44410le, VideoColorRange::Range16_235, VideoColorMatrix::Bt2020);
        let mut white = [0, widen(940, 10), widen(512, 10), widen(512, 10)];
        bt2020.unpack(&mut white);
        assert_eq!(white, [65535, 65535, 65535, 0]);
    }

    #[test]
    fn every_code_value_that_rgb_can_show_comes_back_exactly() {
        for (format, depth) in
            [(VideoFormat::Y444, 8), (VideoFormat::Y44410le, 10), (VideoFormat::Gbr10le, 10)]
        {
            for range in [VideoColorRange::Range16_235, VideoColorRange::Range0_255] {
                for matrix in
                    [VideoColorMatrix::Bt601, VideoColorMatrix::Bt709, VideoColorMatrix::Bt2020]
                {
                    let colour = colour(format, range, matrix);
                    for n in 0..4096u32 {
                        let rgb = [n % 16, n / 16 % 16, n / 256].map(|x| (x * 4369) as u16);
                        let mut codes = [0; 4];
                        colour.pack(&[rgb[0], rgb[1], rgb[2], 7], &mut codes);
                        let codes = codes.map(|x| u32::from(x) >> (16 - depth));
                        let mut pixel = codes.map(|code| widen(code, depth));
                        colour.unpack(&mut pixel);
                        for (a, b) in pixel.iter().zip(rgb) {
                            // Half a code value in each component, through the matrix.
                            assert!(
                                a.abs_diff(b) <= (1.7 * 65536.0 / f64::from(1 << depth)) as u16
                            );
                        }
                        let mut again = [0; 4];
                        colour.pack(&pixel, &mut again);
                        let clipped = pixel[..3].iter().any(|&x| matches!(x, 0 | u16::MAX));
                        let again = again.map(|x| u32::from(x) >> (16 - depth));
                        assert!(clipped || again[1..] == codes[1..], "{codes:?} became {again:?}");
                    }
                }
            }
        }
    }
}
