// SPDX-License-Identifier: MIT OR Apache-2.0
//! The matrix between a format's components and R'G'B', or none: frames can hold Y'CbCr.
//!
//! GStreamer's converter has coefficients of 8 bits and truncates: 10-bit 4:4:4 video loses up to 4 code
//! values on the way to R'G'B' and back, and gets darker. So the converter only packs and unpacks, and
//! this module applies the matrix.

use gst_video::{VideoColorMatrix, VideoColorRange, VideoInfo};

use crate::{element::caps, engine::Components};

/// The largest 16-bit value.
const MAX: f64 = 65535.0;

/// An affine map of the four components of a 16-bit pixel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Affine {
    /// The weights of each input in all outputs.
    columns: [[f32; 4]; 4],
    constant: [f32; 4],
}

impl Affine {
    /// `rows`: for each output the weights of the inputs, and the constant.
    fn new(rows: Rows) -> Self {
        Self {
            columns: std::array::from_fn(|j| std::array::from_fn(|i| rows[i].0[j] as f32)),
            constant: std::array::from_fn(|i| rows[i].1 as f32),
        }
    }

    /// Maps pixels [n, 4] to another slice of this size.
    pub(super) fn apply(&self, from: &[u16], to: &mut [u16]) {
        apply(self, from, to);
    }

    /// Where each output depends on one input only: the index and the weight of the input of each output.
    #[cfg(target_arch = "x86_64")]
    fn single_inputs(&self) -> Option<[(usize, f32); 4]> {
        /// What is left of zeros after the product of a matrix and its inverse.
        const ZERO: f32 = 1e-9;
        let mut inputs = [(0, 0.0); 4];
        for (i, input) in inputs.iter_mut().enumerate() {
            let weights = self.columns.iter().map(|column| column[i]).enumerate();
            let mut weights = weights.filter(|(_, weight)| weight.abs() > ZERO);
            *input = weights.next().unwrap_or(*input);
            if weights.next().is_some() {
                return None;
            }
        }
        Some(inputs)
    }
}

fn apply(affine: &Affine, from: &[u16], to: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the CPU supports AVX2 and FMA.
        return unsafe { avx2::apply(affine, from, to) };
    }
    apply_portable(affine, from, to);
}

fn apply_portable(affine: &Affine, from: &[u16], to: &mut [u16]) {
    let Affine { columns: [a, b, c, d], constant } = *affine;
    for (to, from) in to.as_chunks_mut().0.iter_mut().zip(from.as_chunks().0) {
        let [x, y, z, w]: [f32; 4] = from.map(f32::from);
        *to = std::array::from_fn::<u16, 4, _>(|i| {
            let sum = a[i] * x + b[i] * y + c[i] * z + d[i] * w + constant[i];
            sum.clamp(0.0, 65535.0).round_ties_even() as u16
        });
    }
}

/// The same with AVX2 and FMA: two pixels per register.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Affine, apply_portable};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn apply(affine: &Affine, from: &[u16], to: &mut [u16]) {
        let twice = |values: [f32; 4]| bytemuck::cast::<_, __m256>([values, values]);
        let (columns, constant) = (affine.columns.map(twice), twice(affine.constant));
        let (from, from_rest) = from.as_chunks::<16>();
        let (to, to_rest) = to.as_chunks_mut::<16>();
        if let Some(inputs) = affine.single_inputs() {
            let weights = twice(inputs.map(|(_, weight)| weight));
            // Both bytes of the input of each output, for two pixels.
            let order = inputs.map(|(input, _)| [2 * input as u8, 2 * input as u8 + 1]);
            let order: __m128i = bytemuck::cast([order, order.map(|bytes| bytes.map(|n| n + 8))]);
            for (to, from) in to.iter_mut().zip(from) {
                let [first, second]: [__m128i; 2] = bytemuck::cast(*from);
                let first = scale(weights, constant, _mm_shuffle_epi8(first, order));
                let second = scale(weights, constant, _mm_shuffle_epi8(second, order));
                *to = pack(first, second);
            }
        } else {
            for (to, from) in to.iter_mut().zip(from) {
                let [first, second]: [__m128i; 2] = bytemuck::cast(*from);
                let first = map(&columns, constant, first);
                let second = map(&columns, constant, second);
                *to = pack(first, second);
            }
        }
        apply_portable(affine, from_rest, to_rest);
    }

    /// Packs two and two pixels. Values saturate to 0..=65535.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn pack(first: __m256i, second: __m256i) -> [u16; 16] {
        // Gives pixels 0, 2, 1, 3.
        let packed = _mm256_packus_epi32(first, second);
        bytemuck::cast(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed))
    }

    /// Multiplies the components of two pixels by `weights`, adds `constant`, and rounds.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn scale(weights: __m256, constant: __m256, pixels: __m128i) -> __m256i {
        let pixels = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(pixels));
        _mm256_cvtps_epi32(_mm256_fmadd_ps(pixels, weights, constant))
    }

    /// Maps two pixels and rounds.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn map(columns: &[__m256; 4], constant: __m256, pixels: __m128i) -> __m256i {
        let pixels = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(pixels));
        let [a, b, c, d] = *columns;
        let sums = _mm256_fmadd_ps(_mm256_permute_ps::<0b00_00_00_00>(pixels), a, constant);
        let sums = _mm256_fmadd_ps(_mm256_permute_ps::<0b01_01_01_01>(pixels), b, sums);
        let sums = _mm256_fmadd_ps(_mm256_permute_ps::<0b10_10_10_10>(pixels), c, sums);
        let sums = _mm256_fmadd_ps(_mm256_permute_ps::<0b11_11_11_11>(pixels), d, sums);
        _mm256_cvtps_epi32(sums)
    }
}

