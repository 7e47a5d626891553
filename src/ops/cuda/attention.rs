// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches the fused attention kernels, which keep the scores in registers.

use candle_core::{DType, Result, Tensor};
use cudarc::driver::DeviceRepr;

use super::{
    kernel_set::{Family, uses_hopper},
    launch::{Address, Source, fatbin, int, suffix, unwritten},
    record::Work,
    tiles::{TensorMap, Tile},
};
use crate::ops::attention::Order;

pub(super) const SOURCE: Source = Source { name: "attention", fatbin: fatbin!("attention") };

pub(super) const HOPPER: Source =
    Source { name: "attention_hopper", fatbin: fatbin!("attention_hopper") };
/// Queries per thread block of the Hopper kernel, and its shared memory in bytes: the queries, two
/// stages of keys and values, alignment and barriers.
const HOPPER_QUERIES: usize = 192;
const HOPPER_SHARED_BYTES: u32 = (192 + 4 * 128) * 128 + 1024 + 128;

/// Channels per head.
const HEAD: usize = 64;

/// Kernel arguments; the layout matches attention.cu.
#[repr(C)]
struct Attention {
    q: Address,
    k: Address,
    v: Address,
    out: Address,
    tokens: i32,
    keys: i32,
    row: i32,
    batch: i32,
    key_batch: i32,
    scale: f32,
}

// SAFETY: plain values in the order of the kernels' struct.
unsafe impl DeviceRepr for Attention {}

/// A portable kernel for a range of sequence lengths.
struct Variant {
    name: &'static str,
    warps: usize,
    /// Queries per thread block.
    queries: usize,
    /// Keys per step.
    keys: usize,
}

const LONG: Variant = Variant { name: "attention", warps: 4, queries: 128, keys: 64 };
/// For attention along the frames.
const SHORT: [Variant; 2] = [
    Variant { name: "attention_short", warps: 2, queries: 32, keys: 32 },
    Variant { name: "attention_medium", warps: 3, queries: 48, keys: 48 },
];

impl Variant {
    /// Selects the kernel for a sequence length.
    fn of(queries: usize, keys: usize) -> &'static Self {
        let longest = queries.max(keys);
        SHORT.iter().find(|variant| longest <= variant.keys).unwrap_or(&LONG)
    }

    /// Shared memory in bytes, for two stages of keys and values.
    fn shared(&self) -> u32 {
        (4 * self.keys * HEAD * size_of::<u16>()) as u32
    }
}

/// Whether there is a kernel for this head width and type.
pub(crate) fn has_kernel(head: usize, dtype: DType) -> bool {
    head == HEAD && matches!(dtype, DType::F16 | DType::BF16)
}

/// Multi-head attention softmax(q·kᵀ / √64)·v of tensors of one type, with the memory layout
/// `order`.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, order: Order) -> Result<Tensor> {
    let (queries, keys) = (order.sequences(q)?, order.sequences(k)?);
    let (b, t, s, c) = (queries.count, queries.tokens, keys.tokens, q.dim(2)?);
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (device, suffix) = (q.device().as_cuda_device()?, suffix(q.dtype())?);
    let (variant, heads) = (Variant::of(t, s), c / HEAD);
    let work = Work::product("attention", 4 * b * t * s * c);
    // SAFETY: the kernels write all of `out`, and the arguments have the sizes that the kernels
    // expect.
    unsafe {
        let out = unwritten(q.shape(), &q)?;
        let arguments = Attention {
            q: Address::of(&q)?,
            k: Address::of(&k)?,
            v: Address::of(&v)?,
            out: Address::of(&out)?,
            tokens: int(t)?,
            keys: int(s)?,
            row: int(queries.row)?,
            batch: int(queries.stride)?,
            key_batch: if keys.count == 1 { 0 } else { int(keys.stride)? },
            scale: std::f32::consts::LOG2_E / (HEAD as f32).sqrt(),
        };
        // The tensor maps describe consecutive sequences.
        let consecutive = order == Order::Consecutive;
        if consecutive && variant.keys == LONG.keys && uses_hopper(device, Family::Attention)? {
            let kernel =
                HOPPER.kernel(device, format!("attention_hopper_{suffix}"), HOPPER_SHARED_BYTES)?;
            let map = |x: &Tensor, rows| {
                let (batch, tokens, _) = x.dims3()?;
                TensorMap::new(x, [c, tokens, batch, 1], Tile { width: rows, height: 1 })
            };
            let maps = [map(&q, 64)?, map(&k, 128)?, map(&v, 128)?];
            let grid = (t.div_ceil(HOPPER_QUERIES), heads, b);
            kernel.launch(work, grid, 512, [&arguments, &maps[0], &maps[1], &maps[2]])?;
        } else {
            let name = format!("{}_{suffix}", variant.name);
            let kernel = SOURCE.kernel(device, name, variant.shared())?;
            let grid = (t.div_ceil(variant.queries), heads, b);
            kernel.launch(work, grid, 32 * variant.warps as u32, [&arguments])?;
        }
        Ok(out)
    }
}
