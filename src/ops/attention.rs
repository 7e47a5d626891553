// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attention without a matrix of all scores: a block of queries is combined with one block of keys
//! after the other, and the sums are rescaled whenever the maximum score grows (online softmax:
//! Milakov and Gimelshein, arXiv 1805.02867).

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::math;
use super::matrix::{Matrix, Threads, add_product};

/// Queries and keys in a block on the CPU. Their scores fit the cache of a core.
const QUERIES: usize = 128;
const KEYS: usize = 512;

/// Scores of all heads in a block on a GPU, for head widths without a kernel.
const SCORES: usize = 1 << 26;

/// Memory layout of token sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// [b, t, c]: one sequence after the other.
    Consecutive,
    /// [t, b, c]: one token of every sequence after the other.
    Interleaved,
}

/// Strides of the sequences in a contiguous tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequences {
    pub(super) count: usize,
    /// Tokens per sequence.
    pub(super) tokens: usize,
    /// Elements between consecutive tokens.
    pub(super) row: usize,
    /// Elements between consecutive sequences.
    pub(super) stride: usize,
}

impl Order {
    /// Strides of the sequences in x, which has this layout.
    pub(super) fn sequences(self, x: &Tensor) -> Result<Sequences> {
        let (first, second, c) = x.dims3()?;
        Ok(match self {
            Self::Consecutive => {
                Sequences { count: first, tokens: second, row: c, stride: second * c }
            }
            Self::Interleaved => {
                Sequences { count: second, tokens: first, row: second * c, stride: c }
            }
        })
    }
}

/// Multi-head attention softmax(q·kᵀ / √d)·v, with d = c / heads.
///
/// q is [b, t, c], k and v are [b or 1, s, c]; the result is [b, t, c]. With `causal`, a query
/// attends to the keys up to its own position.
///
/// # Errors
/// If shapes do not match.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    attend(q, k, v, heads, causal, Order::Consecutive)
}

/// [`attention`] along the first dimension, for each index of the second: q, k and v are [t, b,
/// c], and so is the result.
///
/// # Errors
/// If shapes do not match.
pub fn attention_along_first(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    attend(q, k, v, heads, false, Order::Interleaved)
}

fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    causal: bool,
    order: Order,
) -> Result<Tensor> {
    let (queries, keys, c) = (order.sequences(q)?, order.sequences(k)?, q.dim(2)?);
    // With interleaved tokens, the stride between tokens depends on the number of sequences.
    let shared = keys.count == 1 && order == Order::Consecutive;
    let fits = k.dim(2)? == c && v.dims() == k.dims() && c.is_multiple_of(heads);
    if !fits || !(shared || keys.count == queries.count) {
        candle_core::bail!(
            "attention with {heads} heads got queries {:?}, keys {:?} and values {:?}",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    super::count(2 * queries.count * queries.tokens, keys.tokens, c);
    if q.device().is_cpu() {
        return on_cpu(q, k, v, heads, causal, order);
    }
    #[cfg(feature = "cuda")]
    if !causal && cuda::has_kernel(c / heads, q.dtype()) {
        return cuda::attention(q, &k.to_dtype(q.dtype())?, &v.to_dtype(q.dtype())?, order);
    }
    match order {
        Order::Consecutive => generic(q, k, v, heads, causal),
        Order::Interleaved => {
            let transposed = |x: &Tensor| x.transpose(0, 1)?.contiguous();
            let out = generic(&transposed(q)?, &transposed(k)?, &transposed(v)?, heads, causal)?;
            transposed(&out)
        }
    }
}

fn on_cpu(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    causal: bool,
    order: Order,
) -> Result<Tensor> {
    let (queries, keys, c) = (order.sequences(q)?, order.sequences(k)?, q.dim(2)?);
    let (t, d) = (queries.tokens, c / heads);
    let hosts = [Host::new(q)?, Host::new(k)?, Host::new(v)?];
    let (q_values, k_values, v_values) =
        (hosts[0].values()?, hosts[1].values()?, hosts[2].values()?);
    // One sequence after the other in either layout, so that each thread writes a contiguous
    // chunk.
    let mut out = vec![0.0; q.elem_count()];
    out.par_chunks_mut(t * c).enumerate().for_each(|(batch, out)| {
        let key = if keys.count == 1 { 0 } else { batch * keys.stride };
        out.par_chunks_mut(QUERIES * c).enumerate().for_each(|(block, out)| {
            for head in 0..heads {
                let (first, column) = (block * QUERIES, head * d);
                let query = batch * queries.stride + first * queries.row + column;
                let operands = Operands {
                    queries: &q_values[query..],
                    keys: &k_values[key + column..],
                    values: &v_values[key + column..],
                    row: queries.row,
                    count: keys.tokens,
                };
                let causal = causal.then_some(first);
                block_of_queries(out, &operands, [c, d, head], causal);
            }
        });
    });
    let out = match order {
        Order::Consecutive => out,
        Order::Interleaved => interleave(&out, queries.count, t, c),
    };
    tensor(out, q.dims(), q)
}

/// [b, t, c] → [t, b, c].
fn interleave(values: &[f32], b: usize, t: usize, c: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    out.par_chunks_mut(b * c).enumerate().for_each(|(token, out)| {
        for (n, row) in out.chunks_exact_mut(c).enumerate() {
            row.copy_from_slice(&values[(n * t + token) * c..][..c]);
        }
    });
    out
}

/// Queries, keys and values of one head, each slice starting at the first token.
struct Operands<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    /// Elements between consecutive tokens.
    row: usize,
    /// Number of keys.
    count: usize,
}

/// Computes one head's output for a block of queries. Rows of `out` have c elements. `causal` is
/// the position of the first query.
fn block_of_queries(
    out: &mut [f32],
    operands: &Operands,
    [c, d, head]: [usize; 3],
    causal: Option<usize>,
) {
    let Operands { keys, values, row: stride, count: s, .. } = *operands;
    let rows = out.len() / c;
    let scale = 1.0 / (d as f32).sqrt();
    let queries: Vec<f32> = (0..rows)
        .flat_map(|row| operands.queries[row * stride..][..d].iter().map(|value| value * scale))
        .collect();
    let mut sums = vec![0.0; rows * d];
    let (mut maxima, mut weight_sums) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
    let mut scores = Vec::new();
    for first in (0..s).step_by(KEYS) {
        let count = KEYS.min(s - first);
        scores.clear();
        scores.resize(rows * count, 0.0);
        let a = Matrix { values: &queries, row: d, column: 1 };
        let b = Matrix { values: &keys[first * stride..], row: 1, column: stride };
        add_product(&mut scores, count, [rows, count, d], a, b, Threads::One);
        for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
            if let Some(query) = causal {
                let visible = (query + row + 1).saturating_sub(first).min(count);
                scores[visible..].fill(f32::NEG_INFINITY);
            }
            let max = maxima[row].max(math::max(scores));
            if max == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            let rescale = (maxima[row] - max).exp();
            maxima[row] = max;
            weight_sums[row] = weight_sums[row] * rescale + math::exp_sum(scores, max);
            sums[row * d..][..d].iter_mut().for_each(|sum| *sum *= rescale);
        }
        let a = Matrix { values: &scores, row: count, column: 1 };
        let b = Matrix { values: &values[first * stride..], row: stride, column: 1 };
        add_product(&mut sums, d, [rows, d, count], a, b, Threads::One);
    }
    for (row, sums) in sums.chunks_exact(d).enumerate() {
        let out = &mut out[row * c + head * d..][..d];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / weight_sums[row]);
    }
}

