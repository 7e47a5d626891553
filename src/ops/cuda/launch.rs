// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels: how they are compiled, kept and started.
//!
//! They are compiled at run time, so they can be changed without building: VENHANCE_KERNELS names a folder with
//! files that are read in the place of those in the binary.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
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
    nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts},
};
use once_cell::sync::Lazy;

use super::record::{Work, timed};

/// What all kernels are written with.
const WRAPPERS: &str = include_str!("device.cuh");
/// What those for Hopper are written with as well.
const HOPPER: &str = include_str!("hopper.cuh");

/// Shared memory that a block gets without being asked, in bytes.
const USUAL_SHARED: u32 = 48 << 10;

/// A file of kernels.
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    /// Whether it is for Hopper alone.
    pub(super) hopper: bool,
}

static PORTABLE: AtomicBool = AtomicBool::new(false);

/// Whether only kernels are to be used that run on every device: for benchmarks.
pub fn use_portable_kernels(only: bool) {
    PORTABLE.store(only, Ordering::Relaxed);
}

/// Whether a device has what came with sm_90a, and is no more on later ones.
pub(super) fn is_hopper(device: &CudaDevice) -> Result<bool> {
    let portable = PORTABLE.load(Ordering::Relaxed);
    Ok(!portable && device.cuda_stream().context().compute_capability().w()?.0 == 9)
}

/// What a folder for trying kernels has in the place of a file.
fn changed(name: &str) -> Option<String> {
    let folder = std::env::var_os("VENHANCE_KERNELS")?;
    std::fs::read_to_string(std::path::Path::new(&folder).join(name)).ok()
}

impl Source {
    /// For devices of this compute capability.
    fn compile(&self, (major, minor): (i32, i32)) -> Result<Ptx> {
        let name = format!("{}.cu", self.name);
        let mut texts = vec![("device.cuh", WRAPPERS)];
        let mut feature = "";
        if self.hopper {
            texts.push(("hopper.cuh", HOPPER));
            feature = "a";
        }
        texts.push((&name, self.text));
        let texts = texts.into_iter();
        let texts = texts.map(|(name, text)| changed(name).unwrap_or_else(|| text.into()));
        let text = texts.collect::<String>();
        let options = CompileOptions {
            name: Some(name),
            options: vec![
                format!("--gpu-architecture=compute_{major}{minor}{feature}"),
                "--std=c++17".into(),
            ],
            ..CompileOptions::default()
        };
        compile_ptx_with_opts(text, options).w()
    }

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
                let ptx = self.compile(context.compute_capability().w()?)?;
                let module = context.load_module(ptx).w()?;
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
    use super::*;
    use crate::ops::cuda;

    /// The kernels of a file that its text exports, by what their names may be.
    fn exported(ptx: &Ptx) -> Vec<String> {
        let source = ptx.to_src();
        let names = source.lines().filter_map(|line| line.split(".entry ").nth(1));
        names.map(|name| name.trim_end_matches('(').to_owned()).collect()
    }

    #[test]
    fn every_kernel_compiles_for_every_kind_of_device() {
        for source in cuda::SOURCES {
            let devices: &[_] =
                if source.hopper { &[(9, 0)] } else { &[(8, 0), (8, 9), (9, 0), (12, 0)] };
            for capability in devices {
                let ptx = source.compile(*capability).unwrap_or_else(|error| panic!("{error}"));
                let names = exported(&ptx);
                assert!(names.iter().any(|name| name.ends_with("_bf16")), "{names:?}");
            }
        }
    }
}
