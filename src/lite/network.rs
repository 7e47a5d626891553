// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shapes of the networks: what training makes and the enhancer runs.

/// A chain of 3×3 convolutions: see [`Chain`](crate::ops::Chain).
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Where its tensors are found: layer n has `name.n.weight` and `name.n.bias`.
    pub name: &'static str,
    /// Channels that go in, go from layer to layer, and come out.
    pub widths: &'static [usize],
}

/// Adds what a Lanczos resize by a whole factor has lost.
///
/// It sees squares of `fold`×`fold` pixels as channels, row by row, and gives the squares of
/// `fold·factor` pixels that belong to them.
#[derive(Debug, Clone, Copy)]
pub struct Sharpener {
    /// How much longer the sides become.
    pub factor: usize,
    /// Pixels of the input side by side that make one of the network's.
    pub fold: usize,
    /// The network.
    pub network: Network,
}

/// For each factor one of its own, the smallest first.
pub const SHARPENERS: [Sharpener; 3] = [
    Sharpener { factor: 2, fold: 2, network: Network { name: "x2", widths: &[4, 32, 32, 16] } },
    Sharpener { factor: 3, fold: 1, network: Network { name: "x3", widths: &[1, 32, 32, 9] } },
    Sharpener { factor: 4, fold: 1, network: Network { name: "x4", widths: &[1, 32, 32, 32, 16] } },
];

/// Improves the flow of a level: see [`flow`](super::flow).
#[derive(Debug, Clone, Copy)]
pub struct Matcher {
    /// Flows are tried that differ by up to so many pixels in each direction.
    pub reach: usize,
    /// The network. It sees what [`Level::see`](super::flow::Level::see) writes, then the state of the
    /// level before, and gives a change of the flow (x, y) and its own state.
    pub network: Network,
}

impl Matcher {
    /// Flows that are tried for a pixel.
    pub const fn changes(&self) -> usize {
        (2 * self.reach + 1) * (2 * self.reach + 1)
    }

    /// Numbers seen at a pixel, without the state.
    pub const fn seen(&self) -> usize {
        self.changes() + 4
    }
}

/// For all levels but the finest.
pub const COARSE: Matcher =
    Matcher { reach: 2, network: Network { name: "coarse", widths: &[43, 32, 32, 16] } };

/// For the finest, half as large as the picture.
pub const FINE: Matcher =
    Matcher { reach: 1, network: Network { name: "fine", widths: &[27, 16, 16, 16] } };
