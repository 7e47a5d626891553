// SPDX-License-Identifier: MIT OR Apache-2.0
//! Transformers of the UNet: self-attention within a frame, cross-attention to the prompt, and
//! attention along the frames.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    networks::{frame_batch::FrameBatch, layers},
    ops::{
        Affine, GroupNorm, LayerNorm, Linear, Moments, attention, attention_along_first,
        gather_pixels, geglu, scatter_pixels,
    },
};

const EPSILON: f64 = 1e-6;

/// Number of tokens of `width` channels that temporal attention processes at a time. In f32, as on
/// CPUs, the activations fit the cache; in a 16-bit type, as on GPUs, they suffice to occupy the
/// device.
pub(super) fn tokens_at_a_time(dtype: DType, width: usize) -> usize {
    match dtype {
        DType::F32 => 1 << 13,
        _ => (20 << 20) / width,
    }
}

/// Prompt context: keys and values of the prompt's tokens, [1, 77, c] each, for every
/// cross-attention layer.
#[derive(Debug, Clone)]
pub struct Context(pub(super) Vec<(Tensor, Tensor)>);

/// Multi-head attention: queries from one sequence, keys and values from the same sequence or
/// another.
#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(vb: VarBuilder, inner: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            query: layers::linear_no_bias(vb.pp("to_q"), inner, inner)?,
            key: layers::linear_no_bias(vb.pp("to_k"), context, inner)?,
            value: layers::linear_no_bias(vb.pp("to_v"), context, inner)?,
            out: layers::linear(vb.pp("to_out").pp("0"), inner, inner)?,
            heads,
        })
    }

    /// Keys and values of tokens [b, s, context]: [b, s, inner] each.
    fn key_value(&self, context: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.key.forward(&[context], None)?, self.value.forward(&[context], None)?))
    }

    /// `x` plus the attention with queries from `normed`; both are [b, t, inner].
    fn add_to(
        &self,
        x: &Tensor,
        normed: &Tensor,
        (key, value): &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let query = self.query.forward(&[normed], None)?;
        let attended = attention(&query, key, value, self.heads, false)?;
        self.out.forward(&[&attended], Some(x))
    }

    /// `x` plus the self-attention of `normed` along the frames; both are [f, pixels, inner].
    fn add_along_frames(&self, x: &Tensor, normed: &Tensor) -> Result<Tensor> {
        let (key, value) = self.key_value(normed)?;
        let query = self.query.forward(&[normed], None)?;
        let attended = attention_along_first(&query, &key, &value, self.heads)?;
        self.out.forward(&[&attended], Some(x))
    }
}

/// A pre-norm transformer block: two attention layers and a GEGLU feed-forward network, each with
/// a residual connection.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attention1: Attention,
    norm2: LayerNorm,
    attention2: Attention,
    norm3: LayerNorm,
    gate: Linear,
    out: Linear,
}

impl Block {
    fn new(vb: VarBuilder, inner: usize, context: usize, heads: usize) -> Result<Self> {
        let vb = vb.pp("transformer_blocks").pp("0");
        let ff = vb.pp("ff").pp("net");
        Ok(Self {
            norm1: layers::layer_norm(vb.pp("norm1"), inner)?,
            attention1: Attention::new(vb.pp("attn1"), inner, inner, heads)?,
            norm2: layers::layer_norm(vb.pp("norm2"), inner)?,
            attention2: Attention::new(vb.pp("attn2"), inner, context, heads)?,
            norm3: layers::layer_norm(vb.pp("norm3"), inner)?,
            gate: layers::linear(ff.pp("0").pp("proj"), inner, 8 * inner)?,
            out: layers::linear(ff.pp("2"), 4 * inner, inner)?,
        })
    }

    /// `x` plus the feed-forward network; x is [.., inner].
    fn feed_forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = self.gate.forward(&[&self.norm3.forward(x)?], None)?;
        self.out.forward(&[&geglu(&gated)?], Some(x))
    }
}

/// Self-attention within each frame, then cross-attention to the prompt.
#[derive(Debug)]
pub(super) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    block: Block,
    proj_out: Linear,
}

impl SpatialTransformer {
    pub(super) fn new(
        vb: VarBuilder,
        channels: usize,
        context: usize,
        heads: usize,
    ) -> Result<Self> {
        Ok(Self {
            norm: layers::group_norm(vb.pp("norm"), channels, EPSILON)?,
            proj_in: layers::linear(vb.pp("proj_in"), channels, channels)?,
            block: Block::new(vb.clone(), channels, context, heads)?,
            proj_out: layers::linear(vb.pp("proj_out"), channels, channels)?,
        })
    }

