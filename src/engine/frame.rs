// SPDX-License-Identifier: MIT OR Apache-2.0
//! Defines the frame format between the element and the models, so that models handle a single format.

use super::Error;

/// A video frame: full-range R'G'B'A with 16 bits per component, in the transfer function and primaries of
/// its source. Alpha is not premultiplied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    pixels: Vec<u16>,
}

impl Frame {
    /// Components per pixel.
    pub const COMPONENTS: usize = 4;

    /// Creates a black, transparent frame.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(width: usize, height: usize) -> Result<Self, Error> {
        Ok(Self { width, height, pixels: zeroed((width, height), Self::COMPONENTS)? })
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
        bytemuck::cast_slice_mut(&mut self.pixels)
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
