// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dimensions of the UNet, as in the file config.json of a model folder.

use serde::{Deserialize, Serialize};

/// Dimensions of a UNet and its ControlNet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the latents.
    pub latents: usize,
    /// Channels of the first level.
    pub dim: usize,
    /// Channels of an attention head.
    pub head_dim: usize,
    /// Heads of the first temporal attention.
    pub num_heads: usize,
    /// Channels of the text encoder's tokens.
    pub context_dim: usize,
    /// Residual blocks of each encoder level. A decoder level has one more.
    pub num_res_blocks: usize,
    /// Channels of each level, in multiples of `dim`. All levels but the last have attention.
    pub dim_mult: Vec<usize>,
}

impl Config {
    /// The published model.
    pub fn full() -> Self {
        Self {
            latents: 4,
            dim: 320,
            head_dim: 64,
            num_heads: 8,
            context_dim: 1024,
            num_res_blocks: 2,
            dim_mult: vec![1, 2, 4, 4],
        }
    }

    /// Whether a level has attention.
    pub(super) fn attends(&self, level: usize) -> bool {
        level + 1 < self.dim_mult.len()
    }
}
