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
        let out_of_memory = |bytes| Error::OutOfMemory { width, height, bytes };
        let bytes = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(Self::COMPONENTS * size_of::<u16>()))
            .ok_or_else(|| out_of_memory(usize::MAX))?;
        let pixels = bytemuck::allocation::try_zeroed_slice_box(bytes / size_of::<u16>())
            .map_err(|()| out_of_memory(bytes))?;
        Ok(Self { width, height, pixels: pixels.into_vec() })
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
        assert!(error.to_string().contains("use a smaller up-scale"), "{error}");
        assert!(Frame::new(usize::MAX, 2).is_err());
    }
}
