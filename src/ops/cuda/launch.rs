// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels: how they are loaded, kept and launched.
//!
//! build.rs compiles each .cu file with nvcc into a fatbin, which holds an image for every entry of
//! [`architectures`](super::architectures). The plugin contains the fatbins; a device's driver takes the image that
//! fits when the first kernel of a file is needed, and compiles nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use candle_core::{
    CudaDevice, DType, Result, Shape, Storage, Tensor,
    cuda::{CudaStorageSlice, WrapErr},
};
use cudarc::{
    driver::{
        CudaFunction, CudaModule, CudaStream, DevicePtr, DeviceRepr, LaunchArgs, LaunchConfig,
        PushKernelArg, sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
    },
    nvrtc::Ptx,
};
use once_cell::sync::Lazy;

use super::record::{Work, timed};

/// Shared memory that a block gets without being asked, in bytes.
const USUAL_SHARED: u32 = 48 << 10;

/// A file of kernels.
pub(super) struct Source {
    pub(super) name: &'static str,
    /// See [`fatbin`].
    pub(super) fatbin: &'static [u8],
}

/// What build.rs has made of a .cu file.
macro_rules! fatbin {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}
pub(super) use fatbin;

impl Source {
    /// A kernel whose blocks have this much dynamic shared memory, in bytes.
    pub(super) fn kernel(&self, device: &CudaDevice, name: String, shared: u32) -> Result<Kernel> {
        /// By device, file, and kernel.
        type Known<K, V> = Lazy<Mutex<HashMap<K, V>>>;
        static MODULES: Known<(usize, &str), Arc<CudaModule>> = Lazy::new(Mutex::default);
        static FUNCTIONS: Known<(usize, String), CudaFunction> = Lazy::new(Mutex::default);
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().w()?;
        let mut functions = FUNCTIONS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let key = (context.ordinal(), name);
        if let Some(function) = functions.get(&key) {
            return Ok(Kernel { function: function.clone(), stream, shared });
        }
        let mut modules = MODULES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let module = match modules.get(&(key.0, self.name)) {
            Some(module) => module.clone(),
            None => {
                // `Ptx` is cudarc's type for all that a driver loads.
                let module = context.load_module(Ptx::from_binary(self.fatbin.to_vec())).w()?;
                modules.insert((key.0, self.name), module.clone());
                module
            }
        };
        let function = module.load_function(&key.1).w()?;
        if shared > USUAL_SHARED {
            let most = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).w()?;
        }
        functions.insert(key, function.clone());
        Ok(Kernel { function, stream, shared })
    }
}

/// A kernel of a device.
pub(super) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
    shared: u32,
}

/// The address of a tensor's first number.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Address(u64);

// SAFETY: a pointer, as kernels take it.
unsafe impl DeviceRepr for Address {}

impl Address {
    pub(super) const NULL: Self = Self(0);

    /// Of a contiguous tensor, which has to live until the kernel is launched.
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(cuda) = &*storage else {
            candle_core::bail!("a tensor of a CUDA device was expected");
        };
        if !layout.is_contiguous() {
            candle_core::bail!("a contiguous tensor was expected, not {layout:?}");
        }
        let stream = cuda.device.cuda_stream();
        let first = match &cuda.slice {
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
            _ => candle_core::bail!("kernels take no tensor of {:?}", tensor.dtype()),
        };
        let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Self(first + offset as u64))
    }

    /// As the driver takes it.
    pub(super) fn pointer(self) -> *mut std::ffi::c_void {
        self.0 as *mut _
    }

    /// The largest power of two that it is a multiple of, up to that of all memory that is given out.
    pub(super) fn alignment(self) -> u32 {
        1 << self.0.trailing_zeros().min(8)
    }

    /// So many bytes further.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    pub(super) fn of_some(tensor: Option<&Tensor>) -> Result<Self> {
        tensor.map_or(Ok(Self::NULL), Self::of)
    }
}

/// Something that a kernel takes.
pub(super) trait Argument {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

impl<T: DeviceRepr> Argument for T {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

/// How kernels' names end for a type.
pub(super) fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        DType::F32 => Ok("f32"),
        other => candle_core::bail!("there are no kernels for {other:?}"),
    }
}

/// A tensor for a kernel to write.
///
/// # Safety
/// The kernel has to write all of it.
pub(super) unsafe fn unwritten(shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    // SAFETY: as the caller promises.
    unsafe { Tensor::empty(shape, like.dtype(), like.device()) }
}

