// SPDX-License-Identifier: MIT OR Apache-2.0
//! Material for lessons, made by a thread of its own and renewed little by little.

use std::sync::{Arc, mpsc};

use super::{random::Random, scene::Canvas};

/// Canvases to choose from at a time.
const CANVASES: usize = 16;
/// Items that are made between two new canvases.
const RENEWAL: usize = 12;

/// Things to cut lessons from.
pub struct Pool<T> {
    items: Vec<T>,
    oldest: usize,
    source: mpsc::Receiver<T>,
}

impl<T: Send + 'static> Pool<T> {
    /// Holds `count` things that `make` makes. Which these are depends on nothing but the seed.
    pub fn new(
        seed: u64,
        count: usize,
        make: impl Fn(&[Arc<Canvas>], &mut Random) -> T + Send + 'static,
    ) -> Self {
        let (sink, source) = mpsc::sync_channel(16);
        std::thread::spawn(move || {
            let mut random = Random::new(seed);
            let mut canvases: Vec<_> =
                (0..CANVASES).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
            for n in 0.. {
                if n % RENEWAL == RENEWAL - 1 {
                    let oldest = n / RENEWAL % CANVASES;
                    canvases[oldest] = Arc::new(Canvas::new(random.seed()));
                }
                // Nobody waits for more: training is over.
                if sink.send(make(&canvases, &mut random)).is_err() {
                    break;
                }
            }
        });
        let items = source.iter().take(count).collect();
        Self { items, oldest: 0, source }
    }

    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Puts something new in the place of the oldest.
    pub fn renew(&mut self) {
        if let Ok(item) = self.source.recv() {
            self.items[self.oldest] = item;
            self.oldest = (self.oldest + 1) % self.items.len();
        }
    }
}
