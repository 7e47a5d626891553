// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a model can compute on.

use std::fmt;

use candle_core::DType;

use crate::{engine::Error, ops};

/// A place to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    Cpu,
    /// A CUDA device by its ordinal.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Device {
    /// The first CUDA device if there is one, else the CPU.
    ///
    /// # Errors
    /// [`Error::Setting`] if that CUDA device cannot be used: on a CPU the model would take days.
    pub(super) fn best() -> Result<Self, Error> {
        if ops::cuda_devices() == 0 {
            return Ok(Self::Cpu);
        }
        cuda_usable(0).map(|()| Self::Cuda(0)).map_err(|why| Error::Setting {
            setting: "device",
            value: "auto".into(),
            why: format!("cuda:0 is not usable ({why})"),
            instead: "use device=cpu or model=lite".into(),
        })
    }

    /// The type of numbers that networks have there.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Cuda(_) => DType::F16,
        }
    }

    /// Bytes of its memory that this process has or can have; `None` where that is not the limit, on a CPU, or
    /// not known.
    pub(super) fn memory(self) -> Option<usize> {
        let Self::Cuda(ordinal) = self else { return None };
        let memory = ops::device_memory(&ops::cuda_device(ordinal).ok()?)?;
        Some(memory.available + memory.used)
    }

    /// The device to compute with.
    pub(super) fn open(self) -> candle_core::Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(ordinal) => ops::cuda_device(ordinal),
        }
    }

    /// Reads "auto" (`None`), or a list of "cpu" and "cuda:N".
    ///
    /// # Errors
    /// [`Error::Setting`] that names the part which is wrong, or the device which is not there.
    pub(super) fn parse(text: &str) -> Result<Option<Vec<Self>>, Error> {
        if text.trim() == "auto" {
            return Ok(None);
        }
        let wrong = |why: String, instead: &str| Error::Setting {
            setting: "device",
            value: text.into(),
            why,
            instead: instead.into(),
        };
        let device = |part: &str| match part.split_once(':') {
            None if part == "cpu" => Ok(Self::Cpu),
            Some(("cuda", ordinal)) if ordinal.parse::<usize>().is_ok() => {
                let ordinal = ordinal.parse().unwrap_or_default();
                match cuda_usable(ordinal) {
                    Ok(()) => Ok(Self::Cuda(ordinal)),
                    Err(why) => {
                        Err(wrong(format!("{part} is not usable ({why})"), "use device=auto"))
                    }
                }
            }
            _ => Err(wrong(
                format!("“{part}” is no device"),
                "use auto, cpu, cuda:0 or a list such as cuda:0,cuda:1",
            )),
        };
        text.split(',').map(|part| device(part.trim())).collect::<Result<_, _>>().map(Some)
    }
}

/// Whether a CUDA device answers; if not, why.
pub(super) fn cuda_usable(ordinal: usize) -> Result<(), String> {
    if !candle_core::utils::cuda_is_available() {
        return Err("this plugin was built without CUDA".into());
    }
    ops::cuda_device(ordinal).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_mistakes_are_named() {
        assert_eq!(Device::parse("auto"), Ok(None));
        assert_eq!(Device::parse("cpu"), Ok(Some(vec![Device::Cpu])));
        for text in ["", "gpu", "cuda", "cuda:", "cuda:x", "cpu,,cpu", "cuda:-1"] {
            let error = Device::parse(text).unwrap_err().to_string();
            assert!(error.contains("is no device") && error.contains("cuda:0"), "{error}");
        }
    }

    #[test]
    fn a_cuda_device_that_is_not_there_is_an_error_that_says_so() {
        let error = Device::parse("cuda:4095").unwrap_err().to_string();
        assert!(
            error.contains("cuda:4095 is not usable") && error.contains("device=auto"),
            "{error}"
        );
    }
}
