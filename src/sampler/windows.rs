// SPDX-License-Identifier: MIT OR Apache-2.0
//! Splits a sequence of unknown length into overlapping windows.
//!
//! [`Sliding`] also cross-fades their results, for the stages (windows of a clip's frames) and for
//! [`Decode`](super::Decode) (windows of 5 frames). The tiles of the autoencoder use only [`Windows`].

use std::{collections::VecDeque, ops::Range};

use candle_core::{Result, Tensor};

/// The most frames of a non-final window, minus one.
const WINDOW: usize = 31;
/// The most frames of an overlap, minus one.
const OVERLAP: usize = 15;

/// Length and overlap of windows over a sequence of items.
///
/// Window n begins at item n · [`stride`](Self::stride). The final window is the first one that reaches
/// the end of the sequence with at most [`longest`](Self::longest) items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Items of a non-final window.
    pub length: usize,
    /// Items that a window shares with the next one.
    pub overlap: usize,
}

impl Windows {
    /// Returns the windows in which a clip is denoised, with `interpolated` frames between two input
    /// frames. Each window begins with an input frame.
    pub fn of_clip(interpolated: usize) -> Self {
        let round_down = |most: usize| most / (interpolated + 1) * (interpolated + 1) + 1;
        Self { length: round_down(WINDOW), overlap: round_down(OVERLAP) }
    }

    /// Items from the start of a window to the start of the next.
    pub fn stride(&self) -> usize {
        self.length - self.overlap
    }

    /// The most items of the final window: 1.33 · length, rounded with ties to even. Source: the
    /// reference implementation.
    pub fn longest(&self) -> usize {
        (1.33 * self.length as f64).round_ties_even() as usize
    }

    /// Returns the number of windows that cannot be the final one in a sequence of at least `total` items.
    pub fn non_final_windows(&self, total: usize) -> usize {
        total.saturating_sub(self.longest()).div_ceil(self.stride())
    }

    /// Returns all windows over `total` items.
    pub fn all(&self, total: usize) -> Vec<Range<usize>> {
        let non_final_windows = self.non_final_windows(total);
        let window = |n: usize| {
            let first = n * self.stride();
            first..if n < non_final_windows { first + self.length } else { total }
        };
        (0..non_final_windows + usize::from(total > 0)).map(window).collect()
    }

    /// Returns the window after which the result of item `index` is final: no later window changes it.
    pub(super) fn final_with(&self, index: usize) -> usize {
        index.saturating_sub(1) / self.stride()
    }
}

/// Cross-fades two windows over their n common items: item t of `this` becomes
/// previous·(1 − t/n) + this·(t/n).
///
/// `previous` ends with the common items and `this` begins with them. `overlap` is the largest n.
///
/// # Errors
/// Items of different shapes.
pub fn cross_fade(previous: &[Tensor], this: &mut [Tensor], overlap: usize) -> Result<()> {
    let overlap = overlap.min(previous.len()).min(this.len());
    let previous = &previous[previous.len() - overlap..];
    for (t, (previous, this)) in previous.iter().zip(this).enumerate() {
        let weight = t as f64 / overlap as f64;
        *this = match t {
            0 => previous.clone(),
            _ => ((previous * (1.0 - weight))? + (&*this * weight)?)?,
        };
    }
    Ok(())
}

/// A queue of items that is processed in windows; results in the overlap of two windows are cross-faded.
///
/// After window n, the results of all items up to and including the first item of window n + 1 are final,
/// because window n + 1 has weight 0 there. The queue still keeps that first item: window n + 1 needs it
/// as input.
#[derive(Debug)]
pub(super) struct Sliding<T> {
    windows: Windows,
    /// Index of the next window.
    number: usize,
    /// Items from the first item of the next window on.
    items: VecDeque<T>,
    /// Results of the previous window for the items of the overlap. Empty before the first window.
    overlap_results: Vec<Tensor>,
}

impl<T> Sliding<T> {
    pub(super) fn new(windows: Windows) -> Self {
        Self { windows, number: 0, items: VecDeque::new(), overlap_results: Vec::new() }
    }

    /// Index of the next window.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Index in the sequence of the first queued item.
    pub(super) fn first(&self) -> usize {
        self.number * self.windows.stride()
    }

    pub(super) fn items(&self) -> &VecDeque<T> {
        &self.items
    }

    pub(super) fn overlap_results(&self) -> &[Tensor] {
        &self.overlap_results
    }

    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = T>) {
        self.items.extend(items);
    }

    /// Returns the range of queued items that form the next window, or `None` until all of them are
    /// queued. The first `non_final_windows` windows are not the final one; `ended` means that the queue
    /// holds the last item.
    pub(super) fn window(&self, non_final_windows: usize, ended: bool) -> Option<Range<usize>> {
        let length = match self.number < non_final_windows {
            true => self.windows.length,
            false if ended => self.items.len(),
            false => return None,
        };
        (length > 0 && length <= self.items.len()).then_some(0..length)
    }

    /// Takes the results of the next window and cross-fades them with those of the previous window. Calls
    /// `each` in order with every item whose result is now final. Then moves on to the following window.
    pub(super) fn finish_window(
        &mut self,
        mut results: Vec<Tensor>,
        last: bool,
        mut each: impl FnMut(&mut T, Tensor) -> Result<()>,
    ) -> Result<()> {
        cross_fade(&self.overlap_results, &mut results, self.windows.overlap)?;
        let stride = self.windows.stride();
        let count = if last { results.len() } else { stride + 1 };
        self.overlap_results = if last { Vec::new() } else { results[stride..].to_vec() };
        results.truncate(count);
        // The previous window has already delivered its first overlapping item, see the struct's doc.
        let done = usize::from(self.number > 0);
        for (item, result) in self.items.iter_mut().zip(results).skip(done) {
            each(item, result)?;
        }
        self.items.drain(..if last { count } else { stride });
        self.number += 1;
        Ok(())
    }
}
