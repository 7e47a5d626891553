// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much a network works on at a time, chosen by the memory of its device.

use std::iter::successors;

/// Bytes of a device that are left free when slices are chosen: for kernels that are loaded later, for the
/// workspace of cuBLAS (32 MiB on Hopper), and for what the gaps between tensors take.
pub const RESERVE: usize = 256 << 20;

/// How much a network works on at a time: slices of frames with at most so many pixels together, if they
/// have more than one frame. The result is the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slices {
    pixels: usize,
}

impl Default for Slices {
    /// What a CPU works in.
    fn default() -> Self {
        Self { pixels: 1 << 15 }
    }
}

impl Slices {
    /// Three frames of the published example's latents, 170×248: as attention takes 192 queries a block, in
    /// 5 heads, these are 25 full waves of blocks on a GPU of 132 multiprocessors.
    pub const LARGEST: Self = Self { pixels: 1 << 17 };
    /// Smaller ones save next to nothing, and leave most of a device idle.
    pub const SMALLEST: Self = Self { pixels: 1 << 11 };

    /// Of at most so many pixels, at least one.
    pub fn of_pixels(pixels: usize) -> Self {
        Self { pixels: pixels.max(1) }
    }

    /// The most pixels of a slice that has more than one frame.
    pub fn pixels(self) -> usize {
        self.pixels
    }

    /// Half as much at a time; `None` for the smallest.
    pub fn halved(self) -> Option<Self> {
        let half = Self { pixels: self.pixels / 2 };
        (half >= Self::SMALLEST).then_some(half)
    }

    /// Of frames with `times` as many channels as the largest frames have: slices larger than the default ones
    /// then have fewer pixels, for as many numbers keep a device as busy.
    pub fn of_width(self, times: usize) -> Self {
        let usual = Self::default().pixels;
        Self { pixels: (self.pixels / times.max(1)).max(self.pixels.min(usual)) }
    }

    /// What is left of an amount of work that the default slices leave whole; larger slices leave it whole
    /// as well. At least 1.
    pub fn share(self, whole: usize) -> usize {
        let usual = Self::default().pixels;
        (whole * self.pixels.min(usual) / usual).max(1)
    }

    /// The largest slices with which work takes at most `available` bytes, if any do; `peak` gives the bytes
    /// that it takes.
    pub fn largest(available: usize, peak: impl Fn(Self) -> usize) -> Option<Self> {
        successors(Some(Self::LARGEST), |slices| slices.halved())
            .find(|slices| peak(*slices) <= available)
    }
}

/// The memory that a network has and takes.
pub struct Budget<'a> {
    /// Bytes that its device can still give.
    pub available: usize,
    /// Bytes that the work takes at its peak, beyond the weights.
    pub peak: Box<dyn Fn(Slices) -> usize + 'a>,
}

impl Budget<'_> {
    /// The largest slices that fit when [`RESERVE`] and `others` bytes are left for other uses. If none do,
    /// the smallest: they may fit into the reserve.
    pub fn slices(&self, others: usize) -> Slices {
        let available = self.available.saturating_sub(RESERVE + others);
        Slices::largest(available, &self.peak).unwrap_or(Slices::SMALLEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_slices_that_fit_are_taken() {
        let pixels = |available| {
            let peak = |slices: Slices| 1000 + slices.pixels();
            let budget = Budget { available: RESERVE + available, peak: Box::new(peak) };
            budget.slices(10).pixels()
        };
        let least = 1010 + (1 << 17);
        assert_eq!(pixels(usize::MAX - RESERVE), 1 << 17);
        assert_eq!(pixels(least), 1 << 17);
        assert_eq!(pixels(least - 1), 1 << 16);
        assert_eq!(pixels(1010 + (1 << 11)), 1 << 11);
        // None fits: the smallest are tried.
        assert_eq!(pixels(0), 1 << 11);
        assert_eq!(Slices::largest(1009, |slices| 1000 + slices.pixels()), None);
    }

    #[test]
    fn halving_ends_with_the_smallest() {
        let all: Vec<_> = successors(Some(Slices::LARGEST), |slices| slices.halved()).collect();
        assert_eq!(all.len(), 7);
        assert_eq!(all.last(), Some(&Slices::SMALLEST));
        assert_eq!(all.iter().filter(|slices| **slices == Slices::default()).count(), 1);
    }

    #[test]
    fn wide_frames_make_large_slices_smaller() {
        let pixels = |pixels, times| Slices::of_pixels(pixels).of_width(times).pixels();
        assert_eq!(
            [1, 2, 4, 8].map(|times| pixels(1 << 17, times)),
            [1 << 17, 1 << 16, 1 << 15, 1 << 15]
        );
        assert_eq!(pixels(1 << 15, 4), 1 << 15);
        assert_eq!(pixels(1 << 12, 4), 1 << 12);
    }

    #[test]
    fn work_is_shared_down_from_the_default_slices() {
        assert_eq!(Slices::LARGEST.share(8192), 8192);
        assert_eq!(Slices::default().share(8192), 8192);
        assert_eq!(Slices::SMALLEST.share(8192), 512);
        assert_eq!(Slices::SMALLEST.share(1), 1);
    }
}