/// A size as kernels take it.
pub(super) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(candle_core::Error::wrap)
}

/// Threads of a block over rows of `width` numbers, which each takes 16 bytes of where that divides them: none
/// is idle.
pub(super) fn threads(width: usize, dtype: DType) -> u32 {
    let columns = width / together(width, dtype);
    match columns {
        0..=640 => (columns * (256 / columns).max(1)) as u32,
        _ => 256,
    }
}

/// Numbers that a thread takes at a time.
pub(super) fn together(width: usize, dtype: DType) -> usize {
    let count = 16 / dtype.size_in_bytes();
    if width.is_multiple_of(count) { count } else { 1 }
}

impl Kernel {
    /// Starts the kernel on blocks of `threads`; `work` is what it does.
    ///
    /// # Safety
    /// The arguments have to be those of the kernel, and its addresses those of tensors as large as it takes
    /// them to be.
    pub(super) unsafe fn launch<const N: usize>(
        &self,
        work: Work,
        grid: (usize, usize, usize),
        threads: u32,
        arguments: [&dyn Argument; N],
    ) -> Result<()> {
        let size = |size: usize| u32::try_from(size).map_err(candle_core::Error::wrap);
        let config = LaunchConfig {
            grid_dim: (size(grid.0)?, size(grid.1)?, size(grid.2)?),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: self.shared,
        };
        let mut launch = self.stream.launch_builder(&self.function);
        for argument in arguments {
            argument.push(&mut launch);
        }
        // SAFETY: as the caller promises.
        timed(&self.stream, work, || unsafe { launch.launch(config) }.map(drop)).w()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::ops::cuda::{
        SOURCES,
        architectures::{HOPPER, PORTABLE},
    };

    /// The images of a fatbin by their architecture: a header of 16 bytes, then images, each behind a header that says
    /// how long both are.
    fn images(fatbin: &[u8]) -> BTreeMap<u32, &[u8]> {
        let number = |at: usize| u32::from_le_bytes(fatbin[at..at + 4].try_into().unwrap());
        let mut images = BTreeMap::new();
        let mut at = 16;
        while at < fatbin.len() {
            let (header, size) = (number(at + 4) as usize, number(at + 8) as usize);
            let image = &fatbin[at + header..at + header + size];
            assert!(image.starts_with(b"\x7fELF"), "PTX, or compressed");
            images.insert(number(at + 28), image);
            at += header + size;
        }
        images
    }

    /// The kernels that the host asks for, by their file.
    fn kernels() -> BTreeMap<&'static str, Vec<String>> {
        let of = |stems: &[&str], types: &[&str]| {
            let names =
                stems.iter().flat_map(|stem| types.iter().map(move |t| format!("{stem}_{t}")));
            names.collect::<Vec<_>>()
        };
        let (halves, all) = (["f16", "bf16"], ["f16", "bf16", "f32"]);
        let products = ["product_narrow", "product_32", "product_128", "product_160"];
        let hopper = ["product_hopper_128", "product_hopper_256", "product_hopper_320"];
        let norms = ["moments", "moments_end", "affine", "layer_norm"];
        BTreeMap::from([
            ("attention", of(&["attention", "attention_short", "attention_medium"], &halves)),
            ("attention_hopper", of(&["attention_hopper"], &halves)),
            ("gate", of(&["geglu"], &all)),
            ("pixels", vec!["copy_runs".into()]),
            ("norm", [of(&norms, &all), of(&["group"], &["affine"])].concat()),
            ("product", [of(&products, &halves), of(&["product"], &["f32"])].concat()),
            ("product_hopper", of(&hopper, &halves)),
        ])
    }

    #[test]
    fn fatbins_hold_every_kernel_for_every_architecture() {
        let kernels = kernels();
        for source in SOURCES {
            let images = images(source.fatbin);
            let expected = if source.name.ends_with("_hopper") { &[HOPPER] } else { &PORTABLE[..] };
            assert!(images.keys().eq(expected), "{}: {:?}", source.name, images.keys());
            for (architecture, image) in images {
                for kernel in &kernels[source.name] {
                    // A kernel's code is in a section of its name.
                    let section = format!(".text.{kernel}\0");
                    let found =
                        image.windows(section.len()).any(|bytes| bytes == section.as_bytes());
                    assert!(found, "{kernel} for {architecture}");
                }
            }
        }
    }
}
