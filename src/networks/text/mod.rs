// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encodes prompts with OpenCLIP's text transformer; the denoiser attends to the resulting tokens.

mod tokenizer;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

pub use tokenizer::{CONTEXT, Tokenizer, Tokens};

use super::{Check, layers};
use crate::ops::{LayerNorm, Linear, attention, gelu};

/// Size of CLIP's vocabulary.
const VOCABULARY: usize = 49_408;

/// Dimensions of a text encoder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of a token.
    pub width: usize,
    /// Attention heads of each block.
    pub heads: usize,
    /// Blocks in the checkpoint. The last one is not used.
    pub layers: usize,
}

impl Config {
    /// The published model: ViT-H-14.
    pub fn full() -> Self {
        Self { width: 1024, heads: 16, layers: 24 }
    }
}

/// A pre-norm transformer block: causal self-attention and a two-layer feed-forward network, each
/// with a residual connection.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    projections: Linear,
    out: Linear,
    heads: usize,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(vb: VarBuilder, width: usize, heads: usize) -> Result<Self> {
        let attention = vb.pp("attn");
        let weight = attention.get((3 * width, width), "in_proj_weight")?;
        let bias = attention.get(3 * width, "in_proj_bias")?;
        Ok(Self {
            norm1: layers::layer_norm(vb.pp("ln_1"), width)?,
            projections: Linear::new(weight, Some(bias))?,
            out: layers::linear(attention.pp("out_proj"), width, width)?,
            heads,
            norm2: layers::layer_norm(vb.pp("ln_2"), width)?,
            fc1: layers::linear(vb.pp("mlp").pp("c_fc"), width, 4 * width)?,
            fc2: layers::linear(vb.pp("mlp").pp("c_proj"), 4 * width, width)?,
        })
    }

    /// x is [b, t, width], and so is the result.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = self.projections.forward(&[&self.norm1.forward(x)?], None)?;
        let width = x.dim(D::Minus1)?;
        let part = |n: usize| qkv.narrow(D::Minus1, n * width, width)?.contiguous();
        let attended = attention(&part(0)?, &part(1)?, &part(2)?, self.heads, true)?;
        let x = self.out.forward(&[&attended], Some(x))?;
        let hidden = gelu(&self.fc1.forward(&[&self.norm2.forward(&x)?], None)?)?;
        self.fc2.forward(&[&hidden], Some(&x))
    }
}

/// The text encoder up to the penultimate block, followed by the final layer norm.
#[derive(Debug)]
pub struct TextEncoder {
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    dtype: DType,
    device: Device,
}

impl TextEncoder {
    /// Loads the encoder from an OpenCLIP checkpoint. The vision tower, the last block and the
    /// text projection are not used.
    ///
    /// # Errors
    /// If a tensor is missing or has an unexpected shape.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        let width = config.width;
        let blocks = (0..config.layers.saturating_sub(1))
            .map(|n| Block::new(vb.pp("transformer").pp("resblocks").pp(n), width, config.heads));
        Ok(Self {
            tokens: vb.pp("token_embedding").get((VOCABULARY, width), "weight")?,
            positions: vb.get((CONTEXT, width), "positional_embedding")?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: layers::layer_norm(vb.pp("ln_final"), width)?,
            dtype: vb.dtype(),
            device: vb.device().clone(),
        })
    }

    /// Encodes prompts to [prompts, 77, width], f32.
    ///
    /// # Errors
    /// If the device runs out of memory, or if `check` fails.
    pub fn forward(&self, prompts: &[Tokens], check: Check) -> Result<Tensor> {
        let ids = Tensor::new(prompts.concat(), &self.device)?;
        let x = self.tokens.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        let x = x.reshape((prompts.len(), CONTEXT, ()))?;
        let mut x = x.broadcast_add(&self.positions.to_dtype(DType::F32)?)?.to_dtype(self.dtype)?;
        for block in &self.blocks {
            check()?;
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)?.to_dtype(DType::F32)
    }
}
