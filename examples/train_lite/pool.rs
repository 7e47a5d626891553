// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pool of training material that a thread renews in the background.

use std::sync::{Arc, mpsc};

use candle_core::Result;

use super::{random::Random, scene::Canvas};

/// Number of canvases that items are made from at a time.
const CANVASES: usize = 16;
/// An item in so many replaces the oldest canvas.
const ITEMS_PER_CANVAS: usize = 12;

/// A pool of items.
pub struct Pool<T> {
    items: Vec<T>,
    /// Index of the item to replace next.
    oldest: usize,
    source: mpsc::Receiver<Result<T>>,
}

impl<T: Send + 'static> Pool<T> {
    /// A pool of `count` items that `make` makes. The sequence of items depends on the seed only.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn new(
        seed: u64,
        count: usize,
        make: impl Fn(&[Arc<Canvas>], &mut Random) -> Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (sink, source) = mpsc::sync_channel(16);
        std::thread::spawn(move || {
            let mut random = Random::new(seed);
            let mut canvases: Vec<_> =
                (0..CANVASES).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
            for n in 0.. {
                if n % ITEMS_PER_CANVAS == ITEMS_PER_CANVAS - 1 {
                    let oldest = n / ITEMS_PER_CANVAS % CANVASES;
                    canvases[oldest] = Arc::new(Canvas::new(random.seed()));
                }
                // Fails when the pool is dropped.
                if sink.send(make(&canvases, &mut random)).is_err() {
                    break;
                }
            }
        });
        let items = source.iter().take(count).collect::<Result<_>>()?;
        Ok(Self { items, oldest: 0, source })
    }

    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Replaces the oldest item with a new one.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn renew(&mut self) -> Result<()> {
        if let Ok(item) = self.source.recv() {
            self.items[self.oldest] = item?;
            self.oldest = (self.oldest + 1) % self.items.len();
        }
        Ok(())
    }
}
