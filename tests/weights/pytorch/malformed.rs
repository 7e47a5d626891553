// SPDX-License-Identifier: MIT OR Apache-2.0
//! Damaged and malicious files.

use std::fs;

use super::{Torch, counting, whole};
use crate::torch::{Pickle, state_dict};

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
