// SPDX-License-Identifier: MIT OR Apache-2.0
//! The encoder that the UNet and its ControlNet share: twelve blocks in the published model, and
//! the middle block.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    config::Config,
    resnet::{Embedding, ResBlock},
    transformer::{Context, SpatialTransformer, TemporalTransformer},
};
use crate::{
    networks::{Check, frame_batch::FrameBatch, layers},
    ops::{Conv2d, ConvConfig},
    sampler::Slices,
};

/// Downsamples by 2. Two rows of zeros above and below, as in the published model; the decoder
/// crops the two rows that upsampling then has in excess.
pub(super) const DOWN: ConvConfig =
    ConvConfig { top: 2, bottom: 2, left: 1, right: 1, stride: 2, upsample: false, crop: 0 };

/// A residual block, followed by spatial and temporal attention where the level has them.
#[derive(Debug)]
pub(super) struct Stage {
    residual: ResBlock,
    attention: Option<Attention>,
}

#[derive(Debug)]
struct Attention {
    spatial: SpatialTransformer,
    temporal: TemporalTransformer,
    /// Index of the layer in a [`Context`].
    index: usize,
}

impl Stage {
    /// The parts have the keys 0, 1 and 2. `attentions` counts the cross-attention layers.
    pub(super) fn new(
        vb: VarBuilder,
        config: &Config,
        inputs: usize,
        outputs: usize,
        attends: bool,
        attentions: &mut usize,
    ) -> Result<Self> {
        let heads = outputs / config.head_dim;
        let attention = match attends {
            false => None,
            true => {
                let context = config.context_dim;
                let attention = Attention {
                    spatial: SpatialTransformer::new(vb.pp("1"), outputs, context, heads)?,
                    temporal: TemporalTransformer::new(vb.pp("2"), outputs, outputs, heads)?,
                    index: *attentions,
                };
                *attentions += 1;
                Some(attention)
            }
        };
        Ok(Self { residual: ResBlock::new(vb.pp("0"), config.dim, inputs, outputs)?, attention })
    }

    /// The cross-attention layer, if the level has one.
    pub(super) fn prompted(&self) -> Option<&SpatialTransformer> {
        self.attention.as_ref().map(|attention| &attention.spatial)
    }

    /// Runs one guidance branch.
    pub(super) fn forward(
        &self,
        x: FrameBatch,
        skip: Option<FrameBatch>,
        embedding: &Embedding,
        context: &Context,
        check: Check,
    ) -> Result<FrameBatch> {
        Ok(self.branches(x, skip, embedding, &[context], check)?.remove(0))
    }

    /// Runs a guidance branch for each context. Layers before the cross-attention run once for all
    /// of them.
    pub(super) fn branches(
        &self,
        x: FrameBatch,
        skip: Option<FrameBatch>,
        embedding: &Embedding,
        contexts: &[&Context],
        check: Check,
    ) -> Result<Vec<FrameBatch>> {
        check()?;
        let x = self.residual.forward(x, skip, embedding)?;
        let Some(Attention { spatial, temporal, index }) = &self.attention else {
            return Ok(vec![x; contexts.len()]);
        };
        check()?;
        let branches = x.fork(contexts.len(), |x| {
            let tokens = spatial.before_prompt(&x)?;
            let branch = |context: &&Context| spatial.with_prompt(&x, &tokens, &context.0[*index]);
            contexts.iter().map(branch).collect()
        })?;
        let branches = branches.into_iter().map(|x| {
            check()?;
            temporal.forward(x)
        });
        branches.collect()
    }
}

#[derive(Debug)]
enum Block {
    Stage(Box<Stage>),
    /// Downsampling convolution, and the channel multiplier of the next level.
    Down(Conv2d, usize),
}

/// The downsampling half of the UNet and the middle block.
#[derive(Debug)]
pub(super) struct Encoder {
    conv: Conv2d,
    temporal: TemporalTransformer,
    blocks: Vec<Block>,
    middle: (Stage, ResBlock),
    /// Output channels of each block, the first convolution included.
    pub(super) widths: Vec<usize>,
}

