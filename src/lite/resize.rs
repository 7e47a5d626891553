// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lanczos resize of a frame, in bands of rows on all cores.

use fast_image_resize::{
    FilterType, MulDiv, ResizeAlg, ResizeOptions, Resizer, images::TypedImage, pixels::U16x4,
};
use rayon::prelude::*;

use crate::engine::{Cancel, Error, Frame};

/// Output pixels per band: some milliseconds of work, so that the setup of the filter coefficients per band
/// does not matter. The bands, and so the result, do not depend on the number of cores.
const BAND_PIXELS: usize = 1 << 18;

/// Resizes `frame` to the size of `out` with a Lanczos filter (a = 3).
///
/// With `alpha`, the colours are premultiplied while they are filtered, so that transparent pixels do not bleed
/// into their neighbours.
///
/// # Errors
/// [`Error::Resize`] if the resizer fails; [`Error::Cancelled`].
pub(super) fn resize(
    mut frame: Frame,
    mut out: Frame,
    alpha: bool,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let (from, size) = ((frame.width(), frame.height()), (out.width(), out.height()));
    let components = frame.components();
    let failed = |why: String| Error::Resize { from, to: size, why };
    let row_len = |width: usize| width * Frame::COMPONENTS;
    if alpha {
        let band = band_rows(from.0) * row_len(from.0);
        frame.pixels_mut().par_chunks_mut(band).try_for_each(|band| {
            cancel.check()?;
            let rows = band.len() / row_len(from.0);
            let mut premultiplied = image(band, (from.0, rows)).map_err(failed)?;
            MulDiv::new()
                .multiply_alpha_inplace_typed(&mut premultiplied)
                .map_err(|e| failed(e.to_string()))
        })?;
    }
    let source = image(frame.pixels_mut(), from).map_err(failed)?;

    out.set_components(components);
    let (band_rows, row_len) = (band_rows(size.0), row_len(size.0));
    out.pixels_mut().par_chunks_mut(band_rows * row_len).enumerate().try_for_each(
        |(i, band)| {
            cancel.check()?;
            let rows = band.len() / row_len;
            let mut target = image(band, (size.0, rows)).map_err(failed)?;
            // The crop only sets the position: the filter reads pixels beyond it.
            let (top, height) = source_rows(i * band_rows, rows, from.1, size.1);
            let options = ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
                .use_alpha(false)
                .crop(0.0, top, from.0 as f64, height);
            // The untyped `resize` would compile the code for every pixel type, which takes minutes.
            Resizer::new()
                .resize_typed(&source, &mut target, &options)
                .map_err(|e| failed(e.to_string()))?;
            if alpha {
                MulDiv::new()
                    .divide_alpha_inplace_typed(&mut target)
                    .map_err(|e| failed(e.to_string()))?;
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// Rows per band of an image of `width`.
fn band_rows(width: usize) -> usize {
    BAND_PIXELS.div_ceil(width)
}

/// The part of the source, (top, height) in rows, that becomes `rows` rows from row `first` on, when a height of
/// `from` is resized to `to`. It ends within the source, also after rounding.
fn source_rows(first: usize, rows: usize, from: usize, to: usize) -> (f64, f64) {
    let position = |row: usize| row as f64 * from as f64 / to as f64;
    let top = position(first);
    (top, (position(first + rows) - top).min(from as f64 - top))
}

/// Wraps pixels [h, w, 4] in the resizer's image type.
fn image(
    pixels: &mut [u16],
    (width, height): (usize, usize),
) -> Result<TypedImage<'_, U16x4>, String> {
    let side = |side: usize| u32::try_from(side).map_err(|e| e.to_string());
    let bytes = bytemuck::cast_slice_mut(pixels);
    TypedImage::from_buffer(side(width)?, side(height)?, bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::scaled_side;

    /// Checks every band of a resize from a height of `from` to a width and height of `to`.
    fn check_bands(from: usize, to: (usize, usize)) {
        let band_rows = band_rows(to.0);
        let mut end = 0.0;
        for first in (0..to.1).step_by(band_rows) {
            let rows = band_rows.min(to.1 - first);
            let (top, height) = source_rows(first, rows, from, to.1);
            // The resizer demands this.
            let within = 0.0 <= top && height > 0.0 && top + height <= from as f64;
            let scale = height / rows as f64 * to.1 as f64 / from as f64;
            assert!(
                within && (top - end).abs() < 1e-9 && (scale - 1.0).abs() < 1e-9,
                "rows {first}+{rows} of {from} to {to:?}: {top} + {height}, after {end}"
            );
            end = top + height;
        }
        assert!((end - from as f64).abs() < 1e-9);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn bands_cover_the_source_and_do_not_exceed_it(
            width in 1..=8192usize,
            height in 1..=8192usize,
            hundredths in 100..=800u32,
        ) {
            let scaled = |side| scaled_side(side, f64::from(hundredths) / 100.0);
            check_bands(height, (scaled(width), scaled(height)));
            // A network upscales by an integer, then a resize follows.
            for factor in 2..=4 {
                check_bands(height, (width * factor, height * factor));
                check_bands(height * factor, (scaled(width), scaled(height)));
            }
        }
    }

    #[test]
    fn bands_of_standard_sizes_do_not_exceed_the_source() {
        // 720×480 became 2880×1920, then the last band ended beyond row 1920.
        for (width, height) in [(720, 480), (720, 576), (640, 360), (1280, 720), (1920, 1080)] {
            for hundredths in 100..=800 {
                let scaled = |side| scaled_side(side, f64::from(hundredths) / 100.0);
                for factor in 1..=4 {
                    check_bands(height * factor, (scaled(width), scaled(height)));
                }
            }
        }
    }

    fn test_frame(width: usize, height: usize) -> Frame {
        let mut frame = Frame::new(width, height).unwrap();
        for (i, value) in frame.pixels_mut().iter_mut().enumerate() {
            let (x, y, c) = (i / 4 % width, i / 4 / width, i % 4);
            *value = ((x * 523 + y * 911 + x * y * 7 + c * 13000) % 60000) as u16;
        }
        frame
    }

    #[test]
    fn bands_join_without_a_seam() {
        let mut frame = test_frame(300, 190);
        let size = (1800, 1140);
        let bands =
            resize(frame.clone(), Frame::new(size.0, size.1).unwrap(), false, &Cancel::default())
                .unwrap();
        let source = image(frame.pixels_mut(), (300, 190)).unwrap();
        let mut whole = TypedImage::<U16x4>::new(size.0 as u32, size.1 as u32);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3))
            .use_alpha(false);
        Resizer::new().resize_typed(&source, &mut whole, &options).unwrap();
        let whole = whole.pixels().iter().flat_map(|pixel| pixel.0);
        let error = bands.pixels().iter().zip(whole).map(|(a, b)| a.abs_diff(b)).max();
        assert!(error <= Some(1), "{error:?} of 65535");
    }

    #[test]
    fn the_filter_is_lanczos_3() {
        // The middle row of an impulse, upscaled by 2, samples the filter at i/2 + 1/4.
        let mut frame = Frame::new(31, 31).unwrap();
        let at = (15 * 31 + 15) * 4;
        frame.pixels_mut()[at..at + 4].fill(u16::MAX);
        let out = resize(frame, Frame::new(62, 62).unwrap(), false, &Cancel::default()).unwrap();
        let sinc = |x: f64| {
            if x == 0.0 {
                1.0
            } else {
                (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI)
            }
        };
        let lanczos = |x: f64| {
            if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 }
        };
        let weight = |i: usize| {
            let position = (i as f64 + 0.5) / 2.0 - 0.5;
            let sum: f64 = (0..31).map(|j| lanczos(position - f64::from(j))).sum();
            lanczos(position - 15.0) / sum
        };
        for x in 20..42 {
            let expected = (65535.0 * weight(x) * weight(31)).max(0.0);
            let got = f64::from(out.pixels()[(31 * 62 + x) * 4]);
            assert!((got - expected).abs() < 8.0, "at {x}: {got}, not {expected}");
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
        let out = resize(frame, Frame::new(16, 16).unwrap(), true, &Cancel::default()).unwrap();
        for pixel in out.pixels().chunks_exact(4).filter(|pixel| pixel[3] > 2000) {
            // An alpha that overshoots is clamped, which makes colours brighter but never darker.
            let (red, blue) = (f64::from(pixel[0]), f64::from(pixel[2]));
            assert!((39_700.0..46_000.0).contains(&red), "{pixel:?}");
            assert!((red / blue - 2.0).abs() < 0.01, "{pixel:?}");
        }
    }
}
