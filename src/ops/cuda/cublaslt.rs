// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linear layers through cuBLASLt, to be measured beside the kernels.

use std::{collections::HashMap, ffi::c_void, ptr, sync::Arc};

use candle_core::{CudaDevice, DType, Error, Result, Tensor, cuda::WrapErr};
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasLtEpilogue_t, cublasLtMatmulDescAttributes_t as DescAttribute,
            cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
        },
    },
    driver::{CudaSlice, CudaStream, DevicePtr},
};
use once_cell::sync::Lazy;
use parking_lot::Mutex;

use super::{
    launch::{Address, unwritten},
    operands::{Operands, Product},
    record::timed,
};

/// Bytes that an algorithm may use: NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

/// The library on a device.
struct Library {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    /// Products use it one after the other: they are on one stream.
    workspace: CudaSlice<u8>,
    /// Algorithms chosen by the library's heuristics.
    algorithms: Mutex<HashMap<Layer, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: a handle may be used by several threads at a time.
unsafe impl Send for Library {}
// SAFETY: likewise.
unsafe impl Sync for Library {}

/// Key of the algorithm cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Layer {
    dtype: DType,
    rows: usize,
    inputs: usize,
    outputs: usize,
    biased: bool,
    /// Bytes that all addresses are multiples of.
    alignment: u32,
}

/// cuBLASLt's objects, each with the function that frees it.
struct Object<T: Copy>(T, unsafe fn(T) -> std::result::Result<(), CublasError>);

impl<T: Copy> Drop for Object<T> {
    fn drop(&mut self) {
        // SAFETY: the object is valid, and nothing else frees it.
        let freed = unsafe { self.1(self.0) };
        debug_assert_eq!(freed, Ok(()));
    }
}

/// Descriptions of a product. cuBLASLt's matrices are column-major, so it computes the transposed:
/// out [outputs, rows] = weightᵀ of [inputs, outputs] · x [inputs, rows].
struct Description {
    product: Object<sys::cublasLtMatmulDesc_t>,
    weight: Object<sys::cublasLtMatrixLayout_t>,
    x: Object<sys::cublasLtMatrixLayout_t>,
    /// Layout of the output and of `add`.
    out: Object<sys::cublasLtMatrixLayout_t>,
}

impl Description {
    fn new(layer: &Layer, bias: Address) -> Result<Self> {
        let dtype = match layer.dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            other => candle_core::bail!("cuBLASLt is not used for {other:?}"),
        };
        let matrix = |rows: usize, columns: usize| {
            let matrix =
                result::create_matrix_layout(dtype, rows as u64, columns as u64, rows as i64);
            Ok::<_, Error>(Object(matrix.map_err(Error::wrap)?, result::destroy_matrix_layout))
        };
        let product = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        );
        let product = Object(product.map_err(Error::wrap)?, result::destroy_matmul_desc);
        // CUBLAS_OP_T, which cudarc's bindings of cuBLASLt lack.
        let transposed = 1_i32;
        set(product.0, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
        if layer.biased {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(product.0, DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(product.0, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.pointer())?;
        }
        Ok(Self {
            product,
            weight: matrix(layer.inputs, layer.outputs)?,
            x: matrix(layer.inputs, layer.rows)?,
            out: matrix(layer.outputs, layer.rows)?,
        })
    }
}

/// Sets a product's attribute.
fn set<T>(product: sys::cublasLtMatmulDesc_t, name: DescAttribute, value: &T) -> Result<()> {
    let value_at = ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the library copies the value, of the attribute's type.
    let set = unsafe { result::set_matmul_desc_attribute(product, name, value_at, size_of::<T>()) };
    set.map_err(Error::wrap)
}

