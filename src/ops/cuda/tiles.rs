// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tensor maps, which describe tensors for TMA, Hopper's asynchronous copies of tiles.

use candle_core::{DType, Result, Tensor, cuda::WrapErr};
use cudarc::driver::{DeviceRepr, sys};

use super::launch::Address;

/// Columns of a tile: 128 bytes, the width of the swizzle.
const COLUMNS: u32 = 64;

/// Rows of a tile: `width` along x times `height` along y.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// An encoded tensor map: 128 opaque bytes.
#[repr(transparent)]
pub(super) struct TensorMap(sys::CUtensorMap);

// SAFETY: kernels take it by value.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// A map of a contiguous tensor of f16 or bf16, as [z, y, x, c]. `sizes` are those of c, x, y
    /// and z; c must be a multiple of 8.
    pub(super) fn new(tensor: &Tensor, sizes: [usize; 4], tile: Tile) -> Result<Self> {
        use sys::{
            CUtensorMapDataType_enum as Type, CUtensorMapFloatOOBfill_enum as Outside,
            CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
            CUtensorMapSwizzle_enum as Swizzle,
        };
        let dtype = match tensor.dtype() {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::BF16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            other => candle_core::bail!("tensor maps support f16 and bf16, got {other:?}"),
        };
        tensor.device().as_cuda_device()?.cuda_stream().context().bind_to_thread().w()?;
        let [c, x, y, _] = sizes;
        let sizes = sizes.map(|size| size as u64);
        let bytes = tensor.dtype().size_in_bytes();
        // Strides of x, y and z in bytes.
        let strides = [c, c * x, c * x * y].map(|count| (count * bytes) as u64);
        let tile = [COLUMNS, tile.width as u32, tile.height as u32, 1];
        let element_strides = [1; 4];
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        // SAFETY: the arrays have one entry for each of the four dimensions, and the driver writes
        // only the map.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                dtype,
                sizes.len() as u32,
                Address::of(tensor)?.pointer(),
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                element_strides.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Outside::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        result.result().w()?;
        Ok(map)
    }
}
