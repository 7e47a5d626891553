// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shapes of the networks. `examples/train_lite` trains them; the enhancer runs them.

use super::statistics::Statistics;

/// The shape of a chain of 3×3 convolutions: see [`ConvChain`](crate::ops::ConvChain).
#[derive(Debug, Clone, Copy)]
pub struct NetworkShape {
    /// Prefix of the tensor names: layer n has `name.n.weight` and `name.n.bias`.
    pub name: &'static str,
    /// Channels of the input, of each hidden layer, and of the output.
    pub channels: &'static [usize],
}

/// A super-resolution network for an integer factor. It is trained to predict the luma residual, the original minus its
/// Lanczos resize. The embedded weights predict a part of it: `RESIDUAL_SCALE` in `examples/train_lite`.
///
/// The input is the luma with `fold`×`fold` pixels folded into channels (space to depth) and, in one channel each,
/// the [`Statistics`] of the frame: [h/fold, w/fold, fold² + 2]. The output has (fold·factor)² channels, unfolded by depth to
/// space.
#[derive(Debug, Clone, Copy)]
pub struct Upscaler {
    /// Scale factor of each side.
    pub factor: usize,
    /// Block size of the space-to-depth transform of the input; 1: none.
    pub fold: usize,
    /// The network.
    pub network: NetworkShape,
}

impl Upscaler {
    /// Channels of the input.
    pub const fn input_channels(&self) -> usize {
        self.fold * self.fold + 2
    }

    /// The values of the input channels for the statistics of a frame, scaled to −1..=1.
    pub fn statistics_input(Statistics { noise, sharpness, .. }: Statistics) -> [f32; 2] {
        [(32.0 * noise).min(1.0), (4.0 * (sharpness - 0.5)).clamp(-1.0, 1.0)]
    }

    /// The factor of the predicted residual: 1 without blocks, 0 where it would sharpen the borders of blocks.
    ///
    /// Films without a codec have a blockiness of up to 1.06. The factor falls slowly, because the blockiness of a
    /// video varies from frame to frame.
    pub fn residual_scale(Statistics { blockiness, .. }: Statistics) -> f32 {
        (1.0 - 3.0 * (blockiness - 1.05)).clamp(0.0, 1.0)
    }
}

/// One network per factor, in ascending order of the factor.
pub const UPSCALERS: [Upscaler; 3] = [
    Upscaler {
        factor: 2,
        fold: 2,
        network: NetworkShape { name: "x2", channels: &[6, 32, 32, 16] },
    },
    Upscaler {
        factor: 3,
        fold: 1,
        network: NetworkShape { name: "x3", channels: &[3, 32, 32, 9] },
    },
    Upscaler {
        factor: 4,
        fold: 1,
        network: NetworkShape { name: "x4", channels: &[3, 32, 32, 32, 16] },
    },
];

/// Refines the optical flow of a pyramid level: see [`flow`](super::flow).
#[derive(Debug, Clone, Copy)]
pub struct FlowRefiner {
    /// Radius of the search window around the flow, in pixels of the level.
    pub search_radius: usize,
    /// The network. Its input is [`FlowLevel::write_features`](super::flow::FlowLevel::write_features), then
    /// the state of the coarser level; its output is a flow residual (x, y), then the new state.
    pub network: NetworkShape,
}

impl FlowRefiner {
    /// Number of flow candidates of a pixel: the size of the search window.
    pub const fn candidates(&self) -> usize {
        (2 * self.search_radius + 1) * (2 * self.search_radius + 1)
    }

    /// Number of input channels without the state.
    pub const fn features(&self) -> usize {
        self.candidates() + 4
    }
}

/// The refiner of all levels but the finest.
pub const COARSE: FlowRefiner = FlowRefiner {
    search_radius: 2,
    network: NetworkShape { name: "coarse", channels: &[43, 32, 32, 16] },
};

/// The refiner of the finest level, which has half the size of the frame.
pub const FINE: FlowRefiner = FlowRefiner {
    search_radius: 1,
    network: NetworkShape { name: "fine", channels: &[27, 16, 16, 16] },
};