/// A component of a format.
#[derive(Clone, Copy)]
struct Component {
    depth: u32,
    /// The code value of zero.
    zero: f64,
    /// The code values between zero and one.
    scale: f64,
}

impl Component {
    /// Component i of a format: R', G', B' or Y', Cb, Cr, then alpha.
    fn new(info: &VideoInfo, i: usize) -> Self {
        let format = info.format_info();
        let depth = match format.depth().get(i) {
            Some(&depth) if depth > 0 && !format.has_palette() => depth,
            // A palette has 8 bits, and missing alpha is unpacked as 0xffff.
            _ if i == 3 => 16,
            _ => format.depth()[0],
        };
        let limited = info.colorimetry().range() == VideoColorRange::Range16_235;
        let (step, largest) = (f64::from(depth).exp2() / 256.0, f64::from(depth).exp2() - 1.0);
        let (zero, scale) = match (i, limited) {
            (1 | 2, true) if !format.is_rgb() => (128.0 * step, 224.0 * step),
            (1 | 2, false) if !format.is_rgb() => (128.0 * step, largest),
            (0..3, true) => (16.0 * step, 219.0 * step),
            _ => (0.0, largest),
        };
        Self { depth, zero, scale }
    }
}

/// A matrix of the weights of the inputs in each output, and the constants.
type Rows = [([f64; 4], f64); 4];

