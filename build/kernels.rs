// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles each .cu file with nvcc into a fatbin: machine code for every supported architecture, and no PTX, so that
//! nothing is compiled when the plugin starts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::architectures::{HOPPER, PORTABLE};

const FOLDER: &str = "src/ops/cuda";

/// The files of kernels, without `.cu`, and whether they are for Hopper only. The slowest to compile come first.
const FILES: [(&str, bool); 7] = [
    ("product", false),
    ("norm", false),
    ("product_hopper", true),
    ("attention", false),
    ("attention_hopper", true),
    ("gate", false),
    ("pixels", false),
];

/// Compiles every `NAME.cu` to `NAME.fatbin` in OUT_DIR; up-to-date files are skipped.
pub fn compile() -> Result<(), String> {
    let compiler = Compiler::find()?;
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    FILES.iter().try_for_each(|(name, hopper)| compiler.compile(name, *hopper, &folder))
}

struct Compiler {
    program: PathBuf,
    version: String,
}

impl Compiler {
    /// `$NVCC`, else the one of `$CUDA_HOME`, else the one in `$PATH`.
    fn find() -> Result<Self, String> {
        for name in ["NVCC", "CUDA_HOME"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let of_home = || Some(Path::new(&env::var_os("CUDA_HOME")?).join("bin/nvcc"));
        let program = env::var_os("NVCC").map(PathBuf::from).or_else(of_home);
        let program = program.unwrap_or_else(|| "nvcc".into());
        if program.is_file() {
            println!("cargo::rerun-if-changed={}", program.display());
        }
        let version = run(Command::new(&program).arg("--version")).map_err(|why| {
            format!(
                "the feature `cuda` compiles kernels with nvcc, and {} cannot be run: {why}; install the CUDA \
                 toolkit (13.0 or later) and set CUDA_HOME to its folder or NVCC to its compiler, or run \
                 eval \"$(scripts/cuda-env)\" first",
                program.display()
            )
        })?;
        Ok(Self { program, version })
    }

    fn compile(&self, name: &str, hopper: bool, folder: &Path) -> Result<(), String> {
        let headers: &[_] = if hopper { &["device.cuh", "hopper.cuh"] } else { &["device.cuh"] };
        let mut arguments =
            ["-std=c++17", "--fatbin", "--no-compress", "--threads"].map(String::from).to_vec();
        arguments.push(env::var("NUM_JOBS").unwrap_or_else(|_| "1".into()));
        if hopper {
            arguments.push(format!("--generate-code=arch=compute_{HOPPER}a,code=sm_{HOPPER}a"));
        } else {
            let codes =
                PORTABLE.map(|one| format!("--generate-code=arch=compute_{one},code=sm_{one}"));
            arguments.extend(codes);
        }
        let mut fingerprint = format!("{}\n{}\n", self.version, arguments.join(" "));
        for header in headers {
            arguments.extend(["-include".into(), format!("{FOLDER}/{header}")]);
        }
        let source = format!("{FOLDER}/{name}.cu");
        for file in
            headers.iter().map(|header| format!("{FOLDER}/{header}")).chain([source.clone()])
        {
            fingerprint +=
                &fs::read_to_string(&file).map_err(|why| format!("reading {file}: {why}"))?;
        }

        // A copy of its inputs lies beside each fatbin.
        let (fatbin, stamp) = (folder.join(name).with_extension("fatbin"), folder.join(name));
        if fatbin.exists() && fs::read_to_string(&stamp).is_ok_and(|before| before == fingerprint) {
            return Ok(());
        }
        run(Command::new(&self.program).args(arguments).arg("-o").arg(&fatbin).arg(&source))
            .map_err(|why| format!("compiling {source} with {}: {why}", self.program.display()))?;
        fs::write(&stamp, fingerprint).map_err(|why| format!("writing {}: {why}", stamp.display()))
    }
}

/// Returns the standard output of a program, or its standard error if it fails.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => {
            Err(format!("{}: {}{}", output.status, text(&output.stderr), text(&output.stdout)))
        }
    }
}
