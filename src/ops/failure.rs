// SPDX-License-Identifier: MIT OR Apache-2.0
//! Classifies candle errors, so that callers can tell lack of memory and a lost device from other
//! errors.

use candle_core::Error;

/// Class of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The device ran out of memory.
    OutOfMemory,
    /// The device is lost: every later operation on it fails in this process.
    DeviceLost,
    /// Any other error.
    Other,
}

/// Names by which the driver and its libraries report lack of memory. Only the error's text is
/// matched: its type differs without the feature `cuda`.
const OUT_OF_MEMORY: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
];

/// Errors after which, according to the CUDA driver API manual, the process must be restarted:
/// every later call returns the same error.
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

/// Classifies an error, however it is wrapped.
pub fn failure(error: &Error) -> Failure {
    match error {
        Error::WithBacktrace { inner, .. }
        | Error::Context { inner, .. }
        | Error::WithPath { inner, .. } => failure(inner),
        Error::WrappedContext { wrapped: error, .. } | Error::Cuda(error) => classify_text(error),
        Error::Wrapped(error) => classify_text(error),
        _ => Failure::Other,
    }
}

fn classify_text(error: &dyn std::fmt::Display) -> Failure {
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
    fn wrapped_errors_are_classified_as_out_of_memory_device_lost_or_other() {
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
            // Not an error of the device: the text may be a file name.
            Error::msg("CUDA_ERROR_OUT_OF_MEMORY"),
        ];
        for error in others {
            assert_eq!(failure(&error), Failure::Other, "{error}");
        }
    }
}
