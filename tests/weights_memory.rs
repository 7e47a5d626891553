// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading weights needs little more memory than the weights. In its own test binary, because it replaces the global
//! allocator.

#[path = "common/torch.rs"]
mod torch;

use std::{path::Path, sync::Mutex};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error, Version},
    models::{Config, locate, synthesize},
    networks::{
        text,
        unet::{self, UNet},
        vae,
    },
    weights::{Checkpoint, Source, keys::Keys},
};
use peak_alloc::PeakAlloc;
use torch::{Pickle, Tensor, state_dict};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Serializes the tests: all share the allocator.
static ONE: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

/// The peak memory during `load` minus what remains allocated, in bytes.
fn excess<T>(load: impl FnOnce() -> T) -> (T, usize) {
    MEMORY.reset_peak_usage();
    let loaded = load();
    let (peak, held) = (MEMORY.peak_usage(), MEMORY.current_usage());
    eprintln!("{} MiB allocated, peak {} MiB", held / MIB, peak / MIB);
    (loaded, peak - held)
}

/// Writes a PyTorch file of 48 tensors of 4 MiB.
fn write(path: &Path) -> Keys {
    const SIDE: usize = 1024;
    let names: Vec<_> = (0..48).map(|n| format!("{n:02}")).collect();
    let tensors: Vec<_> = names
        .iter()
        .map(|name| {
            let (shape, strides) = (&[SIDE, SIDE], &[SIDE, 1]);
            let length = SIDE * SIDE;
            let kind = "FloatStorage";
            (name.as_str(), Tensor { kind, storage: name, length, offset: 0, shape, strides })
        })
        .collect();
    let bytes = [0, 0, 0x80, 0x3f].repeat(SIDE * SIDE);
    let storages: Vec<_> = names.iter().map(|name| (name.as_str(), bytes.as_slice())).collect();
    torch::write(path, &state_dict(Pickle::new(), &tensors).end(), &storages);
    names.into_iter().map(|name| (name, vec![SIDE, SIDE])).collect()
}

#[test]
fn tensors_are_converted_and_loaded_one_by_one() {
    let _one = ONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    let keys = write(&path);
    let checkpoint = Checkpoint::new(path);
    let cancel = Cancel::default();
    // The first iteration converts the file.
    for _ in 0..2 {
        let (weights, opening) = excess(|| {
            checkpoint.open(&keys, DType::F32, &Device::Cpu, &cancel, &mut |_| ()).unwrap()
        });
        let (loaded, loading) = excess(|| {
            let load = |(name, shape): (&String, &Vec<usize>)| weights.get(shape.as_slice(), name);
            keys.iter().map(load).collect::<Result<Vec<_>, _>>().unwrap()
        });
        assert_eq!(loaded.len(), keys.len());
        // Four tensors of 192 MiB.
        for excess in [opening, loading] {
            assert!(excess < 16 * MIB, "{} MiB", excess / MIB);
        }
    }
}

/// Opens a file, which is refused, and returns the error and the peak memory.
fn refused(path: &Path) -> (String, usize) {
    let keys = Keys::from([("a".into(), vec![1])]);
    let checkpoint = Checkpoint::new(path.into());
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ());
    (result.err().unwrap().to_string(), MEMORY.peak_usage() - before)
}

