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

use crate::{
    ADVICE,
    download::Cache,
    hub::{TEXT, VAE},
};

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
    for part in ["text.safetensors is missing", "add the missing file, or remove config.json"] {
        assert!(error.contains(part), "{error}");
    }
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
fn sizes_that_would_take_gigabytes_are_refused_before_anything_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let good = serde_json::to_string(&tiny()).unwrap();
    let long = format!("\"dim_mult\":[{}1]", "1,".repeat(10_000));
    let huge = format!("{{\"{}\":1,", "\\u001b[31m".repeat(5000));
    for (from, to, text) in [
        ("\"dim\":32", "\"dim\":16384", "unet.dim is 16384, must be 1 to 2048"),
        ("\"num_res_blocks\":1", "\"num_res_blocks\":16384", "unet.num_res_blocks is 16384"),
        ("\"layers_per_block\":1", "\"layers_per_block\":16384", "vae.layers_per_block is 16384"),
        ("\"layers\":3", "\"layers\":16384", "text.layers is 16384"),
        ("\"dim_mult\":[1,2,4,4]", &long, "unet.dim_mult has 10001 levels, must be 1 to 4"),
        ("[32,32,64,64]", "[32,32,64]", "vae.block_out_channels has 3 levels"),
        ("\"latents\":4", "\"latents\":8", "unet.latents is 8"),
        ("{", &huge, "unknown field `\\u{1b}[31m"),
        ("}}", &format!("}}}}{}", " ".repeat(70_000)), "more than 65536 bytes"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(text) && error.len() < 800, "{text}: {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
}

#[test]
fn a_folder_may_contain_the_published_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let error = in_folder(folder.path()).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain(["no config.json and no venhancer_v2.pt"]) {
        assert!(error.contains(part), "{part}: {error}");
    }
    fs::write(path("venhancer_v2.pt"), "").unwrap();
    fs::write(path("diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    fs::write(path("open_clip_pytorch_model.bin"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.unet.path, path("venhancer_v2.pt"));
    assert_eq!(files.vae.path, path("diffusion_pytorch_model.fp16.safetensors"));
    assert_eq!(files.text.path, path("open_clip_pytorch_model.bin"));
    assert_eq!(files.config, Config::full());
    // The reference computes the prompt in f32, the rest in f16.
    assert_eq!((files.unet.copy_dtype, files.text.copy_dtype), (DType::F16, DType::F32));
    // In the subfolders of the repository.
    fs::create_dir(path("vae")).unwrap();
    fs::write(path("vae/diffusion_pytorch_model.fp16.safetensors"), "").unwrap();
    let files = in_folder(folder.path()).unwrap();
    assert_eq!(files.vae.path, path("vae/diffusion_pytorch_model.fp16.safetensors"));
}

#[test]
fn what_is_not_beside_the_denoiser_comes_from_the_hub() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), Cache::new());
    let denoiser = folder.path().join("venhancer_v2.pt");
    fs::write(&denoiser, "").unwrap();
    // Fine-tuned, under any name.
    let tuned = folder.path().join("tuned.pt");
    fs::write(&tuned, "").unwrap();
    let hub = Hub { offline: true, ..cache.hub("http://127.0.0.1:1") };
    let find = |path: &Path| {
        let source = Source { path: Some(path.into()), hub: Ok(hub.clone()) };
        locate(&source, Version::V2, &Cancel::default(), &mut |_| ())
    };
    let error = find(&denoiser).unwrap_err().to_string();
    for part in ADVICE.into_iter().chain([
        "vae/diffusion_pytorch",
        "open_clip_model.safetensors",
        "HF_HUB_OFFLINE",
    ]) {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("venhancer_v2.pt"), "{error}");
    let (vae, text) = (cache.add(VAE, b"vae"), cache.add(TEXT, b"text"));
    for (given, expected) in [(folder.path(), &denoiser), (&denoiser, &denoiser), (&tuned, &tuned)]
    {
        let files = find(given).unwrap();
        assert_eq!(files.unet.path, *expected);
        assert_eq!((files.vae.path, files.text.path), (vae.clone(), text.clone()));
        assert_eq!(files.config, Config::full());
        assert!(files.unet.remedy.contains("published"), "{}", files.unet.remedy);
        assert!(files.vae.remedy.contains("download"), "{}", files.vae.remedy);
    }
    // A file beside it comes first.
    let beside = folder.path().join("diffusion_pytorch_model.fp16.safetensors");
    fs::write(&beside, "").unwrap();
    assert_eq!(find(&denoiser).unwrap().vae.path, beside);
    let error = find(&folder.path().join("typo.pt")).unwrap_err().to_string();
    assert!(error.contains("no such file or folder"), "{error}");
}

#[test]
fn the_denoiser_of_a_model_folder_stands_for_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    synthesize(folder.path(), &tiny(), DType::F32).unwrap();
    let files = in_folder(&folder.path().join("unet.safetensors")).unwrap();
    assert_eq!(files, in_folder(folder.path()).unwrap());
    assert_eq!(files.config, tiny());
}