/// The maps between 16-bit components [A, c1, c2, c3] of a format, as the converter unpacks them, and frames.
#[derive(Clone, Copy)]
pub(super) struct Colour {
    components: [Component; 4],
    /// From R'G'B' to the components without alpha, and back.
    from_rgb: [[f64; 3]; 3],
    to_rgb: [[f64; 3]; 3],
    is_rgb: bool,
    has_alpha: bool,
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
        let from_rgb = match format.is_rgb() {
            true => IDENTITY,
            false => [
                [kr, kg, kb],
                [-kr / (2.0 - 2.0 * kb), -kg / (2.0 - 2.0 * kb), 0.5],
                [0.5, -kg / (2.0 - 2.0 * kr), -kb / (2.0 - 2.0 * kr)],
            ],
        };
        let to_rgb = match (format.is_rgb(), format.is_gray()) {
            (true, _) => IDENTITY,
            (_, true) => [[1.0, 0.0, 0.0]; 3],
            _ => [
                [1.0, 0.0, 2.0 - 2.0 * kr],
                [1.0, -(2.0 - 2.0 * kb) * kb / kg, -(2.0 - 2.0 * kr) * kr / kg],
                [1.0, 2.0 - 2.0 * kb, 0.0],
            ],
        };
        Self {
            components: std::array::from_fn(|i| Component::new(info, i)),
            from_rgb,
            to_rgb,
            is_rgb: format.is_rgb(),
            has_alpha: caps::has_alpha(format),
        }
    }

    /// The meaning of frames with the components of the format, or `None` if only R'G'B' frames can hold it:
    /// transparent pixels need a colour that is 0 in all components.
    pub(super) fn ycbcr(&self) -> Option<Components> {
        let code = |component: Component, value: f64| {
            let largest = f64::from(component.depth).exp2() - 1.0;
            ((component.zero + value * component.scale) * MAX / largest).round() as u16
        };
        let [luma, chroma, ..] = self.components;
        (!self.is_rgb && !self.has_alpha).then(|| Components::Ycbcr {
            black: code(luma, 0.0),
            white: code(luma, 1.0),
            neutral: code(chroma, 0.0),
        })
    }

    /// The map from [A, c1, c2, c3] to [R, G, B, A]. The converter widens code values so that the largest become
    /// `largest`. Without alpha, pixels are opaque: the converter may give padding.
    pub(super) fn map_to_rgb(&self, largest: [u16; 4]) -> Affine {
        Affine::new(self.rows_to_rgb(largest.map(f64::from)))
    }

    /// The map from [A, c1, c2, c3] to [c1, c2, c3, A], where the largest code value is 65535. Pixels are opaque.
    pub(super) fn map_to_ycbcr(&self, largest: [u16; 4]) -> Affine {
        let unit = |i: usize| {
            let mut weights = [0.0; 4];
            weights[i] = MAX / f64::from(largest[i]);
            (weights, 0.0)
        };
        Affine::new([unit(1), unit(2), unit(3), ([0.0; 4], MAX)])
    }

    /// The map from [R, G, B, A] to [A, c1, c2, c3].
    pub(super) fn map_from_rgb(&self) -> Affine {
        Affine::new(self.rows_from_rgb())
    }

    /// The map from [c1, c2, c3, A] of the format `from` to [A, c1, c2, c3] of this one.
    pub(super) fn map_from_ycbcr(&self, from: &Self) -> Affine {
        let to_rgb = from.rows_to_rgb([MAX; 4]).map(|([alpha, x, y, z], c)| ([x, y, z, alpha], c));
        Affine::new(compose(self.rows_from_rgb(), to_rgb))
    }

    fn rows_to_rgb(&self, [alpha, largest @ ..]: [f64; 4]) -> Rows {
        let weight = |i: usize, j: usize| self.to_rgb[i][j] * MAX / self.components[j].scale;
        std::array::from_fn(|i| {
            match (i, self.has_alpha) {
                (3, true) => return ([MAX / alpha, 0.0, 0.0, 0.0], 0.0),
                (3, false) => return ([0.0; 4], MAX),
                _ => {}
            }
            let code = |j: usize| (f64::from(self.components[j].depth).exp2() - 1.0) / largest[j];
            let [x, y, z] = std::array::from_fn(|j| weight(i, j) * code(j));
            let zero = (0..3).map(|j| weight(i, j) * self.components[j].zero).sum::<f64>();
            ([0.0, x, y, z], -zero)
        })
    }

    /// The converter narrows by truncation; half a step of the code value, added, makes that rounding.
    fn rows_from_rgb(&self) -> Rows {
        std::array::from_fn(|i| {
            let (component, weights) = match i {
                0 => (self.components[3], [0.0, 0.0, 0.0, 1.0]),
                _ => {
                    let [r, g, b] = self.from_rgb[i - 1];
                    (self.components[i - 1], [r, g, b, 0.0])
                }
            };
            let step = f64::from(16 - component.depth).exp2();
            let weights = weights.map(|weight| weight * component.scale * step / MAX);
            (weights, (component.zero + 0.5) * step - 0.5)
        })
    }
}

/// The map that first applies `inner`, then `outer`.
fn compose(outer: Rows, inner: Rows) -> Rows {
    outer.map(|(weights, constant)| {
        let sum = |value: &dyn Fn(usize) -> f64| (0..4).map(|k| weights[k] * value(k)).sum::<f64>();
        let composed = std::array::from_fn(|j| sum(&|k| inner[k].0[j]));
        (composed, constant + sum(&|k| inner[k].1))
    })
}

