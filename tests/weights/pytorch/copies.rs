// SPDX-License-Identifier: MIT OR Apache-2.0
//! The converted copies.

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
use half::f16;

use super::{Torch, counting, whole};
use crate::torch::{Pickle, Tensor, state_dict};

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
    command.args(["--exact", "pytorch::copies::read_in_a_subprocess", "--ignored", "--nocapture"]);
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