/// Attention from candle's operations, for devices and shapes without a kernel.
fn generic(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((b, t, c), (kb, s, _)) = (q.dims3()?, k.dims3()?);
    // In a wide evaluation, the prompt's keys and values have another type.
    let dtype = q.dtype();
    let split = |x: &Tensor, b: usize, tokens: usize| {
        x.to_dtype(dtype)?.reshape((b, tokens, heads, c / heads))?.transpose(1, 2)?.contiguous()
    };
    let scale = ((c / heads) as f64).sqrt().recip();
    let (q, k, v) = ((split(q, b, t)? * scale)?, split(k, kb, s)?, split(v, kb, s)?);
    let expand = |x: Tensor| match kb == b {
        true => Ok(x),
        false => x.broadcast_as((b, heads, s, c / heads))?.contiguous(),
    };
    let (k, v) = (expand(k)?.t()?.contiguous()?, expand(v)?);
    let block = (SCORES / (b * heads * s)).clamp(1, t);
    let mut blocks = Vec::new();
    for first in (0..t).step_by(block) {
        let count = block.min(t - first);
        let mut scores =
            q.narrow(2, first, count)?.contiguous()?.matmul(&k)?.to_dtype(DType::F32)?;
        if causal {
            let mask: Vec<f32> = (first..first + count)
                .flat_map(|query| {
                    (0..s).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
                })
                .collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (count, s), scores.device())?)?;
        }
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
        blocks.push(weights.matmul(&v)?);
    }
    Tensor::cat(&blocks, 2)?.transpose(1, 2)?.contiguous()?.reshape((b, t, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_same, numbers};

    #[test]
    fn cpu_and_generic_attention_agree() -> Result<()> {
        // More queries and keys than one block; keys per sequence; keys shared by all sequences;
        // causal.
        for (t, s, keys, causal) in [(300, 1100, 2, false), (40, 77, 1, false), (77, 77, 2, true)] {
            let q = numbers(&[2, t, 24])?;
            let (k, v) = (numbers(&[keys, s, 24])?, (numbers(&[keys, s, 24])? * 0.5)?);
            let consecutive = on_cpu(&q, &k, &v, 3, causal, Order::Consecutive)?;
            assert_same(&consecutive, &generic(&q, &k, &v, 3, causal)?);
        }
        Ok(())
    }

    #[test]
    fn attention_along_the_first_dimension_matches_transposed_attention() -> Result<()> {
        for (t, s, b) in [(5, 5, 7), (1, 4, 3), (200, 600, 2), (6, 9, 1)] {
            let (q, k) = (numbers(&[t, b, 24])?, numbers(&[s, b, 24])?);
            let v = (&k * 0.5)?;
            let transposed = |x: &Tensor| x.transpose(0, 1)?.contiguous();
            let expected =
                attention(&transposed(&q)?, &transposed(&k)?, &transposed(&v)?, 3, false)?;
            assert_same(&attention_along_first(&q, &k, &v, 3)?, &transposed(&expected)?);
        }
        Ok(())
    }
}
