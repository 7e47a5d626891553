// SPDX-License-Identifier: MIT OR Apache-2.0
//! PyTorch files.

mod copies;
mod malformed;

use std::{fs, path::PathBuf};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error},
    weights::Checkpoint,
};
use half::{bf16, f16};

use crate::torch::{self, Pickle, Tensor, state_dict};

/// A temporary folder with a PyTorch file.
struct Torch(tempfile::TempDir);

impl Torch {
    fn new(pickle: &[u8], storages: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        torch::write(&folder.path().join("weights.pt"), pickle, storages);
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("weights.pt")
    }

    fn copy(&self) -> PathBuf {
        self.0.path().join("weights.pt.f16.safetensors")
    }

    fn open(&self, keys: &[(&str, &[usize])]) -> Result<candle_nn::VarBuilder<'static>, Error> {
        let ignored_prefixes = vec!["visual.".into()];
        let checkpoint = Checkpoint { ignored_prefixes, ..Checkpoint::new(self.path()) };
        let keys = keys.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
        checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ())
    }

    /// The values of a tensor.
    fn read(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let tensor = self.open(&[(name, shape)]).unwrap().get(shape, name).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn refusal(&self, keys: &[(&str, &[usize])]) -> String {
        let error = self.open(keys).err().unwrap().to_string();
        assert!(error.contains("weights.pt") && !self.copy().exists(), "{error}");
        error
    }
}

/// A one-dimensional tensor of a whole storage.
fn whole<'a>(kind: &'a str, storage: &'a str, shape: &'a [usize; 1]) -> Tensor<'a> {
    Tensor { kind, storage, length: shape[0], offset: 0, shape, strides: &[1] }
}

/// A file whose storage `0` contains 0, 1, ….
fn counting(pickle: Pickle, count: u16) -> Torch {
    let bytes: Vec<_> = (0..count).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    Torch::new(&pickle.end(), &[("0", &bytes)])
}

#[test]
fn all_float_types_are_read() {
    // Two exact values, a rounded one, then the smallest and the largest of f16.
    let numbers = [0.0, -1.5, 1.0 / 3.0, 6e-8, 65504.0_f64];
    let read = |kind, bytes: Vec<u8>| {
        let pickle = state_dict(Pickle::new(), &[("a", whole(kind, "0", &[5]))]);
        Torch::new(&pickle.end(), &[("0", &bytes)]).read("a", &[5])
    };
    let bytes = |encode: fn(f64) -> Vec<u8>| numbers.into_iter().flat_map(encode).collect();
    let expected = numbers.map(|n| f16::from_f64(n).to_f32());
    let f16_bytes = bytes(|n| f16::from_f64(n).to_le_bytes().into());
    assert_eq!(read("HalfStorage", f16_bytes), expected);
    assert_eq!(read("FloatStorage", bytes(|n| (n as f32).to_le_bytes().into())), expected);
    assert_eq!(read("DoubleStorage", bytes(|n| n.to_le_bytes().into())), expected);
    // bf16 would round the largest f16 up.
    let narrow = |n: f64| bf16::from_f64(n.min(60000.0));
    let bf16_bytes = bytes(|n| bf16::from_f64(n.min(60000.0)).to_le_bytes().into());
    let expected = numbers.map(|n| f16::from_f32(narrow(n).to_f32()).to_f32());
    assert_eq!(read("BFloat16Storage", bf16_bytes), expected);
}

