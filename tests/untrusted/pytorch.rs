// SPDX-License-Identifier: MIT OR Apache-2.0
//! PyTorch files: the archive and the pickle in it.

use std::{fs, path::Path};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error},
    weights::{Checkpoint, keys::Keys},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    assert_printable, bounded, cases,
    mutation::{apply, mutations, number},
    torch::{self, Pickle, Tensor, state_dict},
};

const SHAPE: [usize; 2] = [3, 4];

fn tensor(storage: &str) -> Tensor<'_> {
    Tensor { kind: "FloatStorage", storage, length: 12, offset: 0, shape: &SHAPE, strides: &[4, 1] }
}

/// A state dict of two tensors with extras beside it.
fn pickle() -> Vec<u8> {
    let extras = Pickle::new().raw(b"}(").text("args").global("argparse", "Namespace");
    let extras = extras.raw(b")\x81}(").text("lr").raw(b"G\x3f\xf0\0\0\0\0\0\0ub").text("set");
    let extras = extras.global("__builtin__", "set").raw(b"](K\x01K\x02e\x85R").text("state_dict");
    state_dict(extras, &[("a", tensor("0")), ("b.weight", tensor("1"))]).raw(b"u").end()
}

fn file(pickle: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    let bytes: Vec<_> = (0..12_u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    torch::write(&path, pickle, &[("0", &bytes), ("1", &bytes)]);
    fs::read(path).unwrap()
}

fn open(path: &Path) -> Result<Vec<f32>, Error> {
    let keys = Keys::from([("a".into(), SHAPE.to_vec()), ("b.weight".into(), SHAPE.to_vec())]);
    let checkpoint = Checkpoint::new(path.into());
    let cancel = Cancel::default();
    let weights = checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ())?;
    let tensor = weights.get(&SHAPE[..], "a").unwrap();
    Ok(tensor.flatten_all().unwrap().to_vec1().unwrap())
}

fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    fs::write(&path, bytes).unwrap();
    match bounded(|| open(&path)) {
        Ok(values) => assert_eq!(values.len(), 12),
        Err(error) => assert_printable(&error.to_string()),
    }
}

/// An opcode with its arguments, which are mostly valid.
fn opcode() -> impl Strategy<Value = Vec<u8>> {
    let plain = b"()]}tNeuasbR021Q\x81\x85\x86\x87\x88\x89".iter().map(|&code| vec![code]);
    let names = ["state_dict", "storage", "a", "0", "cpu", ""];
    let texts = names.map(|text| Pickle::default().text(text));
    let globals = [
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "FloatStorage"),
        ("torch", "HalfStorage"),
        ("os", "system"),
    ];
    let globals = globals.map(|(module, name)| Pickle::default().global(module, name));
    let tensors = [Pickle::default().tensor(&tensor("0")), Pickle::default().dict()];
    // `end` appends STOP.
    let parts = texts.into_iter().chain(globals).chain(tensors).map(|pickle| {
        let mut codes = pickle.end();
        codes.pop();
        codes
    });
    prop_oneof![
        6 => proptest::sample::select(plain.chain(parts).collect::<Vec<_>>()),
        1 => (proptest::sample::select(b"hqK".to_vec()), 0..4_u8).prop_map(|(code, n)| vec![code, n]),
        1 => (proptest::sample::select(b"jrJXG\x8b".to_vec()), number())
            .prop_map(|(code, n)| [&[code][..], &n.to_le_bytes()].concat()),
        1 => (0..16_u8, number()).prop_map(|(size, n)| [&[0x8a, size][..], &n.to_le_bytes()].concat()),
    ]
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn a_changed_file_is_read_or_refused(changes in mutations()) {
        check(&apply(file(&pickle()), &changes));
    }

    #[test]
    fn a_changed_pickle_is_read_or_refused(changes in mutations()) {
        check(&file(&apply(pickle(), &changes)));
    }

    #[test]
    fn any_opcodes_are_read_or_refused(codes in vec(opcode(), 1..60), repeat in 1..2000_usize) {
        let codes = codes.concat().repeat(repeat);
        check(&file(&[b"\x80\x02", &codes[..], b"."].concat()));
    }

    #[test]
    fn any_opcodes_beside_the_weights_leave_them_or_are_refused(codes in vec(opcode(), 1..40)) {
        let pickle = Pickle::new().raw(b"}(").text("extra").raw(&codes.concat()).text("state_dict");
        let pickle = state_dict(pickle, &[("a", tensor("0")), ("b.weight", tensor("1"))]);
        check(&file(&pickle.raw(b"u").end()));
    }
}
