// SPDX-License-Identifier: MIT OR Apache-2.0
//! Launches convolutions and linear layers: matrix products that gather their input rows on the
//! fly (implicit GEMM).

#[cfg(feature = "bench")]
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Result, Tensor};

#[cfg(feature = "bench")]
use super::cublaslt;
use super::{
    launch::{Address, Source, fatbin, int, suffix, unwritten},
    operands::{Operands, Product},
    product_hopper,
};
use crate::ops::conv::ConvConfig;

pub(super) const SOURCE: Source = Source { name: "product", fatbin: fatbin!("product") };

/// Implementation of linear layers in f16 and bf16.
#[cfg(feature = "bench")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProductBackend {
    /// The kernels of this crate.
    Kernels,
    /// cuBLASLt, for layers whose input is a single tensor.
    CublasLt,
}

/// Whether cuBLASLt is enabled.
#[cfg(feature = "bench")]
static CUBLASLT: AtomicBool = AtomicBool::new(false);

/// Selects the implementation of linear layers for this process; the default is `Kernels`.
#[cfg(feature = "bench")]
pub fn use_products(backend: ProductBackend) {
    CUBLASLT.store(backend == ProductBackend::CublasLt, Ordering::Relaxed);
}

/// A kernel for a number of outputs.
struct Variant {
    name: &'static str,
    /// Outputs per thread block.
    outputs: usize,
    threads: u32,
    shared: usize,
}

/// Pixels per thread block.
const PIXELS: usize = 128;
/// Bytes of shared memory for the coordinates of the block's pixels.
const COORDINATES: usize = PIXELS * 12;

impl Variant {
    /// Selects the kernel for a type, the channels of the parts, and a number of outputs.
    fn of(dtype: DType, channels: &[usize], outputs: usize) -> Self {
        let any_channels = channels.iter().any(|channels| !channels.is_multiple_of(8));
        // `steps` stages of 32 channels each.
        let tensor_cores = |name, outputs, steps: usize| {
            let shared = steps * (PIXELS + outputs) * 32 * size_of::<u16>() + COORDINATES;
            Self { name, outputs, threads: 128, shared }
        };
        match dtype {
            DType::F32 => {
                // Two stages of 8 channels of pixels and outputs, with rows padded by 4 against
                // bank conflicts.
                let shared = 2 * 2 * 8 * (PIXELS + 4) * size_of::<f32>() + COORDINATES;
                Self { name: "product", outputs: 128, threads: 256, shared }
            }
            _ if any_channels => tensor_cores("product_narrow", 32, 1),
            _ if outputs <= 32 || !outputs.is_multiple_of(4) => tensor_cores("product_32", 32, 4),
            _ if outputs.is_multiple_of(160) => tensor_cores("product_160", 160, 4),
            _ => tensor_cores("product_128", 128, 4),
        }
    }
}