impl Library {
    fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static LIBRARIES: Lazy<Mutex<HashMap<usize, Arc<Library>>>> = Lazy::new(Mutex::default);
        let stream = device.cuda_stream();
        let ordinal = stream.context().ordinal();
        stream.context().bind_to_thread().w()?;
        let mut libraries = LIBRARIES.lock();
        if let Some(library) = libraries.get(&ordinal) {
            return Ok(library.clone());
        }
        let library = Arc::new(Self {
            handle: result::create_handle().map_err(Error::wrap)?,
            // SAFETY: products write it before they read it.
            workspace: unsafe { stream.alloc(WORKSPACE) }.w()?,
            stream,
            algorithms: Mutex::default(),
        });
        libraries.insert(ordinal, library.clone());
        Ok(library)
    }

    fn algorithm(
        &self,
        layer: &Layer,
        description: &Description,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut algorithms = self.algorithms.lock();
        if let Some(algorithm) = algorithms.get(layer) {
            return Ok(*algorithm);
        }
        let preference = result::create_matmul_pref().map_err(Error::wrap)?;
        let preference = Object(preference, result::destroy_matmul_pref);
        let Description { product, weight, x, out } = description;
        let set = |name, value: *const c_void, size| {
            // SAFETY: the library copies the value, of the attribute's type.
            unsafe { result::set_matmul_pref_attribute(preference.0, name, value, size) }
                .map_err(Error::wrap)
        };
        let most = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        set(most, (&raw const WORKSPACE_BYTES).cast(), size_of::<u64>())?;
        for name in [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(name, ptr::from_ref(&layer.alignment).cast(), size_of::<u32>())?;
        }
        // SAFETY: all handles are valid until the call returns.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                product.0,
                weight.0,
                x.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        let found = found.map_err(|error| Error::wrap(error).context(format!("{layer:?}")))?;
        algorithms.insert(*layer, found.algo);
        Ok(found.algo)
    }
}

/// `WORKSPACE` in the type of the preference attribute.
static WORKSPACE_BYTES: u64 = WORKSPACE as u64;

/// Whether cuBLASLt can compute this: rows of one tensor, in a type for tensor cores.
pub(super) fn serves(operands: &Operands, product: &Product) -> bool {
    operands.parts.len() == 1
        && product.taps == 1
        && matches!(operands.parts[0].dtype(), DType::F16 | DType::BF16)
}

/// As [`super::product::run`], whose tensors are contiguous and of one type here.
pub(super) fn run(operands: &Operands, product: &Product, shape: Vec<usize>) -> Result<Tensor> {
    let Operands { parts, weight, bias, add, .. } = *operands;
    let (outputs, inputs) = (shape[shape.len() - 1], parts[0].dim(parts[0].rank() - 1)?);
    let library = Library::of(parts[0].device().as_cuda_device()?)?;
    let rows = parts[0].elem_count() / inputs;
    // SAFETY: the product writes all of it.
    let output = unsafe { unwritten(shape, parts[0])? };
    let (x, weight, out) = (Address::of(parts[0])?, Address::of(weight)?, Address::of(&output)?);
    let (bias_at, add_at) = (Address::of_some(bias)?, Address::of_some(add)?);
    let all = [x, weight, out, bias_at, add_at];
    let layer = Layer {
        dtype: parts[0].dtype(),
        rows,
        inputs,
        outputs,
        biased: bias.is_some(),
        alignment: all.into_iter().map(Address::alignment).min().unwrap_or(1),
    };
    let description = Description::new(&layer, bias_at)?;
    let algorithm = library.algorithm(&layer, &description)?;
    let (one, added) = (1.0_f32, if add.is_some() { 1.0_f32 } else { 0.0 });
    let mut multiplied = Ok(());
    let multiply = || {
        // SAFETY: the tensors live until the launch and have the sizes of their layouts; `add` is read only if it is
        // present.
        multiplied = unsafe {
            result::matmul(
                library.handle,
                description.product.0,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&added).cast(),
                weight.pointer(),
                description.weight.0,
                x.pointer(),
                description.x.0,
                if add.is_some() { add_at.pointer() } else { out.pointer() },
                description.out.0,
                out.pointer(),
                description.out.0,
                &algorithm,
                library.workspace.device_ptr(&library.stream).0 as *mut c_void,
                WORKSPACE,
                library.stream.cu_stream().cast(),
            )
        };
        Ok(())
    };
    timed(&library.stream, operands.work(product), multiply).w()?;
    multiplied.map_err(|error| Error::wrap(error).context(format!("{layer:?}")))?;
    Ok(output)
}
