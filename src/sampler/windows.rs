// SPDX-License-Identifier: MIT OR Apache-2.0
//! Windows that overlap, over something whose end may not be known yet.

use std::{collections::VecDeque, ops::Range};

use candle_core::{Result, Tensor};

/// The most frames of an non_final_windows window, less one, and of an overlap.
const WINDOW: usize = 31;
const OVERLAP: usize = 15;

/// Window n begins at n · [`stride`](Self::stride); the first that can take all that is left with at
/// most [`longest`](Self::longest) is the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Of a window that is not the last.
    pub length: usize,
    /// What it shares with the one after it.
    pub overlap: usize,
}

impl Windows {
    /// Those that a clip with `interpolated` frames between two key frames is denoised in: each begins with a
    /// key frame.
    pub fn of_clip(interpolated: usize) -> Self {
        let whole = |most: usize| most / (interpolated + 1) * (interpolated + 1) + 1;
        Self { length: whole(WINDOW), overlap: whole(OVERLAP) }
    }

    /// From the beginning of a window to that of the next.
    pub fn stride(&self) -> usize {
        self.length - self.overlap
    }

    /// The most that is one window, R: 1.33 · length, ties to even.
    pub fn longest(&self) -> usize {
        (1.33 * self.length as f64).round_ties_even() as usize
    }

    /// How many windows are sure not to be the last, when at least `total` items come.
    pub fn non_final_windows(&self, total: usize) -> usize {
        total.saturating_sub(self.longest()).div_ceil(self.stride())
    }

    /// All windows over `total` items.
    pub fn all(&self, total: usize) -> Vec<Range<usize>> {
        let non_final_windows = self.non_final_windows(total);
        let window = |n: usize| {
            let first = n * self.stride();
            first..if n < non_final_windows { first + self.length } else { total }
        };
        (0..non_final_windows + usize::from(total > 0)).map(window).collect()
    }

    /// The number of the window that item `index` is final with: that before the first window that
    /// would change it.
    pub(super) fn final_with(&self, index: usize) -> usize {
        index.saturating_sub(1) / self.stride()
    }
}

/// Fades `this` in from `previous` over their common items: item t of n becomes
/// previous·(1 − t/n) + this·(t/n).
///
/// # Errors
/// On items of different shapes.
pub fn cross_fade(previous: &[Tensor], this: &mut [Tensor], overlap: usize) -> Result<()> {
    let overlap = overlap.min(previous.len()).min(this.len());
    let previous = &previous[previous.len() - overlap..];
    for (t, (previous, this)) in previous.iter().zip(this).enumerate() {
        let share = t as f64 / overlap as f64;
        *this = match t {
            0 => previous.clone(),
            _ => ((previous * (1.0 - share))? + (&*this * share)?)?,
        };
    }
    Ok(())
}

/// Items that come one after the other and are looked at in windows; what each window gives for an item
/// is faded in from what the one before has given.
///
/// After window n, the results of all items up to the first of window n + 1 are final: that first one
/// has weight 0 there. It stays, since window n + 1 looks at it.
#[derive(Debug)]
pub(super) struct Sliding<T> {
    windows: Windows,
    /// The next window.
    number: usize,
    /// From the first of the next window on.
    items: VecDeque<T>,
    /// Results of the window before, from that first item on; empty before the first window.
    waiting: Vec<Tensor>,
}

impl<T> Sliding<T> {
    pub(super) fn new(windows: Windows) -> Self {
        Self { windows, number: 0, items: VecDeque::new(), waiting: Vec::new() }
    }

    /// The next window.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// The number of the first item that is held.
    pub(super) fn first(&self) -> usize {
        self.number * self.windows.stride()
    }

    pub(super) fn items(&self) -> &VecDeque<T> {
        &self.items
    }

    pub(super) fn waiting(&self) -> &[Tensor] {
        &self.waiting
    }

    pub(super) fn extend(&mut self, items: impl IntoIterator<Item = T>) {
        self.items.extend(items);
    }

    /// The items that the next window looks at, if they are there. `non_final_windows` windows are sure not to be
    /// the last; with `ended`, all items are there.
    pub(super) fn window(&self, non_final_windows: usize, ended: bool) -> Option<Range<usize>> {
        let length = match self.number < non_final_windows {
            true => self.windows.length,
            false if ended => self.items.len(),
            false => return None,
        };
        (length > 0 && length <= self.items.len()).then_some(0..length)
    }

    /// Takes what the next window has given for its items, and hands over each item whose result is
    /// final, with the result, in order.
    pub(super) fn close(
        &mut self,
        mut results: Vec<Tensor>,
        last: bool,
        mut each: impl FnMut(&mut T, Tensor) -> Result<()>,
    ) -> Result<()> {
        cross_fade(&self.waiting, &mut results, self.windows.overlap)?;
        let stride = self.windows.stride();
        let count = if last { results.len() } else { stride + 1 };
        self.waiting = if last { Vec::new() } else { results[stride..].to_vec() };
        results.truncate(count);
        let done = usize::from(self.number > 0);
        for (item, result) in self.items.iter_mut().zip(results).skip(done) {
            each(item, result)?;
        }
        self.items.drain(..if last { count } else { stride });
        self.number += 1;
        Ok(())
    }
}
