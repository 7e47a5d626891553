// SPDX-License-Identifier: MIT OR Apache-2.0
//! The half of the UNet that goes down, which its ControlNet has too: twelve blocks in the published
//! model, and the middle.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    Config,
    resnet::{Embedding, ResBlock},
    transformer::{Context, SpatialTransformer, TemporalTransformer},
};
use crate::{
    networks::{Check, frame_batch::FrameBatch, layers},
    ops::{Conv2d, Shape},
    sampler::Slices,
};

/// Halves both sides. Two rows of zeros above and below, so that what comes up again has two rows too
/// many, which are left out there.
pub(super) const DOWN: Shape =
    Shape { top: 2, bottom: 2, left: 1, right: 1, stride: 2, double: false, crop: 0 };

/// A residual block, with attention where the level has it.
#[derive(Debug)]
pub(super) struct Stage {
    residual: ResBlock,
    attention: Option<Attention>,
}

#[derive(Debug)]
struct Attention {
    spatial: SpatialTransformer,
    temporal: TemporalTransformer,
    /// Its place in a [`Context`].
    index: usize,
}

impl Stage {
    /// The parts have the keys 0, 1 and 2. `attentions` counts them.
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

    /// The attentions to the prompt, in the order of their index.
    pub(super) fn prompted(&self) -> Option<&SpatialTransformer> {
        self.attention.as_ref().map(|attention| &attention.spatial)
    }

    /// For one prompt.
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

    /// For each of the prompts; what comes before the first look at them is done once.
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
    /// To the next level, whose widths are so many times the first level's.
    Down(Conv2d, usize),
}

/// The way down, and the middle.
#[derive(Debug)]
pub(super) struct Encoder {
    conv: Conv2d,
    temporal: TemporalTransformer,
    blocks: Vec<Block>,
    middle: (Stage, ResBlock),
    /// Channels of what each block gives, the first convolution's included.
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
        let conv = layers::conv(first.pp("0"), config.latents, width, Shape::SAME)?;
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

    pub(super) fn prompted(&self) -> impl Iterator<Item = &SpatialTransformer> {
        let stages = self.blocks.iter().filter_map(|block| match block {
            Block::Stage(stage) => Some(stage.as_ref()),
            Block::Down(..) => None,
        });
        stages.chain([&self.middle.0]).filter_map(Stage::prompted)
    }

    /// The first two blocks: what the first gives, which the branches of guidance share, and what the
    /// second gives for each of the prompts. `hints` holds for each frame what is added to it after the
    /// first convolution, if anything.
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
            candle_core::bail!("a UNet needs a residual block on its first level");
        };
        let branches = stage.branches(first.clone(), None, embedding, contexts, check)?;
        Ok((first, branches))
    }

    /// The rest of a branch, from what its second block has given. `each` is given what every block
    /// makes from the second on, with its number; gives what leaves the middle.
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