    /// Keys and values of the prompt's tokens [1, 77, context].
    pub(super) fn context(&self, tokens: &Tensor) -> Result<(Tensor, Tensor)> {
        self.block.attention2.key_value(tokens)
    }

    /// The layers before cross-attention: frames x [n, h, w, c] to tokens [n, h·w, c].
    pub(super) fn before_prompt(&self, x: &Tensor) -> Result<Tensor> {
        let (n, h, w, c) = x.dims4()?;
        let mut tokens = self.norm.affine(&Moments::of(x)?)?.apply(x, false)?;
        tokens = self.proj_in.forward(&[&tokens.reshape((n, h * w, c))?], None)?;
        let Block { norm1, attention1, .. } = &self.block;
        let normed = norm1.forward(&tokens)?;
        attention1.add_to(&tokens, &normed, &attention1.key_value(&normed)?)
    }

    /// Cross-attention and the layers after it. Adds the result to frames x [n, h, w, c].
    pub(super) fn with_prompt(
        &self,
        x: &Tensor,
        tokens: &Tensor,
        context: &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let mut tokens = {
            let normed = self.block.norm2.forward(tokens)?;
            self.block.attention2.add_to(tokens, &normed, context)?
        };
        tokens = self.block.feed_forward(&tokens)?;
        let out = self.proj_out.forward(&[&tokens], Some(&x.reshape(tokens_of(x)?)?))?;
        out.reshape(x.shape())
    }
}

/// Shape of frames [n, h, w, c] as tokens: (n, h·w, c).
fn tokens_of(x: &Tensor) -> Result<(usize, usize, usize)> {
    let (n, h, w, c) = x.dims4()?;
    Ok((n, h * w, c))
}

/// Self-attention along the frames, for each pixel.
#[derive(Debug)]
pub(super) struct TemporalTransformer {
    /// Channels of the tokens.
    width: usize,
    norm: GroupNorm,
    proj_in: Linear,
    block: Block,
    proj_out: Linear,
}

impl TemporalTransformer {
    pub(super) fn new(vb: VarBuilder, channels: usize, inner: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            width: inner,
            norm: layers::group_norm(vb.pp("norm"), channels, EPSILON)?,
            proj_in: layers::pointwise(vb.pp("proj_in"), channels, inner, 1)?,
            block: Block::new(vb.clone(), inner, inner, heads)?,
            proj_out: layers::pointwise(vb.pp("proj_out"), inner, channels, 1)?,
        })
    }

    /// Processes groups of pixels in place. The caller must hold the only reference to the slices
    /// of `x`.
    pub(super) fn forward(&self, x: FrameBatch) -> Result<FrameBatch> {
        let affine = x.affine(&self.norm)?;
        let frames: usize = x.slices().iter().map(|slice| slice.dim(0)).sum::<Result<_>>()?;
        let slices: Vec<_> = x
            .slices()
            .iter()
            .map(|slice| slice.reshape(tokens_of(slice)?))
            .collect::<Result<_>>()?;
        let (_, pixels, _) = slices[0].dims3()?;
        let tokens = x.size().share(tokens_at_a_time(slices[0].dtype(), self.width));
        // The last dimension of a CUDA grid is at most 65 535 thread blocks.
        let step = (tokens / frames).clamp(1, pixels.min(65_535));
        for first in (0..pixels).step_by(step) {
            let count = step.min(pixels - first);
            let tokens = gather_pixels(&slices, first, count)?;
            scatter_pixels(&self.tokens(&tokens, &affine)?, &slices, first)?;
        }
        Ok(x)
    }

    /// Transforms tokens x [f, pixels, c]; the shape stays.
    fn tokens(&self, x: &Tensor, affine: &Affine) -> Result<Tensor> {
        let Block { norm1, attention1, norm2, attention2, .. } = &self.block;
        let mut tokens = affine.apply(&x.unsqueeze(0)?, false)?.squeeze(0)?;
        tokens = self.proj_in.forward(&[&tokens], None)?;
        tokens = attention1.add_along_frames(&tokens, &norm1.forward(&tokens)?)?;
        tokens = attention2.add_along_frames(&tokens, &norm2.forward(&tokens)?)?;
        self.proj_out.forward(&[&self.block.feed_forward(&tokens)?], Some(x))
    }
}
