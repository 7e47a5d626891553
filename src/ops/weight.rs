// SPDX-License-Identifier: MIT OR Apache-2.0
//! Weights that also multiply activations of another type.

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
    /// A copy in bf16, for evaluations whose activations exceed the range of f16.
    #[cfg(feature = "cuda")]
    bf16: OnceLock<Tensor>,
}

impl Weight {
    pub(super) fn new(tensor: Tensor) -> Self {
        Self {
            tensor,
            #[cfg(feature = "cuda")]
            bf16: OnceLock::new(),
        }
    }

    /// Returns the weight in the type of the activations, on a CUDA device. The copy in bf16 is
    /// cached if the device has room for it, because every slice of an evaluation needs it.
    #[cfg(feature = "cuda")]
    pub(super) fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.tensor.dtype() == dtype {
            return Ok(self.tensor.clone());
        }
        if let Some(bf16) = self.bf16.get().filter(|bf16| bf16.dtype() == dtype) {
            return Ok(bf16.clone());
        }
        let converted = self.tensor.to_dtype(dtype)?;
        let bytes = converted.elem_count() * dtype.size_in_bytes();
        if dtype == DType::BF16 && cuda::has_room(converted.device(), bytes)? {
            // Another thread may have initialised the cache meanwhile.
            return Ok(self.bf16.get_or_init(|| converted).clone());
        }
        Ok(converted)
    }
}
