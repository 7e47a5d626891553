// SPDX-License-Identifier: MIT OR Apache-2.0
//! Safetensors files.

use std::fs;

use candle_core::{DType, Device};
use gstvenhance::{
    engine::Cancel,
    weights::{Checkpoint, keys::Keys},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    assert_printable, bounded, cases,
    mutation::{apply, mutations, number},
};

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn valid() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[3,4],"data_offsets":[0,48]},
        "b":{"dtype":"F16","shape":[2],"data_offsets":[48,52]}}"#;
    file(header, 52)
}

fn check(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    fs::write(&path, bytes).unwrap();
    let keys = Keys::from([("a".into(), vec![3, 4]), ("b".into(), vec![2])]);
    let checkpoint = Checkpoint::new(path);
    let result = bounded(|| {
        let cancel = Cancel::default();
        let weights = checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ())?;
        Ok::<_, gstvenhance::engine::Error>(weights.get((3, 4), "a").unwrap().elem_count())
    });
    match result {
        Ok(count) => assert_eq!(count, 12),
        Err(error) => assert_printable(&error.to_string()),
    }
}

/// The description of a tensor, which is mostly valid.
fn tensor() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a".to_owned()), Just("b".into()), ".{0,8}"];
    let dtype =
        proptest::sample::select(vec!["F32", "F16", "BF16", "F64", "I64", "U8", "F8_E4M3", "?"]);
    let size = prop_oneof![6 => (0..13_u64).boxed(), 1 => number().boxed()];
    let shape = vec(prop_oneof![6 => (0..5_u64).boxed(), 1 => number().boxed()], 0..4);
    (name, dtype, shape, size.clone(), size).prop_map(|(name, dtype, shape, begin, end)| {
        let name = serde_json::to_string(&name).unwrap();
        format!(
            r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{}]}}"#,
            begin.saturating_mul(4),
            end.saturating_mul(4)
        )
    })
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_changed_file_is_read_or_refused(changes in mutations()) {
        check(&apply(valid(), &changes));
    }

    #[test]
    fn any_header_is_read_or_refused(tensors in vec(tensor(), 0..5), data in 0..100_usize) {
        check(&file(&format!("{{{}}}", tensors.join(",")), data));
    }
}
