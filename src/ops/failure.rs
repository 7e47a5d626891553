// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an error says about its device.

use candle_core::Error;

/// What an error of an operation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The device has no memory left for what was asked of it.
    OutOfMemory,
    /// An error on the device ends all use of it in this process.
    DeviceLost,
    /// Anything else.
    Other,
}

/// How the driver and the libraries over it say that they got no memory. Only their names for it are sure
/// to be in the error: its type is another without the feature `cuda`.
const OUT_OF_MEMORY: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
];

/// The errors of which the CUDA driver's manual says that the process has to be restarted: every later call returns
/// the same.
const DEVICE_LOST: [&str; 13] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
];

/// What an error means, however it is wrapped.
pub fn failure(error: &Error) -> Failure {
    match error {
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => failure(inner),
        Error::WrappedContext { wrapped: error, .. } | Error::Cuda(error) => named(error),
        Error::Wrapped(error) => named(error),
        _ => Failure::Other,
    }
}

fn named(error: &dyn std::fmt::Display) -> Failure {
    let text = error.to_string();
    let contains = |names: &[&str]| names.iter().any(|name| text.contains(name));
    if contains(&OUT_OF_MEMORY) {
        Failure::OutOfMemory
    } else if contains(&DEVICE_LOST) {
        Failure::DeviceLost
    } else {
        Failure::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_and_a_lost_device_are_told_from_other_failures_however_the_error_is_wrapped() {
        let cuda = |text: &str| Error::Cuda(text.into());
        let full = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let lost = r#"DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access")"#;
        for (text, expected) in [(full, Failure::OutOfMemory), (lost, Failure::DeviceLost)] {
            let errors = [
                cuda(text),
                cuda(text).bt(),
                cuda(text).context("a convolution"),
                cuda(text).with_path("weights"),
                Error::wrap(text.to_owned()),
            ];
            for error in errors {
                assert_eq!(failure(&error), expected, "{error}");
            }
        }
        for text in
            ["CublasError(CUBLAS_STATUS_ALLOC_FAILED)", "CudnnError(CUDNN_STATUS_ALLOC_FAILED)"]
        {
            assert_eq!(failure(&cuda(text)), Failure::OutOfMemory);
        }
        let others = [
            cuda(r#"DriverError(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources")"#),
            Error::wrap(crate::engine::Error::Cancelled),
            // A file's name, say.
            Error::msg("CUDA_ERROR_OUT_OF_MEMORY"),
        ];
        for error in others {
            assert_eq!(failure(&error), Failure::Other, "{error}");
        }
    }
}
