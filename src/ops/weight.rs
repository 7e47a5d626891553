// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights, which activations of another type meet as well.

use candle_core::Tensor;
#[cfg(feature = "cuda")]
use {
    super::cuda,
    candle_core::{DType, Result},
    std::sync::OnceLock,
};

/// The weight of a convolution or of a linear layer.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) tensor: Tensor,
    /// The copy in bf16 that evaluations use which f16 has no range for.
    #[cfg(feature = "cuda")]
    wide: OnceLock<Tensor>,
}

impl Weight {
    pub(super) fn new(tensor: Tensor) -> Self {
        Self {
            tensor,
            #[cfg(feature = "cuda")]
            wide: OnceLock::new(),
        }
    }

    /// The weight in the type of activations, on a CUDA device. A copy in bf16 is kept where the device has room for
    /// it: one evaluation asks for it once for every slice.
    #[cfg(feature = "cuda")]
    pub(super) fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.tensor.dtype() == dtype {
            return Ok(self.tensor.clone());
        }
        if let Some(wide) = self.wide.get().filter(|wide| wide.dtype() == dtype) {
            return Ok(wide.clone());
        }
        let converted = self.tensor.to_dtype(dtype)?;
        let bytes = converted.elem_count() * dtype.size_in_bytes();
        if dtype == DType::BF16 && cuda::has_room(converted.device(), bytes)? {
            // Another thread may have been first.
            return Ok(self.wide.get_or_init(|| converted).clone());
        }
        Ok(converted)
    }
}
