// SPDX-License-Identifier: MIT OR Apache-2.0
//! A picture in memory.

use super::Error;

/// One picture: full-range R'G'B'A, 16 bits a component, in the transfer function and primaries of
/// its source, alpha not multiplied in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    pixels: Vec<u16>,
}

impl Frame {
    /// Components of a pixel.
    pub const COMPONENTS: usize = 4;

    /// A black, transparent frame.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when there is no memory for it.
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

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels as [h, w, 4], row by row without padding.
    pub fn pixels(&self) -> &[u16] {
        &self.pixels
    }

    /// The pixels as [h, w, 4], to write.
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
    fn a_frame_that_no_machine_can_hold_is_an_error_that_says_what_to_do() {
        let error = Frame::new(1 << 31, 1 << 31).unwrap_err();
        assert!(error.to_string().contains("use a smaller up-scale"), "{error}");
        assert!(Frame::new(usize::MAX, 2).is_err());
    }
}
