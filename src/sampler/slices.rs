// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chooses how much a network processes at a time, so that an evaluation fits the memory of its device.

use std::iter::successors;

/// Device memory in bytes that stays free when slices are chosen: for kernels that are loaded later, the
/// workspace of cuBLAS (32 MiB on Hopper), and fragmentation.
pub const RESERVE: usize = 256 << 20;

/// The slice size of a network: it processes a window in slices of several frames that have at most this
/// many pixels together, or of one frame of any size. Results differ only by rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slices {
    pixels: usize,
}

impl Default for Slices {
    /// The slices of a CPU.
    fn default() -> Self {
        Self { pixels: 1 << 15 }
    }
}

impl Slices {
    /// The largest slices: three frames of 170×248 latents, the size of the published example. With 192
    /// queries per block and 5 heads, attention then fills 25 waves of blocks on 132 multiprocessors.
    pub const LARGEST: Self = Self { pixels: 1 << 17 };
    /// The smallest slices. Smaller ones save almost no memory and leave most of a device idle.
    pub const SMALLEST: Self = Self { pixels: 1 << 11 };

    /// Creates slices of at most `pixels` pixels; 0 counts as 1.
    pub fn of_pixels(pixels: usize) -> Self {
        Self { pixels: pixels.max(1) }
    }

    /// Returns the most pixels of a slice of more than one frame.
    pub fn pixels(self) -> usize {
        self.pixels
    }

    /// Returns slices of half the size, or `None` below [`SMALLEST`](Self::SMALLEST).
    pub fn halved(self) -> Option<Self> {
        let half = Self { pixels: self.pixels / 2 };
        (half >= Self::SMALLEST).then_some(half)
    }

    /// Returns the slices for frames with `times` as many channels as the frames of full resolution. Slices
    /// larger than the default get fewer pixels, since the same number of values keeps a device busy.
    pub fn of_width(self, times: usize) -> Self {
        let usual = Self::default().pixels;
        Self { pixels: (self.pixels / times.max(1)).max(self.pixels.min(usual)) }
    }

    /// Scales an amount of work down in proportion to slices below the default size. The default and
    /// larger slices return `work` unchanged. The result is at least 1.
    pub fn share(self, work: usize) -> usize {
        let usual = Self::default().pixels;
        (work * self.pixels.min(usual) / usual).max(1)
    }

    /// Returns the largest slices whose peak memory is at most `available` bytes, or `None`. `peak` returns
    /// the bytes for given slices.
    pub fn largest(available: usize, peak: impl Fn(Self) -> usize) -> Option<Self> {
        successors(Some(Self::LARGEST), |slices| slices.halved())
            .find(|slices| peak(*slices) <= available)
    }
}

/// The memory that is available to a network and the memory that it needs.
pub struct Budget<'a> {
    /// Bytes that can still be allocated on the device.
    pub available: usize,
    /// Peak memory in bytes, without the weights, for given slices.
    pub peak: Box<dyn Fn(Slices) -> usize + 'a>,
}

impl Budget<'_> {
    /// Returns the largest slices that fit when [`RESERVE`] and `others` bytes stay free. If none fit,
    /// returns the smallest ones, which may still fit into the reserve.
    pub fn slices(&self, others: usize) -> Slices {
        let available = self.available.saturating_sub(RESERVE + others);
        Slices::largest(available, &self.peak).unwrap_or(Slices::SMALLEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_chooses_the_largest_slices_that_fit() {
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
        // None fit: the smallest are chosen.
        assert_eq!(pixels(0), 1 << 11);
        assert_eq!(Slices::largest(1009, |slices| 1000 + slices.pixels()), None);
    }

    #[test]
    fn halving_ends_at_the_smallest_slices() {
        let all: Vec<_> = successors(Some(Slices::LARGEST), |slices| slices.halved()).collect();
        assert_eq!(all.len(), 7);
        assert_eq!(all.last(), Some(&Slices::SMALLEST));
        assert_eq!(all.iter().filter(|slices| **slices == Slices::default()).count(), 1);
    }

    #[test]
    fn more_channels_shrink_large_slices() {
        let pixels = |pixels, times| Slices::of_pixels(pixels).of_width(times).pixels();
        assert_eq!(
            [1, 2, 4, 8].map(|times| pixels(1 << 17, times)),
            [1 << 17, 1 << 16, 1 << 15, 1 << 15]
        );
        assert_eq!(pixels(1 << 15, 4), 1 << 15);
        assert_eq!(pixels(1 << 12, 4), 1 << 12);
    }

    #[test]
    fn share_scales_with_slices_below_the_default() {
        assert_eq!(Slices::LARGEST.share(8192), 8192);
        assert_eq!(Slices::default().share(8192), 8192);
        assert_eq!(Slices::SMALLEST.share(8192), 512);
        assert_eq!(Slices::SMALLEST.share(1), 1);
    }
}