const IDENTITY: [[f64; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

#[cfg(test)]
mod tests {
    use gst_video::{
        VideoColorPrimaries, VideoColorRange, VideoColorimetry, VideoFormat, VideoTransferFunction,
    };

    use super::*;

    /// The maps of a format to R'G'B' and back.
    struct Maps {
        to_rgb: Affine,
        from_rgb: Affine,
        to_ycbcr: Affine,
        from_ycbcr: Affine,
    }

    fn colour(format: VideoFormat, range: VideoColorRange, matrix: VideoColorMatrix) -> Maps {
        gst::init().unwrap();
        let colorimetry = VideoColorimetry::new(
            range,
            matrix,
            VideoTransferFunction::Bt709,
            VideoColorPrimaries::Bt709,
        );
        let info = VideoInfo::builder(format, 16, 16).colorimetry(&colorimetry).build().unwrap();
        let colour = Colour::new(&info);
        Maps {
            to_rgb: colour.map_to_rgb([u16::MAX; 4]),
            from_rgb: colour.map_from_rgb(),
            to_ycbcr: colour.map_to_ycbcr([u16::MAX; 4]),
            from_ycbcr: colour.map_from_ycbcr(&colour),
        }
    }

    impl Maps {
        fn unpacked(&self, values: [u16; 4]) -> [u16; 4] {
            let mut rgba = [0; 4];
            self.to_rgb.apply(&values, &mut rgba);
            rgba
        }

        fn packed(&self, rgba: [u16; 4]) -> [u16; 4] {
            let mut values = [0; 4];
            self.from_rgb.apply(&rgba, &mut values);
            values
        }
    }

    /// A code value as the converter widens it.
    fn widen(code: u32, depth: u32) -> u16 {
        (code << (16 - depth) | code >> (2 * depth - 16)) as u16
    }

    #[test]
    fn pixels_are_mapped_as_by_the_portable_code() {
        let colour =
            colour(VideoFormat::Y444, VideoColorRange::Range16_235, VideoColorMatrix::Bt601);
        for pixels in [1, 4, 7, 1000] {
            let from: Vec<u16> = (0..pixels * 4).map(|n| (n * 40_503 % 65_536) as u16).collect();
            for affine in [colour.to_rgb, colour.from_rgb, colour.to_ycbcr, colour.from_ycbcr] {
                let (mut to, mut expected) = (vec![0; from.len()], vec![0; from.len()]);
                apply(&affine, &from, &mut to);
                apply_portable(&affine, &from, &mut expected);
                let error = to.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(error <= Some(1), "{error:?} of 65535");
            }
        }
    }

    #[test]
    fn black_white_and_primaries_are_those_of_the_standards() {
        let bt601 =
            colour(VideoFormat::Y444, VideoColorRange::Range16_235, VideoColorMatrix::Bt601);
        let rgb = |y, u, v| {
            bt601
                .unpacked([65535, widen(y, 8), widen(u, 8), widen(v, 8)])
                .map(|component| (u32::from(component) + 128) / 257)
        };
        assert_eq!(rgb(16, 128, 128), [0, 0, 0, 255]);
        assert_eq!(rgb(235, 128, 128), [255, 255, 255, 255]);
        assert_eq!(rgb(126, 128, 128), [128, 128, 128, 255]);
        // ITU-R BT.601: red is (81, 90, 240).
        let [r, g, b, _] = rgb(81, 90, 240);
        assert!(r >= 254 && g <= 1 && b <= 1, "{r} {g} {b}");
        let bt2020 =
            colour(VideoFormat::Y44410le, VideoColorRange::Range16_235, VideoColorMatrix::Bt2020);
        let white = bt2020.unpacked([0, widen(940, 10), widen(512, 10), widen(512, 10)]);
        assert_eq!(white, [65535; 4]);
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
                        let codes = colour.packed([rgb[0], rgb[1], rgb[2], 7]);
                        let codes = codes.map(|x| u32::from(x) >> (16 - depth));
                        let pixel = colour.unpacked(codes.map(|code| widen(code, depth)));
                        for (a, b) in pixel.iter().zip(rgb) {
                            // Half a code value in each component, through the matrix.
                            assert!(
                                a.abs_diff(b) <= (1.7 * 65536.0 / f64::from(1 << depth)) as u16
                            );
                        }
                        let again = colour.packed(pixel);
                        let clipped = pixel[..3].iter().any(|&x| matches!(x, 0 | u16::MAX));
                        let again = again.map(|x| u32::from(x) >> (16 - depth));
                        assert!(clipped || again[1..] == codes[1..], "{codes:?} became {again:?}");
                    }
                }
            }
        }
    }
}
