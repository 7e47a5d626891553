// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads, caches and launches kernels.
//!
//! build.rs compiles each .cu file with nvcc to a fatbin, which holds an image for every entry of
//! [`architectures`](super::architectures). The plugin embeds the fatbins. When a device needs the
//! first kernel of a file, its driver loads the matching image; nothing is compiled at run time.

use std::{collections::HashMap, sync::Arc};

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
use parking_lot::Mutex;

use super::record::{Work, timed};

/// Dynamic shared memory per thread block that needs no opt-in, in bytes.
const DEFAULT_SHARED: u32 = 48 << 10;

/// A kernel file.
pub(super) struct Source {
    pub(super) name: &'static str,
    /// See [`fatbin`].
    pub(super) fatbin: &'static [u8],
}

/// Embeds the fatbin of a .cu file that build.rs has compiled.
macro_rules! fatbin {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))
    };
}
pub(super) use fatbin;

impl Source {
    /// Returns a kernel with `shared` bytes of dynamic shared memory per thread block. Modules and
    /// functions are cached.
    pub(super) fn kernel(&self, device: &CudaDevice, name: String, shared: u32) -> Result<Kernel> {
        /// Cache by device ordinal and by file or kernel.
        type Cache<K, V> = Lazy<Mutex<HashMap<K, V>>>;
        static MODULES: Cache<(usize, &str), Arc<CudaModule>> = Lazy::new(Mutex::default);
        static FUNCTIONS: Cache<(usize, String), CudaFunction> = Lazy::new(Mutex::default);
        let stream = device.cuda_stream();
        let context = stream.context();
        context.bind_to_thread().w()?;
        let mut functions = FUNCTIONS.lock();
        let key = (context.ordinal(), name);
        if let Some(function) = functions.get(&key) {
            return Ok(Kernel { function: function.clone(), stream, shared });
        }
        let mut modules = MODULES.lock();
        let module = match modules.get(&(key.0, self.name)) {
            Some(module) => module.clone(),
            None => {
                // `Ptx` is cudarc's type for any image that a driver loads.
                let module = context.load_module(Ptx::from_binary(self.fatbin.to_vec())).w()?;
                modules.insert((key.0, self.name), module.clone());
                module
            }
        };
        let function = module.load_function(&key.1).w()?;
        if shared > DEFAULT_SHARED {
            let attribute = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32).w()?;
        }
        functions.insert(key, function.clone());
        Ok(Kernel { function, stream, shared })
    }
}

/// A kernel that is loaded on a device.
pub(super) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
    shared: u32,
}

/// Device address of a tensor's first element.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Address(u64);

// SAFETY: a pointer, as kernels expect it.
unsafe impl DeviceRepr for Address {}

impl Address {
    pub(super) const NULL: Self = Self(0);

    /// Address of a contiguous tensor. The tensor must live until the kernel is launched.
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(cuda) = &*storage else {
            candle_core::bail!("expected a tensor on a CUDA device");
        };
        if !layout.is_contiguous() {
            candle_core::bail!("expected a contiguous tensor, got {layout:?}");
        }
        let stream = cuda.device.cuda_stream();
        let first = match &cuda.slice {
            CudaStorageSlice::F16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
            _ => candle_core::bail!(
                "the CUDA kernels do not support tensors of type {:?}",
                tensor.dtype()
            ),
        };
        let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
        Ok(Self(first + offset as u64))
    }

    /// The address as a pointer for driver calls.
    pub(super) fn pointer(self) -> *mut std::ffi::c_void {
        self.0 as *mut _
    }

    /// The largest power of two that divides the address, at most 256, the alignment of
    /// allocations.
    #[cfg(feature = "bench")]
    pub(super) fn alignment(self) -> u32 {
        1 << self.0.trailing_zeros().min(8)
    }

    /// The address `bytes` further.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }

    /// Address of an optional tensor, or null.
    pub(super) fn of_some(tensor: Option<&Tensor>) -> Result<Self> {
        tensor.map_or(Ok(Self::NULL), Self::of)
    }
}

/// A kernel argument.
pub(super) trait Argument {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>);
}

impl<T: DeviceRepr> Argument for T {
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(self);
    }
}

/// Suffix of kernel names for a type.
pub(super) fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        DType::F32 => Ok("f32"),
        other => candle_core::bail!("the CUDA kernels do not support the type {other:?}"),
    }
}

/// Allocates an uninitialised tensor for a kernel to write.
///
/// # Safety
/// The kernel must write all elements.
pub(super) unsafe fn unwritten(shape: impl Into<Shape>, like: &Tensor) -> Result<Tensor> {
    // SAFETY: the caller guarantees it.
    unsafe { Tensor::empty(shape, like.dtype(), like.device()) }
}

/// Converts a size to the kernels' integer type.
pub(super) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(candle_core::Error::wrap)
}

/// Threads per block for rows of `width` elements: a multiple of the vectors in a row where
/// possible, so that no thread is idle.
pub(super) fn threads(width: usize, dtype: DType) -> u32 {
    let columns = width / vector_width(width, dtype);
    match columns {
        0..=640 => (columns * (256 / columns).max(1)) as u32,
        _ => 256,
    }
}

/// Elements that a thread accesses at a time: 16 bytes if that divides the row, else one.
pub(super) fn vector_width(width: usize, dtype: DType) -> usize {
    let count = 16 / dtype.size_in_bytes();
    if width.is_multiple_of(count) { count } else { 1 }
}

impl Kernel {
    /// Launches the kernel with `threads` threads per block. `work` describes it for recordings.
    ///
    /// # Safety
    /// The arguments must match the kernel's parameters, and the tensors behind the addresses must
    /// have the sizes that the kernel expects.
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
        // SAFETY: the caller guarantees it.
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

    /// Images of a fatbin by architecture. The format is a header of 16 bytes, then images, each
    /// with a header that holds both lengths.
    fn images(fatbin: &[u8]) -> BTreeMap<u32, &[u8]> {
        let number = |at: usize| u32::from_le_bytes(fatbin[at..at + 4].try_into().unwrap());
        let mut images = BTreeMap::new();
        let mut at = 16;
        while at < fatbin.len() {
            let (header, size) = (number(at + 4) as usize, number(at + 8) as usize);
            let image = &fatbin[at + header..at + header + size];
            assert!(image.starts_with(b"\x7fELF"), "the image is PTX or compressed");
            images.insert(number(at + 28), image);
            at += header + size;
        }
        images
    }

    /// The kernels that the host launches, by file.
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
                    // The code of a kernel is in a section with its name.
                    let section = format!(".text.{kernel}\0");
                    let contains =
                        image.windows(section.len()).any(|bytes| bytes == section.as_bytes());
                    assert!(contains, "{kernel} for {architecture}");
                }
            }
        }
    }
}
