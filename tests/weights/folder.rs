// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model folders.

use std::{fs, path::Path};

use candle_core::{DType, Device};
use gstvenhance::{
    engine::{Cancel, Error, Version},
    models::{Config, Files, locate, synthesize},
    networks::{text::TextEncoder, unet::UNet, vae::Vae},
    weights::{Checkpoint, Hub, Source, keys::Keys, synth},
};

use crate::ADVICE;

/// The smallest model with all parts.
fn tiny() -> Config {
    let text = r#"{
        "min_padded": [80, 128],
        "unet": {
            "latents": 4, "dim": 32, "head_dim": 8, "num_heads": 8, "context_dim": 48,
            "num_res_blocks": 1, "dim_mult": [1, 2, 4, 4]
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
        "text": {"width": 48, "heads": 4, "layers": 3}
    }"#;
    serde_json::from_str(text).unwrap()
}

/// Finds the files in a folder, or around a denoiser, without a hub.
fn in_folder(path: &Path) -> Result<Files, Error> {
    let why = "this test has no hub".into();
    let hub = Err(Error::Internal { what: why });
    let source = Source { path: Some(path.into()), hub };
    locate(&source, Version::V2, &Cancel::default(), &mut |_| ())
}

#[test]
fn a_folder_with_a_config_is_a_model_of_those_sizes() {
    let folder = tempfile::tempdir().unwrap();
    synthesize(folder.path(), &tiny(), DType::F32).unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.config, tiny());
    let config = &files.config;
    let open = |checkpoint: &Checkpoint, keys: Keys| {
        checkpoint.open(&keys, DType::F32, &Device::Cpu, &Cancel::default(), &mut |_| ()).unwrap()
    };
    let unet = open(&files.unet, config.unet_keys().unwrap());
    let expected = synth::weight("unet.time_embed.0.bias", 128, DType::F32, &Device::Cpu).unwrap();
    let found = unet.get(128, "time_embed.0.bias").unwrap();
    assert_eq!(found.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap());
    UNet::new(&config.unet, unet).unwrap();
    Vae::new(&config.vae, open(&files.vae, config.vae_keys().unwrap())).unwrap();
    TextEncoder::new(&config.text, open(&files.text, config.text_keys().unwrap())).unwrap();
    // The file of one network does not fit another.
    let error = files.vae.open(
        &config.unet_keys().unwrap(),
        DType::F32,
        &Device::Cpu,
        &Cancel::default(),
        &mut |_| (),
    );
    let error = error.err().unwrap().to_string();
    for part in ["vae.safetensors", "is missing", "mismatches", "more"] {
        assert!(error.contains(part), "{error}");
    }
    fs::remove_file(folder.path().join("text.safetensors")).unwrap();
    let error = in_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("text.safetensors is missing"), "{error}");
}

#[test]
fn an_invalid_config_is_an_error_that_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let good = serde_json::to_string(&tiny()).unwrap();
    for (from, to, text) in [
        ("\"dim\":32", "\"dim\":33", "33 channels, which is not a multiple"),
        ("\"dim\":32", "\"dim\":-1", "line 1"),
        ("\"dim\":32", "\"dimension\":32", "unknown field `dimension`"),
        ("\"heads\":4,", "", "missing field `heads`"),
        ("{", "", "line 1"),
    ] {
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn a_folder_may_contain_the_published_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("venhancer_v2.pt"), "").unwrap();
    let error = in_folder(folder.path()).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain(["diffusion_pytorch_model", "open_clip_pytorch_model.bin"])
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("no venhancer_v2.pt"), "{error}");
    fs::write(path("diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    fs::write(path("open_clip_pytorch_model.bin"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.unet.path, path("venhancer_v2.pt"));
    assert_eq!(files.vae.path, path("diffusion_pytorch_model.fp16.safetensors"));
    assert_eq!(files.text.path, path("open_clip_pytorch_model.bin"));
    assert_eq!(files.config, Config::full());
    // In the subfolders of the repository.
    fs::create_dir(path("vae")).unwrap();
    fs::write(path("vae/diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.vae.path, path("vae/diffusion_pytorch_model.fp16.safetensors"));
}