/// Computes a product. `shape` is the shape of the output, whose last dimension is the number of
/// outputs. `around` holds the frames before and after the input, for convolutions along the
/// frames.
fn run(
    operands: &Operands,
    around: [Option<&Tensor>; 2],
    product: Product,
    shape: Vec<usize>,
) -> Result<Tensor> {
    let Operands { kind, parts, weight, bias, add } = *operands;
    let dtype = parts[0].dtype();
    let parts = parts.iter().map(|part| part.contiguous()).collect::<Result<Vec<_>>>()?;
    let channels: Vec<_> = parts.iter().map(|part| part.dims()[part.rank() - 1]).collect();
    let outputs = shape[shape.len() - 1];
    let rows = shape.iter().product::<usize>() / outputs;
    let total = weight.elem_count() / outputs / product.taps as usize;
    if channels.iter().sum::<usize>() != total || channels.len() > 2 {
        candle_core::bail!(
            "a layer has {total} input channels, got {channels:?} (at most two parts)"
        );
    }
    if add.is_some_and(|add| add.elem_count() != rows * outputs) {
        candle_core::bail!("cannot add a tensor {add:?} to an output [{rows}, {outputs}]");
    }
    // In a bf16 evaluation, activations have another type than weights.
    let of_type = |x: &Tensor| x.to_dtype(dtype)?.contiguous();
    let weight = of_type(weight)?;
    let (bias, add) = (bias.map(of_type).transpose()?, add.map(of_type).transpose()?);
    let [before, after] = around.map(|frame| frame.map(Tensor::contiguous).transpose());
    let (before, after) = (before?, after?);
    let parts: Vec<_> = parts.iter().collect();
    let (weight, bias, add) = (&weight, bias.as_ref(), add.as_ref());
    let operands = Operands { kind, parts: &parts, weight, bias, add };
    #[cfg(feature = "bench")]
    if CUBLASLT.load(Ordering::Relaxed) && cublaslt::serves(&operands, &product) {
        return cublaslt::run(&operands, &product, shape);
    }
    if product_hopper::serves(&operands, &product, outputs)? {
        let around = [before.as_ref(), after.as_ref()];
        return product_hopper::run(&operands, around, &product, shape);
    }

    let variant = Variant::of(dtype, &channels, outputs);
    let name = format!("{}_{}", variant.name, suffix(dtype)?);
    let kernel = SOURCE.kernel(parts[0].device().as_cuda_device()?, name, variant.shared as u32)?;
    // SAFETY: the kernel writes all of `out`, and the arguments have the sizes that the kernel
    // expects.
    unsafe {
        let out = unwritten(shape, parts[0])?;
        let product = Product {
            parts: [Address::of(parts[0])?, Address::of_some(parts.get(1).copied())?],
            before: Address::of_some(before.as_ref())?,
            after: Address::of_some(after.as_ref())?,
            weight: Address::of(weight)?,
            bias: Address::of_some(bias)?,
            add: Address::of_some(add)?,
            out: Address::of(&out)?,
            channels: [int(channels[0])?, int(channels.get(1).copied().unwrap_or(0))?],
            outputs: int(outputs)?,
            ..product
        };
        let grid = (rows.div_ceil(PIXELS) * outputs.div_ceil(variant.outputs), 1, 1);
        kernel.launch(operands.work(&product), grid, variant.threads, [&product])?;
        Ok(out)
    }
}

/// A 3×3 convolution of frames [n, h, w, c], whose channels may be split over two tensors.
/// `weight` is [out, 3, 3, in], `bias` [1 or n, out].
pub(crate) fn conv(
    parts: &[&Tensor],
    weight: &Tensor,
    bias: &Tensor,
    add: Option<&Tensor>,
    config: &ConvConfig,
) -> Result<Tensor> {
    let (n, h, w, _) = parts[0].dims4()?;
    let outputs = weight.dim(0)?;
    let (out_h, out_w) = config.output((h, w));
    let (source_h, source_w) = config.source((h, w));
    let product = Product {
        frames: int(n)?,
        height: int(h)?,
        width: int(w)?,
        out_height: int(out_h)?,
        out_width: int(out_w)?,
        taps: 9,
        stride: int(config.stride)?,
        top: int(config.top)?,
        left: int(config.left)?,
        times: if config.upsample { 2 } else { 1 },
        crop: int(config.crop)?,
        source_height: int(source_h)?,
        source_width: int(source_w)?,
        bias_frames: int(bias.elem_count() / outputs)?,
        ..Product::ROWS
    };
    let operands = Operands { kind: "convolution", parts, weight, bias: Some(bias), add };
    run(&operands, [None; 2], product, vec![n, out_h, out_w, outputs])
}

/// A convolution along frames [n, h, w, c]; `around` holds the frame before and the frame after.
/// `weight` is [out, 3, in], `bias` \[out\]. The product is multiplied by `scale`.
pub(crate) fn time_conv(
    around: [Option<&Tensor>; 2],
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    add: Option<&Tensor>,
    scale: f64,
) -> Result<Tensor> {
    let (n, h, w, _) = x.dims4()?;
    // The kernel treats each frame as one row of pixels.
    let product =
        Product { frames: int(n)?, taps: 3, scale: scale as f32, ..Product::of_rows(h * w)? };
    let operands = Operands { kind: "convolution", parts: &[x], weight, bias: Some(bias), add };
    run(&operands, around, product, vec![n, h, w, weight.dim(0)?])
}

/// A linear layer over the last dimension, which may be split over two tensors. `weight` is [out,
/// in], `bias` \[out\].
pub(crate) fn linear(
    parts: &[&Tensor],
    weight: &Tensor,
    bias: Option<&Tensor>,
    add: Option<&Tensor>,
) -> Result<Tensor> {
    let mut shape = parts[0].dims().to_vec();
    let rows = parts[0].elem_count() / shape[shape.len() - 1];
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let operands = Operands { kind: "linear", parts, weight, bias, add };
    run(&operands, [None; 2], Product::of_rows(rows)?, shape)
}
