// SPDX-License-Identifier: MIT OR Apache-2.0
//! Single operations of the denoiser at the sizes of the real model, in f16. benches/torch_ops.py times PyTorch on the
//! same ones, under the same names.

use candle_core::{DType, Device, Result, Tensor, cuda::WrapErr};
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use gstvenhance::{
    ops::{
        Conv2d, ConvConfig, GroupNorm, LayerNorm, Linear, Moments, TimeConv, attention,
        attention_along_first, geglu, operations,
    },
    weights::synth,
};
use serde_json::json;

use super::{Args, Findings, Products, parity::DOWN};

/// Inputs that take turns, so that they come from memory and not from the cache of the run before.
const INPUTS: usize = 3;

/// Milliseconds of runs between two events, so that the host's time to start one does not count.
const MEASURED_MS: f64 = 2.0;

/// Runs between two events at most.
const MOST_RUNS: f64 = 50.0;

/// Measurements of which the median is taken.
const MEASUREMENTS: usize = 11;

/// Frames of the window, and pixels of it that temporal attention takes at a time.
const FRAMES: usize = 31;
const PIXELS: usize = 2114;

type Operation = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// An operation by name, and the shape of its input.
struct Case {
    name: &'static str,
    shape: Vec<usize>,
    run: Operation,
}

/// Makes operations with synthetic weights.
struct Cases<'a> {
    device: &'a Device,
    cases: Vec<Case>,
}

impl Cases<'_> {
    fn add(
        &mut self,
        name: &'static str,
        shape: &[usize],
        run: impl Fn(&Tensor) -> Result<Tensor> + 'static,
    ) {
        self.cases.push(Case { name, shape: shape.to_vec(), run: Box::new(run) });
    }

    fn noise(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::noise(name, shape, self.device)?.to_dtype(DType::F16)
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        synth::weight(name, shape, DType::F16, self.device)
    }

    /// Of a norm over `c` channels: weight, bias.
    fn norm(&self, c: usize) -> Result<(Tensor, Tensor)> {
        let make = |name| synth::weight(name, &[c][..], DType::F32, self.device);
        Ok((make("norm.weight")?, make("norm.bias")?))
    }

    /// Queries [b, t, c], keys and values [b, s, c].
    fn attention(&mut self, name: &'static str, [b, t, s, c]: [usize; 4]) -> Result<()> {
        let (k, v) = (self.noise("k", &[b, s, c])?, self.noise("v", &[b, s, c])?);
        self.add(name, &[b, t, c], move |q| attention(q, &k, &v, c / 64, false));
        Ok(())
    }

    /// Queries, keys and values [frames, pixels, c].
    fn attention_along_time(&mut self, name: &'static str, pixels: usize, c: usize) -> Result<()> {
        let shape = [FRAMES, pixels, c];
        let (k, v) = (self.noise("k", &shape)?, self.noise("v", &shape)?);
        self.add(name, &shape, move |q| attention_along_first(q, &k, &v, c / 64));
        Ok(())
    }

    fn linear(&mut self, name: &'static str, [t, inputs, outputs]: [usize; 3]) -> Result<()> {
        let bias = self.weight("linear.bias", &[outputs])?;
        let layer = Linear::new(self.weight("linear.weight", &[outputs, inputs])?, Some(bias))?;
        self.add(name, &[1, t, inputs], move |x| layer.forward(&[x], None));
        Ok(())
    }

    /// From c to c channels.
    fn convolution(
        &mut self,
        name: &'static str,
        (h, w): (usize, usize),
        c: usize,
        shape: ConvConfig,
    ) -> Result<()> {
        let bias = self.weight("conv.bias", &[c])?;
        let conv = Conv2d::new(self.weight("conv.weight", &[c, c, 3, 3])?, bias, shape)?;
        self.add(name, &[1, h, w, c], move |x| conv.forward(&[x], None, None));
        Ok(())
    }

    /// Of three frames, as a clip of their own.
    fn time_convolution(
        &mut self,
        name: &'static str,
        (h, w): (usize, usize),
        c: usize,
    ) -> Result<()> {
        let bias = self.weight("time.bias", &[c])?;
        let conv = TimeConv::new(self.weight("time.weight", &[c, c, 3, 1, 1])?, &bias, 1.0)?;
        self.add(name, &[3, h, w, c], move |x| conv.forward(None, x, None, None));
        Ok(())
    }

    fn norms(&mut self, (h, w): (usize, usize), c: usize) -> Result<()> {
        let (weight, bias) = self.norm(c)?;
        let norm = GroupNorm::new(&weight, &bias, 1e-5)?;
        self.add("group norm and SiLU, 320", &[1, h, w, c], move |x| {
            norm.affine(&Moments::of(x)?)?.apply(x, true)
        });
        let norm = LayerNorm::new(&weight, &bias)?;
        self.add("layer norm, 320", &[1, h * w, c], move |x| norm.forward(x));
        Ok(())
    }

    /// All of one frame of (h, w) latents, at the levels where the operation is; time layers of more frames.
    fn all(device: &Device, (h, w): (usize, usize)) -> Result<Vec<Case>> {
        let mut cases = Cases { device, cases: Vec::new() };
        let (half, quarter) = ((h.div_ceil(2), w.div_ceil(2)), (h.div_ceil(4), w.div_ceil(4)));
        let (t0, t1) = (h * w, half.0 * half.1);
        cases.attention("attention in a frame, 320", [1, t0, t0, 320])?;
        cases.attention("attention in a frame, 640", [1, t1, t1, 640])?;
        cases.attention("attention to the prompt, 320", [1, t0, 77, 320])?;
        cases.attention_along_time("attention along time, 320", PIXELS.min(t0), 320)?;
        cases.linear("linear, 320 to 320", [t0, 320, 320])?;
        cases.linear("linear, 320 to 2560", [t0, 320, 2560])?;
        cases.linear("linear, 1280 to 320", [t0, 1280, 320])?;
        cases.linear("linear, 640 to 640", [t1, 640, 640])?;
        cases.convolution("convolution, 320 to 320", (h, w), 320, ConvConfig::SAME)?;
        cases.convolution("convolution, 640 to 640", half, 640, ConvConfig::SAME)?;
        cases.convolution("convolution, 1280 to 1280", quarter, 1280, ConvConfig::SAME)?;
        cases.convolution("convolution to half the size, 320", (h, w), 320, DOWN)?;
        cases.convolution("convolution to twice the size, 640", half, 640, ConvConfig::UPSAMPLE)?;
        cases.time_convolution("convolution along time, 320", (h, w), 320)?;
        cases.norms((h, w), 320)?;
        cases.add("gate, 1280", &[1, t0, 2560], geglu);
        Ok(cases.cases)
    }
}

