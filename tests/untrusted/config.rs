// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `config.json` of a model folder, up to the plan of a run, which needs no weights.

use std::fs;

use gstvenhance::{
    engine::{Cancel, Error, Format, Model, Options, Sizing, Version},
    models::{self, Config, locate},
    weights::Source,
};
use proptest::{collection::vec, prelude::*};

use crate::{
    assert_printable, bounded, cases,
    mutation::{apply, mutations, number},
};

const VALID: &str = r#"{
    "min_padded": [80, 128],
    "unet": {
        "latents": 4, "dim": 32, "head_dim": 8, "num_heads": 8, "context_dim": 48,
        "num_res_blocks": 1, "dim_mult": [1, 2, 4, 4]
    },
    "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1},
    "text": {"width": 48, "heads": 4, "layers": 3}
}"#;

fn check(config: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    for name in ["unet", "vae", "text"] {
        fs::write(folder.path().join(format!("{name}.safetensors")), "").unwrap();
    }
    let work = || -> Result<(), Error> {
        let hub = Err(Error::Internal { what: "this test has no hub".into() });
        let source = Source { path: Some(folder.path().into()), hub };
        let files = locate(&source, Version::V1, &Cancel::default(), &mut |_| ())?;
        files.config.unet_keys()?;
        files.config.vae_keys()?;
        files.config.text_keys()?;
        let options = Options {
            model: Some(Model::Diffusion(Version::V1)),
            device: "cpu".into(),
            model_dir: Some(folder.path().into()),
            ..Options::default()
        };
        let choice = models::choose(&options)?;
        let format = Format {
            input: (64, 48),
            output: (128, 96),
            interpolated: 2,
            exact: false,
            alpha: false,
        };
        models::plan(&choice, format, Sizing::Scale(2.0), 40)?;
        models::check_memory(&choice, &format, Sizing::Scale(2.0))
    };
    if let Err(error) = bounded(work) {
        let error = error.to_string();
        assert_printable(&error);
        assert!(!error.contains("internal error"), "{error}");
    }
}

/// Valid sizes of which one may be any number.
fn sizes() -> impl Strategy<Value = String> {
    let pick = |values: &[u64]| proptest::sample::select(values.to_vec());
    let any = |values: &[u64]| prop_oneof![12 => pick(values).boxed(), 1 => number().boxed()];
    let unet = (
        any(&[4]),
        any(&[32, 64, 2048]),
        any(&[1, 8, 32, 1024]),
        any(&[1, 8, 128]),
        any(&[48, 8192]),
        any(&[1, 2, 16]),
        vec(any(&[1, 2, 4, 16]), 1..5),
    );
    let vae = (vec(any(&[32, 64, 8192]), 4), any(&[1, 2, 16]));
    let text = (any(&[48, 8192]), any(&[1, 4, 48]), any(&[1, 3, 256]));
    (any(&[16, 80, 720, 4048]), any(&[64, 128, 4096]), unet, vae, text).prop_map(
        |(height, width, unet, vae, text)| {
            let (latents, dim, head_dim, num_heads, context, blocks, dim_mult) = unet;
            format!(
                r#"{{"min_padded":[{height},{width}],"unet":{{"latents":{latents},"dim":{dim},
                "head_dim":{head_dim},"num_heads":{num_heads},"context_dim":{context},
                "num_res_blocks":{blocks},"dim_mult":{dim_mult:?}}},
                "vae":{{"block_out_channels":{:?},"layers_per_block":{}}},
                "text":{{"width":{},"heads":{},"layers":{}}}}}"#,
                vae.0, vae.1, text.0, text.1, text.2
            )
        },
    )
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn a_changed_config_is_read_or_refused(changes in mutations()) {
        check(&apply(VALID.into(), &changes));
    }

    #[test]
    fn any_sizes_are_planned_or_refused(config in sizes()) {
        check(config.as_bytes());
    }
}

#[test]
fn the_largest_sizes_take_little_memory() {
    let largest = r#"{
        "min_padded": [4048, 4096],
        "unet": {
            "latents": 4, "dim": 2048, "head_dim": 1024, "num_heads": 128, "context_dim": 8192,
            "num_res_blocks": 16, "dim_mult": [4, 4, 4, 4]
        },
        "vae": {"block_out_channels": [8192, 8192, 8192, 8192], "layers_per_block": 16},
        "text": {"width": 8192, "heads": 8, "layers": 256}
    }"#;
    let config: Config = serde_json::from_str(largest).unwrap();
    assert!(config.unet_keys().unwrap().len() > 10_000);
    check(largest.as_bytes());
}
