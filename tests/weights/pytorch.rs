// SPDX-License-Identifier: MIT OR Apache-2.0
//! PyTorch files and their converted copies.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error},
    weights::{Checkpoint, keys::Keys},
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

#[test]
fn a_copy_has_the_type_that_the_network_needs() {
    let number = 1.0_f32 / 3.0;
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[1]))]);
    let file = Torch::new(&pickle.end(), &[("0", &number.to_le_bytes())]);
    let keys = Keys::from([("a".into(), vec![1])]);
    for (copy_dtype, expected, name) in [
        (DType::F32, number, "weights.pt.f32.safetensors"),
        (DType::F16, f16::from_f32(number).to_f32(), "weights.pt.f16.safetensors"),
    ] {
        let checkpoint = Checkpoint { copy_dtype, ..Checkpoint::new(file.path()) };
        let weights =
            checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ());
        let values = weights.unwrap().get(1, "a").unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values, [expected]);
        assert!(file.0.path().join(name).exists());
    }
}

#[test]
fn the_sizes_of_tensors_are_named_in_errors() {
    for (shape, text) in [
        (&b"(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t"[..], "a tensor has rank 9; at most 8"),
        (b"J\xff\xff\xff\xff\x85", "a tensor has the negative size -1"),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x85", "an integer of more than 8 bytes"),
        (b"N\x85", "a tensor has None as a size"),
        (b"]", "a tensor has a list as its shape"),
    ] {
        let pickle = Pickle::new().raw(b"}").text("a").global("torch._utils", "_rebuild_tensor_v2");
        let pickle = pickle.raw(b"((").text("storage").global("torch", "FloatStorage").text("0");
        let pickle = pickle.text("cpu").int(1).raw(b"tQK\0").raw(shape).raw(b"K\x01\x85tRs");
        let error = counting(pickle, 1).refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn names_in_errors_are_escaped_and_cut() {
    let name = format!("\u{1b}[31m{}", "x".repeat(1 << 20));
    let tensors = [(name.as_str(), whole("FloatStorage", "0", &[1]))];
    let storage = [("a", whole("FloatStorage", &name, &[1]))];
    let number = Pickle::new().raw(b"}").text(&name).int(1).raw(b"s");
    let header = format!(
        "{{\"{}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}}}",
        name.replace('\u{1b}', "\\u001b")
    );
    let safetensors = Torch(tempfile::tempdir().unwrap());
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(safetensors.path(), bytes).unwrap();
    for (file, text) in [
        (counting(state_dict(Pickle::new(), &tensors), 1), "is unexpected"),
        (
            counting(state_dict(Pickle::new(), &storage), 1),
            "the archive has no entry archive/data/",
        ),
        (counting(number, 1), "is the integer 1, not a tensor"),
        (safetensors, "\\u{1b}[31mxxx"),
    ] {
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {}", &error[..error.len().min(2000)]);
        assert!(error.len() < 1000 && !error.contains('\u{1b}'), "{} bytes", error.len());
    }
}

#[test]
fn the_errors_of_a_file_say_what_to_do() {
    let file = Torch(tempfile::tempdir().unwrap());
    let bytes =
        |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    for (bytes, text) in [
        (vec![], "neither a safetensors file nor a PyTorch file"),
        (b"<!DOCTYPE html><html>".to_vec(), "neither a safetensors file nor a PyTorch file"),
        (
            bytes(&" ".repeat((2 << 20) + 1)).into_iter().chain([0]).collect(),
            "the limit is 2097152",
        ),
        (bytes("{}"), "a [1] is missing"),
        (bytes("{"), "weights.pt failed"),
    ] {
        fs::write(file.path(), bytes).unwrap();
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {error}");
        assert!(error.ends_with("replace it by the published file"), "{error}");
    }
    fs::remove_file(file.path()).unwrap();
    let error = file.refusal(&[("a", &[1])]);
    assert!(error.ends_with("check that the file can be read"), "{error}");
}

#[test]
fn links_in_the_place_of_temporary_files_are_not_followed() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let file = counting(pickle, 4);
    let target = file.0.path().join("mine");
    let created = file.0.path().join("created");
    fs::write(&target, "mine").unwrap();
    symlink(&target, file.0.path().join("weights.pt.f16.safetensors.incomplete")).unwrap();
    // Where the copy goes: the link itself is replaced.
    symlink(&target, file.copy()).unwrap();
    assert_eq!(file.read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
    assert!(!file.copy().is_symlink());
    // A link in the place of the lock is not used. The copy goes to the cache.
    let other = Torch(tempfile::tempdir().unwrap());
    fs::copy(file.path(), other.path()).unwrap();
    symlink(&created, other.0.path().join("weights.pt.f16.safetensors.lock")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let output = read_with_cache(&other, cache.path());
    assert!(output.contains("read: [0.0, 1.0, 2.0, 3.0]"), "{output}");
    assert!(!created.exists() && !other.copy().exists());
    assert_eq!(fs::read(&target).unwrap(), b"mine");
}

#[test]
fn an_archive_that_claims_more_than_it_has_is_refused() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    let end = bytes.len() - 22;
    assert_eq!(bytes[end..end + 4], *b"PK\x05\x06");
    for (offset, value, text) in [
        // Entries, size and start of the central directory.
        (10, &u16::MAX.to_le_bytes()[..], "directory of the archive is truncated"),
        (12, &(9_u32 << 20).to_le_bytes(), "has 9437184 bytes; the limit is 8388608"),
        (16, &u32::MAX.to_le_bytes(), "no central directory"),
        (20, &5_u16.to_le_bytes(), "no central directory"),
    ] {
        let mut changed = bytes.clone();
        changed[end + offset..][..value.len()].copy_from_slice(value);
        fs::write(file.path(), changed).unwrap();
        let error = file.refusal(&[("a", &[12])]);
        assert!(error.contains(text), "{text}: {error}");
    }
    // A comment is allowed.
    let mut commented = [&bytes[..], b"hello"].concat();
    commented[end + 20] = 5;
    fs::write(file.path(), commented).unwrap();
    assert_eq!(file.read("a", &[12])[11], 11.0);
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
fn a_pickle_that_would_run_code_runs_nothing() {
    let marker = std::env::temp_dir().join(format!("venhance-ran-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let calls = |module: &str, name: &str| {
        Pickle::new().global(module, name).text(&command).raw(b"\x85R").end()
    };
    for (module, name) in
        [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
    {
        let file = Torch::new(&calls(module, name), &[]);
        let error = file.refusal(&[("a", &[1])]);
        let expected = format!("an object of {module}.{name}, which was not called");
        assert!(error.contains(&expected), "{error}");
    }
    // A tensor that a call would make.
    let tensor = Pickle::new().raw(b"}").text("a").global("os", "system").text(&command);
    let error = Torch::new(&tensor.raw(b"\x85Rs").end(), &[]).refusal(&[("a", &[1])]);
    assert!(error.contains("a is an object of os.system, which was not called"), "{error}");
    // Beside the state dict.
    let pickle = Pickle::new().raw(b"}(").text("x").global("os", "system").text(&command);
    let pickle = pickle.raw(b"\x85R").text("state_dict");
    let pickle = state_dict(pickle, &[("a", whole("FloatStorage", "0", &[4]))]).raw(b"u");
    assert_eq!(counting(pickle, 4).read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
    assert!(!marker.exists());
}

#[test]
fn malformed_pickles_are_errors() {
    let deep = [&[0x80, 2, b'N'][..], &[0x85; 1 << 20], b"."].concat();
    // A tuple of itself, forty times: 2⁴⁰ elements if it were copied.
    let mut doubling = vec![0x80, 2, b')', b'q', 0];
    (0..40).for_each(|_| doubling.extend(*b"h\0h\0\x86q\0"));
    doubling.push(b'.');
    for (pickle, text) in [
        (&b""[..], "truncated"),
        (b"\x80\x02", "truncated"),
        (b"\x80\x04.", "protocol 4"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02u.", "empty stack"),
        (b"\x80\x02N.", "contains None, not a state dict"),
        (b"\x80\x02K\x05.", "the integer 5, not a state dict"),
        (b"\x80\x02c\x1b[2Ja\nb\n.", "\\u{1b}[2Ja.b, which was not called"),
        (b"\x80\x02cab", "truncated"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "truncated"),
        (b"\x80\x020.", "empty stack"),
        (b"\x80\x022.", "empty stack"),
        (b"\x80\x02}h\x05.", "no entry 5"),
        (b"\x80\x02X\xff\xff\xff\xff.", "truncated"),
        (b"\x80\x02\x8a\xff.", "truncated"),
        (b"\x80\x02}K\x01K\x02s.", "a tensor name is the integer 1"),
        (b"\x80\x02}X\x01\0\0\0aK\x02s.", "a is the integer 2, not a tensor"),
        (b"\x80\x02\x93.", "unsupported opcode 0x93"),
        (&deep, "MiB of objects"),
        (&doubling, "contains a tuple, not a state dict"),
    ] {
        let error = Torch::new(pickle, &[]).refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{text}: {error}");
    }
}

#[test]
fn a_file_truncated_anywhere_is_an_error() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    for length in 0..bytes.len() {
        fs::write(file.path(), &bytes[..length]).unwrap();
        file.refusal(&[("a", &[12])]);
    }
    fs::write(file.path(), &bytes).unwrap();
    assert_eq!(file.read("a", &[12])[11], 11.0);
}

#[test]
fn a_flipped_byte_anywhere_does_not_panic() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 0xff;
        fs::write(file.path(), &changed).unwrap();
        // Either result is fine: many bytes are not read.
        let _ = file.open(&[("a", &[12])]);
        let _ = fs::remove_file(file.copy());
    }
}

#[test]
fn an_archive_that_expands_is_refused() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[12]))]);
    let file = counting(pickle, 12);
    let bytes = fs::read(file.path()).unwrap();
    // The central directory entry of the storage: 46 bytes, then its name.
    let name = b"archive/data/0";
    let entry = bytes.windows(name.len()).rposition(|part| part == name).unwrap() - 46;
    assert_eq!(bytes[entry..entry + 4], *b"PK\x01\x02");
    for (offset, value, text) in [
        (10, &8_u16.to_le_bytes()[..], "compressed"),
        (24, &0x7fff_0000_u32.to_le_bytes()[..], "has 2147418112 bytes"),
        (20, &1_u32.to_le_bytes()[..], "has 48 bytes"),
    ] {
        let mut changed = bytes.clone();
        changed[entry + offset..][..value.len()].copy_from_slice(value);
        fs::write(file.path(), changed).unwrap();
        let error = file.refusal(&[("a", &[12])]);
        assert!(error.contains(text), "{text}: {error}");
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

#[test]
fn a_file_of_an_unknown_format_is_an_error() {
    for (bytes, text) in [
        (&b""[..], "weights.pt"),
        (b"<html>403 Forbidden</html>", "weights.pt"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before PyTorch 1.6; load it with"),
        // With pickle_protocol=4.
        (b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch 1.6"),
    ] {
        let file = Torch(tempfile::tempdir().unwrap());
        fs::write(file.path(), bytes).unwrap();
        let error = file.refusal(&[("a", &[1])]);
        assert!(error.contains(text), "{error}");
    }
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

#[test]
fn the_converted_copy_is_used_until_the_file_changes() {
    let tensors = |offset| {
        let tensor = Tensor {
            kind: "FloatStorage",
            storage: "0",
            length: 12,
            offset,
            shape: &[2],
            strides: &[1],
        };
        state_dict(Pickle::new(), &[("a", tensor)])
    };
    let file = counting(tensors(3), 12);
    assert_eq!(file.read("a", &[2]), [3.0, 4.0]);
    let made = fs::metadata(file.copy()).unwrap().modified().unwrap();
    assert_eq!(file.read("a", &[2]), [3.0, 4.0]);
    assert_eq!(fs::metadata(file.copy()).unwrap().modified().unwrap(), made, "not converted again");
    // Another file of the same size.
    let other = counting(tensors(5), 12);
    fs::copy(other.path(), file.path()).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    // A damaged copy is replaced.
    let copy = fs::read(file.copy()).unwrap();
    fs::write(file.copy(), &copy[..copy.len() - 1]).unwrap();
    assert_eq!(file.read("a", &[2]), [5.0, 6.0]);
    assert_eq!(fs::read(file.copy()).unwrap(), copy);
}

/// Reads the file in the environment variable WEIGHTS.
#[test]
#[ignore = "another test runs it in a subprocess"]
fn read_in_a_subprocess() {
    let path = PathBuf::from(std::env::var_os("WEIGHTS").unwrap());
    let checkpoint = Checkpoint::new(path);
    let keys = Keys::from([("a".into(), vec![4])]);
    let cancel = Cancel::default();
    match checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ()) {
        Ok(weights) => {
            println!("read: {:?}", weights.get(4, "a").unwrap().to_vec1::<f32>().unwrap())
        }
        Err(error) => println!("error: {error}"),
    }
}

/// Reads a file in a process with another cache folder.
fn read_with_cache(file: &Torch, cache: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "pytorch::read_in_a_subprocess", "--ignored", "--nocapture"]);
    command.env("XDG_CACHE_HOME", cache).env("WEIGHTS", file.path());
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

#[test]
fn the_copy_of_a_file_in_a_read_only_folder_is_in_the_users_cache() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let (file, cache) = (counting(pickle, 4), tempfile::tempdir().unwrap());
    // A folder in the place of the lock file stops even root.
    fs::create_dir(file.0.path().join("weights.pt.f16.safetensors.lock")).unwrap();
    for _ in 0..2 {
        let output = read_with_cache(&file, cache.path());
        assert!(output.contains("read: [0.0, 1.0, 2.0, 3.0]"), "{output}");
        let copies = fs::read_dir(cache.path().join("venhance")).unwrap();
        let copies: Vec<_> = copies.map(|entry| entry.unwrap().file_name()).collect();
        let copies = copies.iter().filter(|name| name.to_string_lossy().ends_with(".safetensors"));
        assert_eq!(copies.count(), 1);
    }
    assert!(!file.copy().exists());
}

#[test]
fn concurrent_threads_share_a_copy() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[60_000]))]);
    let file = counting(pickle, 60_000);
    let reports = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let checkpoint = Checkpoint::new(file.path());
                let keys = Keys::from([("a".into(), vec![60_000])]);
                let mut report = |_| {
                    reports.fetch_add(1, Ordering::Relaxed);
                };
                let cancel = Cancel::default();
                let weights =
                    checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut report);
                let values = weights.unwrap().get(60_000, "a").unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values[2047], 2047.0);
            });
        }
    });
    // One conversion reports at its start and at its end, and this one does not take long enough for more.
    assert_eq!(reports.into_inner(), 2);
    let left: Vec<_> =
        fs::read_dir(file.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".incomplete")), "{left:?}");
}