/// Times all operations, or those whose names contain `--only`.
pub fn run(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let only = args.only.as_deref().unwrap_or_default();
    for case in Cases::all(device, args.latent())? {
        if !case.name.contains(only) {
            continue;
        }
        let figure = json!({ "what": "operation", "name": case.name, "shape": case.shape });
        match time(&case, args, device) {
            Ok(times) => {
                let mut figure = figure;
                figure["ms"] = json!(times.ms);
                figure["floor_ms"] = json!(times.floor_ms);
                figure["kernels"] = json!(match (args.portable, args.products) {
                    (true, _) => "portable",
                    (_, Products::Cublaslt) => "cuBLASLt",
                    _ => "best",
                });
                findings.print(&figure);
            }
            Err(error) => findings.failed(figure, error),
        }
    }
    Ok(())
}

struct Times {
    ms: f64,
    /// The larger of what products and memory take at the device's peak.
    floor_ms: f64,
}

fn time(case: &Case, args: &Args, device: &Device) -> Result<Times> {
    let make = |n| synth::noise(&format!("x{n}"), &case.shape[..], device)?.to_dtype(DType::F16);
    let inputs = (0..INPUTS).map(make).collect::<Result<Vec<_>>>()?;
    let before = operations();
    let out = (case.run)(&inputs[0])?;
    let products = (operations() - before) as f64 / args.tflops / 1e9;
    let bytes = [&inputs[0], &out].map(|x| x.elem_count() * x.dtype().size_in_bytes());
    let memory = bytes.iter().sum::<usize>() as f64 / args.bandwidth / 1e9;

    let stream = device.as_cuda_device()?.cuda_stream();
    let elapsed = |runs: usize| {
        let event = || stream.record_event(Some(CU_EVENT_DEFAULT)).w();
        let start = event()?;
        for n in 0..runs {
            (case.run)(&inputs[n % INPUTS])?;
        }
        Ok::<_, candle_core::Error>(f64::from(start.elapsed_ms(&event()?).w()?) / runs as f64)
    };
    elapsed(INPUTS)?;
    let runs = (MEASURED_MS / elapsed(INPUTS)?).clamp(1.0, MOST_RUNS).ceil() as usize;
    let mut times = (0..MEASUREMENTS).map(|_| elapsed(runs)).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(Times { ms: times[MEASUREMENTS / 2], floor_ms: products.max(memory) })
}