impl Encoder {
    pub(super) fn new(vb: &VarBuilder, config: &Config, attentions: &mut usize) -> Result<Self> {
        let input = vb.pp("input_blocks");
        let heads = config.num_heads;
        let inner = heads * config.head_dim;
        let mut width = config.dim;
        let mut widths = vec![width];
        let mut blocks = Vec::new();
        let first = input.pp("0");
        let conv = layers::conv(first.pp("0"), config.latents, width, ConvConfig::SAME)?;
        let temporal = TemporalTransformer::new(first.pp("1"), width, inner, heads)?;
        for (level, multiplier) in config.dim_mult.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let vb = input.pp(blocks.len() + 1);
                let out = config.dim * multiplier;
                let attends = config.attends(level);
                let stage = Stage::new(vb, config, width, out, attends, attentions)?;
                blocks.push(Block::Stage(Box::new(stage)));
                width = out;
                widths.push(width);
            }
            if let Some(times) = config.dim_mult.get(level + 1) {
                let vb = input.pp(blocks.len() + 1).pp("op");
                blocks.push(Block::Down(layers::conv(vb, width, width, DOWN)?, *times));
                widths.push(width);
            }
        }
        let middle = vb.pp("middle_block");
        let middle = (
            Stage::new(middle.clone(), config, width, width, true, attentions)?,
            ResBlock::new(middle.pp("3"), config.dim, width, width)?,
        );
        Ok(Self { conv, temporal, blocks, middle, widths })
    }

    /// The cross-attention layers in the order of their index.
    pub(super) fn prompted(&self) -> impl Iterator<Item = &SpatialTransformer> {
        let stages = self.blocks.iter().filter_map(|block| match block {
            Block::Stage(stage) => Some(stage.as_ref()),
            Block::Down(..) => None,
        });
        stages.chain([&self.middle.0]).filter_map(Stage::prompted)
    }

    /// Runs the first two blocks on x [f, h, w, c]. Returns the output of the first block, which
    /// the guidance branches share, and the output of the second block for each context. `hints`
    /// returns for each frame a tensor [1, h, w, dim] that is added to the output of the first
    /// convolution, if any.
    pub(super) fn begin(
        &self,
        x: &Tensor,
        slices: Slices,
        hints: impl Fn(usize) -> Result<Option<Tensor>>,
        embedding: &Embedding,
        contexts: &[&Context],
        check: Check,
    ) -> Result<(FrameBatch, Vec<FrameBatch>)> {
        check()?;
        let frames = (0..x.dim(0)?).map(|frame| {
            self.conv.forward(&[&x.narrow(0, frame, 1)?], None, hints(frame)?.as_ref())
        });
        let x = FrameBatch::of_frames(frames, slices)?;
        let first = self.temporal.forward(x)?;
        let Some(Block::Stage(stage)) = self.blocks.first() else {
            candle_core::bail!("the UNet's first level has no residual block");
        };
        let branches = stage.branches(first.clone(), None, embedding, contexts, check)?;
        Ok((first, branches))
    }

    /// Runs the remaining blocks of one guidance branch on the output of the second block. Calls
    /// `each` with index and output of every block from the second one on. Returns the output of
    /// the middle block.
    pub(super) fn forward(
        &self,
        mut x: FrameBatch,
        embedding: &Embedding,
        context: &Context,
        check: Check,
        mut each: impl FnMut(usize, &FrameBatch) -> Result<()>,
    ) -> Result<FrameBatch> {
        each(1, &x)?;
        for (n, block) in self.blocks.iter().enumerate().skip(1) {
            x = match block {
                Block::Stage(stage) => stage.forward(x, None, embedding, context, check)?,
                Block::Down(conv, times) => {
                    check()?;
                    x.rescale(conv, *times)?
                }
            };
            each(n + 1, &x)?;
        }
        let x = self.middle.0.forward(x, None, embedding, context, check)?;
        check()?;
        self.middle.1.forward(x, None, embedding)
    }
}