#[test]
fn a_state_dict_may_be_nested_next_to_other_data() {
    let inner = |pickle| state_dict(pickle, &[("a", whole("FloatStorage", "0", &[4]))]);
    // {"epoch": 3, "state_dict": …, "rest": [None, (1.0, True)]}
    let pickle = Pickle::new().raw(b"}(").text("epoch").int(3).text("state_dict");
    let pickle = inner(pickle).text("rest").raw(b"](N").raw(b"G\x3f\xf0\0\0\0\0\0\0\x88\x86eu");
    assert_eq!(counting(pickle, 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(counting(inner(Pickle::new()), 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}

/// What training scripts save beside the weights, as Python 3.11 pickles it.
#[test]
fn extras_beside_the_state_dict_are_skipped() {
    let namespace = |pickle: Pickle| {
        let object = pickle.global("argparse", "Namespace").raw(b")\x81}(");
        object.text("lr").raw(b"G\x3f\xf0\0\0\0\0\0\0").text("out").int(3).raw(b"ub")
    };
    let scalar = |pickle: Pickle| {
        let kind = pickle.global("numpy.core.multiarray", "scalar").global("numpy", "dtype");
        let kind = kind.raw(b"(").text("f8").raw(b"\x89\x88tR(K\x03").text("<");
        let kind = kind.raw(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb");
        kind.global("_codecs", "encode").raw(b"(").text("\0").text("latin1").raw(b"tR\x86R")
    };
    let set = |pickle: Pickle| pickle.global("__builtin__", "set").raw(b"](K\x01K\x02e\x85R");
    let size = |pickle: Pickle| pickle.global("torch", "Size").raw(b"K\x02K\x03\x86\x85R");
    let wide = |pickle: Pickle| pickle.raw(b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f");
    let wider = |pickle: Pickle| pickle.raw(b"\x8b\x2c\x01\0\0").raw(&[7; 300]);
    let defaults = |pickle: Pickle| {
        let made = pickle.global("collections", "defaultdict").global("__builtin__", "list");
        made.raw(b"\x85R(K\x01](K\x02K\x03eu")
    };
    let partial = |pickle: Pickle| {
        let made = pickle.global("functools", "partial").global("torch.optim", "Adam");
        made.raw(b"\x85R(").global("torch.optim", "Adam").raw(b")}NtbK\x01\x85R")
    };
    // l = []; l.append((l,))
    let recursive = |pickle: Pickle| pickle.raw(b"]q\x63h\x63\x85q\x640h\x64a");
    let quantized = |pickle: Pickle| {
        let rebuild = pickle.global("torch._utils", "_rebuild_qtensor").raw(b"((").text("storage");
        let storage = rebuild.global("torch", "QInt8Storage").text("9").text("cpu").int(4);
        storage.raw(b"tQK\0K\x04\x85K\x01\x85tR")
    };
    let dtype = |pickle: Pickle| pickle.global("torch", "float32");
    type Extra<'a> = &'a dyn Fn(Pickle) -> Pickle;
    let extras: [Extra; 11] = [
        &namespace, &scalar, &set, &size, &wide, &wider, &defaults, &partial, &recursive,
        &quantized, &dtype,
    ];
    let inner = |pickle| state_dict(pickle, &[("a", whole("FloatStorage", "0", &[4]))]);
    for (n, extra) in extras.into_iter().enumerate() {
        let pickle = extra(Pickle::new().raw(b"}(").text("args")).text("state_dict");
        let pickle = extra(inner(pickle).text("more")).raw(b"u");
        assert_eq!(counting(pickle, 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0], "{n}");
        // In the state dict it is an error.
        let pickle = extra(Pickle::new().raw(b"}").text("a")).raw(b"s");
        let error = counting(pickle, 4).refusal(&[("a", &[4])]);
        assert!(error.contains("a is ") && error.contains("not a tensor"), "{n}: {error}");
    }
}

/// Archives of 4 GiB and more, which have 64-bit fields.
#[test]
fn an_archive_with_64_bit_fields_is_read() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let file = counting(pickle, 4);
    let bytes = fs::read(file.path()).unwrap();
    let (u16_at, u32_at) = (
        |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()),
        |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()),
    );
    let end = bytes.len() - 22;
    let (count, start) = (u16_at(end + 10), u32_at(end + 16) as usize);
    let (mut at, mut archive) = (start, bytes[..start].to_vec());
    for _ in 0..count {
        let name = at + 46..at + 46 + usize::from(u16_at(at + 28));
        let mut header = bytes[at..at + 46].to_vec();
        for field in [20, 24, 42] {
            header[field..field + 4].fill(0xff);
        }
        header[30..32].copy_from_slice(&28_u16.to_le_bytes());
        archive.extend([&header, &bytes[name.clone()], &[1, 0, 24, 0]].concat());
        for field in [24, 20, 42] {
            archive.extend(u64::from(u32_at(at + field)).to_le_bytes());
        }
        at = name.end + usize::from(u16_at(at + 30));
    }
    let (size, end64) = ((archive.len() - start) as u64, archive.len() as u64);
    archive.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0");
    for field in [count.into(), count.into(), size, start as u64] {
        archive.extend(u64::to_le_bytes(field));
    }
    archive.extend([b"PK\x06\x07\0\0\0\0", &end64.to_le_bytes()[..], &[1, 0, 0, 0]].concat());
    archive.extend([b"PK\x05\x06\0\0\0\0", &[0xff; 12][..], &[0, 0]].concat());
    fs::write(file.path(), archive).unwrap();
    assert_eq!(file.read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn parameters_are_read_as_tensors() {
    let tensor = whole("FloatStorage", "0", &[2]);
    let pickle = Pickle::new().raw(b"}").text("a").global("torch._utils", "_rebuild_parameter");
    let pickle = pickle.raw(b"(").tensor(&tensor).raw(b"\x88").dict().raw(b"tRs");
    assert_eq!(counting(pickle, 2).read("a", &[2]), [0.0, 1.0]);
}

#[test]
fn strided_views_of_a_shared_storage_are_read() {
    let view = |offset, shape, strides| Tensor {
        kind: "FloatStorage",
        storage: "0",
        length: 12,
        offset,
        shape,
        strides,
    };
    let tensors = [
        ("part", view(3, &[4], &[1])),
        ("transposed", view(0, &[4, 3], &[1, 4])),
        ("permuted", view(0, &[2, 2, 3], &[3, 6, 1])),
        ("columns", view(1, &[3, 2], &[4, 2])),
        ("expanded", view(5, &[2, 3], &[0, 0])),
        ("number", view(7, &[], &[])),
        ("empty", view(0, &[0, 3], &[3, 1])),
    ];
    let file = counting(state_dict(Pickle::new(), &tensors), 12);
    let keys: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor.shape)).collect();
    let weights = file.open(&keys).unwrap();
    for (name, expected) in [
        ("part", vec![3, 4, 5, 6]),
        ("transposed", vec![0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]),
        ("permuted", vec![0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]),
        ("columns", vec![1, 3, 5, 7, 9, 11]),
        ("expanded", vec![5; 6]),
        ("number", vec![7]),
        ("empty", vec![]),
    ] {
        let shape = keys.iter().find(|(key, _)| *key == name).unwrap().1;
        let found = weights.get(shape, name).unwrap().flatten_all().unwrap();
        let expected: Vec<_> = expected.into_iter().map(|n| n as f32).collect();
        assert_eq!(found.to_vec1::<f32>().unwrap(), expected, "{name}");
    }
}

#[test]
fn a_view_that_exceeds_its_storage_is_refused() {
    for (offset, shape, strides) in [
        (0, &[13][..], &[1][..]),
        (9, &[4], &[1]),
        (0, &[3, 4], &[5, 1]),
        (0, &[usize::MAX >> 1, 4], &[1, 1]),
        (usize::MAX >> 1, &[1], &[1]),
        (0, &[2], &[usize::MAX >> 1]),
        (0, &[2, 2], &[1]),
    ] {
        let tensor =
            Tensor { kind: "FloatStorage", storage: "0", length: 99, offset, shape, strides };
        let file = counting(state_dict(Pickle::new(), &[("a", tensor)]), 12);
        let error = file.refusal(&[("a", shape)]);
        assert!(error.contains("exceeds its storage") || error.contains("has strides"), "{error}");
    }
}

#[test]
fn a_value_that_is_not_finite_in_f16_is_refused() {
    for number in [1e6_f32, f32::NAN, f32::NEG_INFINITY] {
        let pickle =
            state_dict(Pickle::new(), &[("some.weight", whole("FloatStorage", "0", &[1]))]);
        let file = Torch::new(&pickle.end(), &[("0", &number.to_le_bytes())]);
        let error = file.refusal(&[("some.weight", &[1])]);
        assert!(error.contains("some.weight: a value is not finite in F16"), "{error}");
    }
}

#[test]
fn missing_and_unexpected_tensors_are_named_and_ignored_ones_are_not() {
    let tensors = ["a", "b", "visual.c"].map(|name| (name, whole("FloatStorage", "0", &[4])));
    let file = counting(state_dict(Pickle::new(), &tensors), 4);
    let error = file.refusal(&[("a", &[2, 2]), ("c", &[4])]);
    for part in ["c [4] is missing", "a has shape [4], expected [2, 2]", "b [4] is unexpected"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!error.contains("visual"), "{error}");
    file.open(&[("a", &[4]), ("b", &[4])]).unwrap();
}

#[test]
fn integer_tensors_are_refused() {
    let pickle = state_dict(Pickle::new(), &[("steps", whole("LongStorage", "0", &[1]))]);
    let file = Torch::new(&pickle.end(), &[("0", &[0; 8])]);
    assert!(file.refusal(&[("steps", &[1])]).contains("steps: it has dtype I64"));
}

/// The header of the published autoencoder has 46,208 = 0xB480 bytes.
#[test]
fn a_safetensors_file_may_begin_with_the_first_byte_of_a_pickle() {
    let bytes = include_bytes!("../fixtures/header_0x80.safetensors.bin");
    assert_eq!(bytes[0], 0x80);
    let file = Torch(tempfile::tempdir().unwrap());
    fs::write(file.path(), bytes).unwrap();
    let expected: Vec<f32> = bytes[bytes.len() - 24..]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(file.read("a.weight", &[2, 3]), expected);
}