#[test]
fn what_describes_the_tensors_of_a_file_takes_at_most_64_mib() {
    let _one = ONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.pt");
    const PICKLE: usize = 3 << 19;
    let repeated = |codes: &[u8], again: &[u8]| {
        let count = (PICKLE - codes.len()) / again.len();
        Pickle::new().raw(codes).raw(&again.repeat(count)).end()
    };
    let name = "x".repeat(4 << 20);
    let tensor = |storage| Tensor {
        kind: "FloatStorage",
        storage,
        length: 1,
        offset: 0,
        shape: &[1],
        strides: &[1],
    };
    // A long name of a storage or tensor, in the memo, and used again and again.
    let storage = Pickle::default().raw(b"}(").text("k").tensor(&tensor(&name)).raw(b"q\x01").end();
    let storage = &storage[..storage.len() - 1];
    let keys = (0..100_000).map(|n| Pickle::default().text(&n.to_string()).raw(b"h\x01").end());
    let keys: Vec<_> =
        keys.flat_map(|mut codes| codes.drain(..codes.len() - 1).collect::<Vec<_>>()).collect();
    let long_storage = Pickle::new().raw(storage).raw(&keys).raw(b"u").end();
    let key = Pickle::default()
        .raw(b"}(")
        .text(&name)
        .raw(b"q\x01")
        .tensor(&tensor("0"))
        .raw(b"q\x02")
        .end();
    let long_key = [&key[..key.len() - 1], &b"h\x01h\x02".repeat(350_000), b"u"].concat();
    let call = Pickle::default().raw(b"(").tensor(&tensor("0")).end();
    for pickle in [
        repeated(b"", b"N"),
        repeated(b"", b"("),
        repeated(b"", b"(("),
        repeated(b"", b"]"),
        repeated(b"", b"}"),
        repeated(b"N", b"\x85"),
        repeated(b"N", b"2"),
        repeated(b"Nq\0", b"h\0"),
        repeated(b"(", b"NNNNNNNNt("),
        repeated(b"}(", b"NN"),
        repeated(&call[..call.len() - 1], b"cos\nsystem\n)R"),
        (0..700_000_u32)
            .fold(Pickle::new().raw(b"N"), |pickle, n| pickle.raw(b"r").raw(&n.to_le_bytes()))
            .end(),
        long_storage,
        Pickle::new().raw(&long_key).end(),
    ] {
        torch::write(&path, &pickle, &[("0", &[0; 4])]);
        let (error, peak) = refused(&path);
        assert!(peak <= 64 * MIB, "{} MiB: {error}", peak / MIB);
        assert!(error.len() < 5000, "{} bytes", error.len());
    }
    let tiny =
        (0..).map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#));
    let mut tensors: String = tiny.take(32_000).collect();
    tensors.pop();
    let long = format!(
        r#""a":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}"#,
        "1,".repeat((1 << 20) - 50)
    );
    for header in [format!("{{{tensors}}}"), format!("{{{}}}", &long)] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, bytes).unwrap();
        let (error, peak) = refused(&path);
        assert!(peak <= 64 * MIB, "{} MiB: {error}", peak / MIB);
        assert!(error.len() < 5000, "{} bytes", error.len());
    }
}

/// The published denoiser with a fifth of the channels: the same tensors, each of a 25th of the size. What loading
/// takes beyond them is in proportion to the tensors that exist twice at a time, so that the share is the published
/// model's: less than a sixteenth, which is less than 256 MiB of its 4 GiB.
#[test]
fn a_denoiser_loads_with_less_than_a_sixteenth_above_its_own_size() {
    let _one = ONE.lock();
    let folder = tempfile::tempdir().unwrap();
    let full = Config::full();
    let config = Config {
        unet: unet::Config { dim: 64, context_dim: 208, ..full.unet },
        vae: vae::Config { block_out_channels: vec![32; 4], layers_per_block: 1 },
        text: text::Config { width: 208, heads: 4, layers: 3 },
        ..full
    };
    synthesize(folder.path(), &config, DType::F16).unwrap();
    let cancel = Cancel::default();
    let hub = Err(Error::Cancelled);
    let source = Source { path: Some(folder.path().into()), hub };
    let files = locate(&source, Version::V1, &cancel, &mut |_| ()).unwrap();
    let keys = files.config.unet_keys().unwrap();
    let before = MEMORY.current_usage();
    let (denoiser, excess) = excess(|| {
        let weights =
            files.unet.open(&keys, DType::F16, &Device::Cpu, &cancel, &mut |_| ()).unwrap();
        UNet::new(&files.config.unet, weights).unwrap()
    });
    let size = MEMORY.current_usage() - before;
    drop(denoiser);
    assert!(size > 100 * MIB, "{} MiB", size / MIB);
    assert!(excess < size / 16, "{} of {} MiB", excess / MIB, size / MIB);
}
