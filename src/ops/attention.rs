// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attention without a matrix of all scores: a block of queries meets block after block of keys, and its
//! sums are rescaled as larger scores come (Milakov and Gimelshein, arXiv 1805.02867).

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::host::{Host, tensor};
use super::math;
use super::matrix::{Matrix, Threads, add_product};

/// Queries and keys that meet at a time on the CPU: their scores fit a core's cache.
const QUERIES: usize = 128;
const KEYS: usize = 512;

/// The same on a GPU, for heads that no kernel is made for, in scores of all heads.
const SCORES: usize = 1 << 26;

/// softmax(q·kᵀ / √d)·v, head by head: q is [b, t, c], k and v are [b or 1, s, c], of c = heads · d; with
/// `causal`, a token sees those up to itself. Gives [b, t, c].
///
/// # Errors
/// On shapes that do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((b, t, c), (kb, s, kc)) = (q.dims3()?, k.dims3()?);
    if kc != c || v.dims3()? != (kb, s, c) || !c.is_multiple_of(heads) || (kb != b && kb != 1) {
        candle_core::bail!(
            "attention of {heads} heads over {:?}, {:?}, {:?}",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    super::count(2 * b * t, s, c);
    if q.device().is_cpu() {
        return on_cpu(q, k, v, heads, causal);
    }
    #[cfg(feature = "cuda")]
    if !causal && cuda::has_kernel(c / heads, q.dtype()) {
        return cuda::attention(q, &k.to_dtype(q.dtype())?, &v.to_dtype(q.dtype())?);
    }
    anywhere(q, k, v, heads, causal)
}

fn on_cpu(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((b, t, c), (kb, s, _)) = (q.dims3()?, k.dims3()?);
    let d = c / heads;
    let hosts = [Host::new(q)?, Host::new(k)?, Host::new(v)?];
    let (q_values, k_values, v_values) =
        (hosts[0].values()?, hosts[1].values()?, hosts[2].values()?);
    let mut out = vec![0.0; b * t * c];
    out.par_chunks_mut(t * c).enumerate().for_each(|(batch, out)| {
        let keys = if kb == 1 { 0 } else { batch * s * c };
        out.par_chunks_mut(QUERIES * c).enumerate().for_each(|(block, out)| {
            for head in 0..heads {
                let first = block * QUERIES;
                let queries = &q_values[(batch * t + first) * c + head * d..];
                let (keys, values) = (&k_values[keys + head * d..], &v_values[keys + head * d..]);
                let causal = causal.then_some(first);
                block_of_queries(out, queries, keys, values, [s, c, d, head], causal);
            }
        });
    });
    tensor(out, &[b, t, c], q)
}

/// One head's output for a block of queries. `causal` is the number of the first query.
fn block_of_queries(
    out: &mut [f32],
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    [s, c, d, head]: [usize; 4],
    causal: Option<usize>,
) {
    let rows = out.len() / c;
    let scale = 1.0 / (d as f32).sqrt();
    let queries: Vec<f32> = (0..rows)
        .flat_map(|row| queries[row * c..][..d].iter().map(|value| value * scale))
        .collect();
    let mut sums = vec![0.0; rows * d];
    let (mut best, mut weight) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
    let mut scores = Vec::new();
    for first in (0..s).step_by(KEYS) {
        let count = KEYS.min(s - first);
        scores.clear();
        scores.resize(rows * count, 0.0);
        let a = Matrix { values: &queries, row: d, column: 1 };
        let b = Matrix { values: &keys[first * c..], row: 1, column: c };
        add_product(&mut scores, count, [rows, count, d], a, b, Threads::One);
        for (row, scores) in scores.chunks_exact_mut(count).enumerate() {
            if let Some(query) = causal {
                let seen = (query + row + 1).saturating_sub(first).min(count);
                scores[seen..].fill(f32::NEG_INFINITY);
            }
            let most = best[row].max(math::max(scores));
            if most == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            let shrink = (best[row] - most).exp();
            best[row] = most;
            weight[row] = weight[row] * shrink + math::exp_sum(scores, most);
            sums[row * d..][..d].iter_mut().for_each(|sum| *sum *= shrink);
        }
        let a = Matrix { values: &scores, row: count, column: 1 };
        let b = Matrix { values: &values[first * c..], row: c, column: 1 };
        add_product(&mut sums, d, [rows, d, count], a, b, Threads::One);
    }
    for (row, sums) in sums.chunks_exact(d).enumerate() {
        let out = &mut out[row * c + head * d..][..d];
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / weight[row]);
    }
}

fn anywhere(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let ((b, t, c), (kb, s, _)) = (q.dims3()?, k.dims3()?);
    // A wider evaluation meets a prompt of the usual type.
    let dtype = q.dtype();
    let split = |x: &Tensor, b: usize, tokens: usize| {
        x.to_dtype(dtype)?.reshape((b, tokens, heads, c / heads))?.transpose(1, 2)?.contiguous()
    };
    let scale = ((c / heads) as f64).sqrt().recip();
    let (q, k, v) = ((split(q, b, t)? * scale)?, split(k, kb, s)?, split(v, kb, s)?);
    let spread = |x: Tensor| match kb == b {
        true => Ok(x),
        false => x.broadcast_as((b, heads, s, c / heads))?.contiguous(),
    };
    let (k, v) = (spread(k)?.t()?.contiguous()?, spread(v)?);
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
    fn both_sides_of_attention_compute_the_same() -> Result<()> {
        // More queries and keys than a block; keys of their own, keys for all, only those before.
        for (t, s, keys, causal) in [(300, 1100, 2, false), (40, 77, 1, false), (77, 77, 2, true)] {
            let q = numbers(&[2, t, 24])?;
            let (k, v) = (numbers(&[keys, s, 24])?, (numbers(&[keys, s, 24])? * 0.5)?);
            let (a, b) = (on_cpu(&q, &k, &v, 3, causal)?, anywhere(&q, &k, &v, 3, causal)?);
            assert_same(&a, &b);
        }
        Ok(())
    }
}
