// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the frame format between the element and the models, so that models handle a single format.

use std::sync::Arc;

use super::Error;

/// The meaning of the first three components of a frame, in the transfer function and primaries of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Components {
    /// R', G' and B', full range.
    Rgb,
    /// Y', Cb and Cr: the code values of the source, scaled so that its largest is 65535. They may exceed the nominal
    /// range and the colours that R'G'B' can show.
    Ycbcr {
        /// Y' of black.
        black: u16,
        /// Y' of the nominal peak.
        white: u16,
        /// Cb and Cr of grey.
        neutral: u16,
    },
}

impl Components {
    /// Returns the weights of the components in the luma, and a constant to add: black is 0, the nominal peak 1.
    pub(crate) fn luma(self) -> ([f32; 3], f32) {
        /// Of R', G' and B' (ITU-R BT.709).
        const COEFFICIENTS: [f32; 3] = [0.2126, 0.7152, 0.0722];
        match self {
            Self::Rgb => (COEFFICIENTS.map(|coefficient| coefficient / 65535.0), 0.0),
            Self::Ycbcr { black, white, .. } => {
                let scale = 1.0 / (f32::from(white) - f32::from(black));
                ([scale, 0.0, 0.0], -f32::from(black) * scale)
            }
        }
    }
}

/// A video frame with 16 bits per component: three [`Components`], and alpha that is not premultiplied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    pixels: Vec<u16>,
    components: Components,
    source: Option<Arc<Vec<u8>>>,
}

impl Frame {
    /// Components per pixel.
    pub const COMPONENTS: usize = 4;

    /// Creates a black, transparent R'G'B' frame.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(width: usize, height: usize) -> Result<Self, Error> {
        let pixels = zeroed((width, height), Self::COMPONENTS)?;
        Ok(Self { width, height, pixels, components: Components::Rgb, source: None })
    }

    /// Returns the meaning of the components.
    pub fn components(&self) -> Components {
        self.components
    }

    /// Sets the meaning of the components.
    pub fn set_components(&mut self, components: Components) {
        self.components = components;
    }

    /// Returns the bytes that the pixels were converted from, if they are known and the pixels have not changed.
    pub fn source(&self) -> Option<&Arc<Vec<u8>>> {
        self.source.as_ref()
    }

    /// Sets the bytes that the pixels were converted from, so that the frame can be written without a loss.
    pub fn set_source(&mut self, source: Arc<Vec<u8>>) {
        self.source = Some(source);
    }

    /// Returns the width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Returns the height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Returns the pixels, [h, w, 4] without row padding.
    pub fn pixels(&self) -> &[u16] {
        &self.pixels
    }

    /// Returns the pixels, [h, w, 4], for writing.
    pub fn pixels_mut(&mut self) -> &mut [u16] {
        self.source = None;
        &mut self.pixels
    }
}

/// Allocates zeros for `count` values per pixel of a frame of (width, height).
///
/// # Errors
/// [`Error::OutOfMemory`], where `vec!` would abort the process.
pub(crate) fn zeroed<T: bytemuck::Zeroable>(
    (width, height): (usize, usize),
    count: usize,
) -> Result<Vec<T>, Error> {
    let length = width.checked_mul(height).and_then(|n| n.checked_mul(count));
    length.and_then(|length| bytemuck::try_zeroed_vec(length).ok()).ok_or_else(|| {
        // In floating point, which does not overflow.
        let bytes = width as f64 * height as f64 * (count * size_of::<T>()) as f64;
        Error::out_of_memory((width, height), bytes)
    })
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pixels)
    }
}

impl AsMut<[u8]> for Frame {
    fn as_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self.pixels_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_larger_than_memory_is_an_error_that_suggests_a_smaller_scale() {
        let error = Frame::new(1 << 31, 1 << 31).unwrap_err();
        let text = error.to_string();
        let start = "cannot allocate a frame of 2147483648×2147483648 pixels (34359738368.0 GiB)";
        assert!(
            text.starts_with(start) && text.contains("use a smaller up-scale or target-height"),
            "{text}"
        );
        assert!(Frame::new(usize::MAX, 2).is_err());
    }
}
