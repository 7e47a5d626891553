// SPDX-License-Identifier: MIT OR Apache-2.0
//! Parses and opens the devices of the property `device`, and reports why one is not usable.

use std::fmt;

use candle_core::DType;

use crate::{engine::Error, ops};

/// A device to compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Device {
    Cpu,
    /// A CUDA device and its ordinal.
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
    /// Returns the first CUDA device, or the CPU if the system has none.
    ///
    /// # Errors
    /// [`Error::Setting`] if the CUDA device is not usable. There is no fallback to the CPU, where a clip
    /// would take days.
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

    /// Returns the data type of the networks on this device.
    pub(super) fn dtype(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Cuda(_) => DType::F16,
        }
    }

    /// Returns the bytes of device memory that this process uses or can allocate, or `None` for a CPU or if
    /// unknown.
    pub(super) fn memory(self) -> Option<usize> {
        let Self::Cuda(ordinal) = self else { return None };
        let memory = ops::device_memory(&ops::cuda_device(ordinal).ok()?)?;
        Some(memory.available + memory.used)
    }

    /// Opens the device.
    pub(super) fn open(self) -> candle_core::Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(ordinal) => ops::cuda_device(ordinal),
        }
    }

    /// Parses "auto" (returned as `None`) or a comma-separated list of "cpu" and "cuda:N".
    ///
    /// # Errors
    /// [`Error::Setting`] that names the unknown device.
    pub(super) fn parse(text: &str) -> Result<Option<Vec<Self>>, Error> {
        if text.trim() == "auto" {
            return Ok(None);
        }
        let device = |part: &str| match part.split_once(':') {
            None if part == "cpu" => Some(Self::Cpu),
            Some(("cuda", ordinal)) => ordinal.parse().ok().map(Self::Cuda),
            _ => None,
        };
        let known = |part: &str| {
            device(part).ok_or_else(|| Error::Setting {
                setting: "device",
                value: text.into(),
                why: format!("unknown device “{part}”"),
                instead: "use auto, cpu, cuda:N or a comma-separated list".into(),
            })
        };
        text.split(',').map(|part| known(part.trim())).collect::<Result<_, _>>().map(Some)
    }

    /// Checks that this device can be opened.
    ///
    /// # Errors
    /// [`Error::Setting`] with the reason.
    pub(super) fn check(self) -> Result<(), Error> {
        let Self::Cuda(ordinal) = self else { return Ok(()) };
        let instead = match candle_core::utils::cuda_is_available() {
            true => "use device=auto",
            false => "build the plugin with the feature cuda, or use device=auto",
        };
        cuda_usable(ordinal).map_err(|why| Error::Setting {
            setting: "device",
            value: self.to_string(),
            why,
            instead: instead.into(),
        })
    }
}

/// Checks that a CUDA device can be opened. Returns the reason if not.
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
    fn an_unknown_device_is_an_error_that_lists_the_valid_values() {
        assert_eq!(Device::parse("auto"), Ok(None));
        assert_eq!(Device::parse("cpu"), Ok(Some(vec![Device::Cpu])));
        for text in ["", "gpu", "cuda", "cuda:", "cuda:x", "cpu,,cpu", "cuda:-1"] {
            let error = Device::parse(text).unwrap_err().to_string();
            assert!(error.contains("unknown device") && error.contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn a_missing_cuda_device_is_an_error_that_names_it() {
        let devices = Device::parse("cpu,cuda:4095").unwrap().unwrap();
        assert_eq!(devices[0].check(), Ok(()));
        let error = devices[1].check().unwrap_err().to_string();
        for part in ["device=cuda:4095 cannot be used: ", "use device=auto"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
