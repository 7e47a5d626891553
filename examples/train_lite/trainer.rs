// SPDX-License-Identifier: MIT OR Apache-2.0
//! What all networks are trained with.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use candle_core::{Device, Result, Tensor, Var, safetensors};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use gstvenhance::{lite::network::Network, ops};

use super::random::Random;

/// A network that learns.
pub struct Learner {
    network: Network,
    values: Var,
}

impl Learner {
    /// With random weights, or with those in `known`.
    pub fn new(
        network: Network,
        known: &HashMap<String, Tensor>,
        random: &mut Random,
        device: &Device,
    ) -> Result<Self> {
        let values = match known.get(network.name) {
            Some(values) => values.to_device(device)?,
            None => {
                let mut values = Vec::new();
                for (n, widths) in network.widths.windows(2).enumerate() {
                    // He's deviation; the last layer begins small: at first nothing is added.
                    let last = n + 2 == network.widths.len();
                    let scale =
                        (2.0 / (9 * widths[0]) as f32).sqrt() * if last { 0.1 } else { 1.0 };
                    let count = 9 * widths[0] * widths[1];
                    values.extend((0..count).map(|_| random.normal() * scale));
                    values.extend(std::iter::repeat_n(0.0, widths[1]));
                }
                Tensor::new(values, device)?
            }
        };
        Ok(Self { network, values: Var::from_tensor(&values)? })
    }

    /// [n, h, w, in] to [n, h, w, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::trained_chain(x, &self.values, self.network.widths)
    }
}

/// One run: what it writes, and how far it has come.
pub struct Run {
    file: PathBuf,
    steps: usize,
    next: usize,
    optimizer: AdamW,
    rate: f64,
    /// Of the steps since the last line of the curve.
    losses: Vec<f32>,
    start: Instant,
    names: Vec<String>,
}

/// Steps between two lines of the loss curve, each with a file of the weights.
const REPORT: usize = 500;

/// The weights of an earlier run, and the step it came to.
pub fn load(file: &PathBuf) -> Result<(HashMap<String, Tensor>, usize)> {
    if !file.exists() {
        return Ok(Default::default());
    }
    let mut tensors = safetensors::load(file, &Device::Cpu)?;
    let step = match tensors.remove("step") {
        Some(step) => step.to_vec1::<u32>()?[0] as usize,
        None => 0,
    };
    Ok((tensors, step))
}

impl Run {
    pub fn new(
        file: PathBuf,
        learners: &[&Learner],
        next: usize,
        steps: usize,
        rate: f64,
    ) -> Result<Self> {
        let vars: Vec<_> = learners.iter().map(|learner| learner.values.clone()).collect();
        let params = ParamsAdamW { lr: rate, weight_decay: 0.0, beta2: 0.99, ..Default::default() };
        let names = learners.iter().map(|learner| learner.network.name.to_string()).collect();
        Ok(Self {
            file,
            steps,
            next,
            optimizer: AdamW::new(vars, params)?,
            rate,
            losses: Vec::new(),
            start: Instant::now(),
            names,
        })
    }

    /// The number of the step to come, until all are done.
    pub fn step(&self) -> Option<usize> {
        (self.next < self.steps).then_some(self.next)
    }

    /// Takes a step against the gradient of `slope`, which is that of `loss`. The rate rises for 200 steps, then falls as a cosine.
    pub fn learn(&mut self, slope: &Tensor, loss: f32, learners: &[&Learner]) -> Result<()> {
        let done = self.next as f64 / self.steps as f64;
        let warm = ((self.next + 1) as f64 / 200.0).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.optimizer.set_learning_rate(self.rate * warm * (0.005 + 0.995 * cosine));
        self.optimizer.step(&slope.backward()?)?;
        self.losses.push(loss);
        self.next += 1;
        if self.next.is_multiple_of(REPORT) || self.next == self.steps {
            println!(
                "{} step {} of {}: loss {:.6}, {:.0} s",
                self.names.join("+"),
                self.next,
                self.steps,
                self.losses.iter().sum::<f32>() / self.losses.len() as f32,
                self.start.elapsed().as_secs_f64()
            );
            self.losses.clear();
            self.save(learners)?;
        }
        Ok(())
    }

    fn save(&self, learners: &[&Learner]) -> Result<()> {
        let tensor = |learner: &&Learner| {
            (learner.network.name.to_string(), learner.values.as_detached_tensor())
        };
        let mut tensors: HashMap<_, _> = learners.iter().map(tensor).collect();
        tensors.insert("step".into(), Tensor::new(&[self.next as u32], &Device::Cpu)?);
        let partial = self.file.with_extension("partial");
        safetensors::save(&tensors, &partial)?;
        std::fs::rename(partial, &self.file)?;
        Ok(())
    }
}

/// What the file that is shipped holds of a run: [out, in, 3, 3] and \[out\] of each layer, at half precision.
pub fn layers(network: Network, values: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (n, (weight, bias)) in ops::chain_layers(values, network.widths)?.into_iter().enumerate() {
        for (kind, tensor) in [("weight", weight), ("bias", bias)] {
            let name = format!("{}.{n}.{kind}", network.name);
            tensors.push((name, tensor.to_dtype(candle_core::DType::F16)?));
        }
    }
    Ok(tensors)
}