#[test]
fn a_conversion_reports_its_progress() {
    let [a, b] = ["a", "b"].map(|name| (name, whole("FloatStorage", "0", &[60_000])));
    let file = counting(state_dict(Pickle::new(), &[a, b]), 60_000);
    let checkpoint = Checkpoint::new(file.path());
    let keys = ["a", "b"].map(|name| (name.to_owned(), vec![60_000])).into();
    let mut reports = Vec::new();
    for _ in 0..2 {
        let mut progress = |progress| reports.push(progress);
        checkpoint
            .open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut progress)
            .unwrap();
    }
    let copy = file.copy().display().to_string();
    assert!(
        reports.iter().all(|report| report.file == copy && report.total == 240_000),
        "{reports:?}"
    );
    assert!(reports.is_sorted_by_key(|report| report.done), "{reports:?}");
    assert_eq!((reports[0].done, reports.last().unwrap().done), (0, 240_000));
}

#[test]
fn a_cancelled_conversion_leaves_no_copy() {
    let pickle = state_dict(Pickle::new(), &[("a", whole("FloatStorage", "0", &[4]))]);
    let file = counting(pickle, 4);
    let checkpoint = Checkpoint::new(file.path());
    let cancel = Cancel::default();
    cancel.cancel();
    let keys = Keys::from([("a".into(), vec![4])]);
    let result = checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ());
    assert_eq!(result.err(), Some(Error::Cancelled));
    assert!(!file.copy().exists());
    assert_eq!(file.read("a", &[4]), [0.0, 1.0, 2.0, 3.0]);
}
