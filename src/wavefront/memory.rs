// SPDX-License-Identifier: MIT OR Apache-2.0
//! Telling a device that is full from everything else that goes wrong on it.

use candle_core::Error;

/// How the driver and the libraries over it say that they got no memory. Only their names for it are sure
/// to be in the error: its type is another without the feature `cuda`.
const NAMES: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
];

/// Whether an error says that a device has no memory left for what was asked of it.
pub fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => is_out_of_memory(inner),
        Error::WrappedContext { wrapped: error, .. } | Error::Cuda(error) => is_named(error),
        Error::Wrapped(error) => is_named(error),
        _ => false,
    }
}

fn is_named(error: &dyn std::fmt::Display) -> bool {
    let text = error.to_string();
    NAMES.iter().any(|name| text.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_other_failures_however_the_error_is_wrapped() {
        let cuda = |text: &str| Error::Cuda(text.into());
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let full = [
            cuda(driver),
            cuda(driver).bt(),
            cuda(driver).context("a convolution"),
            cuda("CublasError(CUBLAS_STATUS_ALLOC_FAILED)").with_path("weights"),
            cuda("CudnnError(CUDNN_STATUS_ALLOC_FAILED)"),
            Error::wrap(driver.to_owned()),
        ];
        for error in full {
            assert!(is_out_of_memory(&error), "{error}");
        }
        let others = [
            cuda(r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access")"#),
            cuda(r#"DriverError(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources")"#),
            Error::wrap(crate::engine::Error::Cancelled),
            // A file's name, say.
            Error::msg("CUDA_ERROR_OUT_OF_MEMORY"),
        ];
        for error in others {
            assert!(!is_out_of_memory(&error), "{error}");
        }
    }
}
