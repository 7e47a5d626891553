// SPDX-License-Identifier: MIT OR Apache-2.0
//! The training loop: parameters, optimizer, learning rate, checkpoints.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use candle_core::{DType, Device, Result, Tensor, Var, safetensors};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use gstvenhance::lite::network::NetworkShape;

use super::{
    gradient::{conv_chain, split_layers},
    random::Random,
};

/// Steps between two lines of the loss curve; each writes a checkpoint.
const REPORT_STEPS: usize = 500;

/// A network in training.
pub struct Trainee {
    network: NetworkShape,
    /// The parameters of all layers, one after the other: see [`conv_chain`].
    parameters: Var,
}

impl Trainee {
    /// A network with the parameters in `saved`, or with random ones.
    pub fn new(
        network: NetworkShape,
        saved: &HashMap<String, Tensor>,
        random: &mut Random,
        device: &Device,
    ) -> Result<Self> {
        let parameters = match saved.get(network.name) {
            Some(parameters) => parameters.to_device(device)?,
            None => initial_parameters(network, random, device)?,
        };
        Ok(Self { network, parameters: Var::from_tensor(&parameters)? })
    }

    /// Runs the network: [n, h, w, in] to [n, h, w, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv_chain(x, &self.parameters, self.network.channels)
    }
}

/// He initialization with zero biases. The last layer is scaled by 0.1: a network predicts a residual, which
/// begins near zero.
fn initial_parameters(
    network: NetworkShape,
    random: &mut Random,
    device: &Device,
) -> Result<Tensor> {
    let mut parameters = Vec::new();
    for (n, channels) in network.channels.windows(2).enumerate() {
        let is_last = n + 2 == network.channels.len();
        let scale = (2.0 / (9 * channels[0]) as f32).sqrt() * if is_last { 0.1 } else { 1.0 };
        let count = 9 * channels[0] * channels[1];
        parameters.extend((0..count).map(|_| random.normal() * scale));
        parameters.extend(std::iter::repeat_n(0.0, channels[1]));
    }
    Tensor::new(parameters, device)
}

/// A training run.
pub struct Run {
    /// The checkpoint.
    file: PathBuf,
    steps: usize,
    next: usize,
    optimizer: AdamW,
    /// Peak learning rate.
    rate: f64,
    /// Losses since the last line of the loss curve.
    losses: Vec<f32>,
    start: Instant,
    names: Vec<String>,
}

/// Loads a checkpoint: the parameters by network, and the number of steps done. Without a file: none, and 0.
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
    /// A run of `steps` steps, from step `next` on, with the peak learning rate `rate`.
    pub fn new(
        file: PathBuf,
        trainees: &[&Trainee],
        next: usize,
        steps: usize,
        rate: f64,
    ) -> Result<Self> {
        let vars: Vec<_> = trainees.iter().map(|trainee| trainee.parameters.clone()).collect();
        let params = ParamsAdamW { lr: rate, weight_decay: 0.0, beta2: 0.99, ..Default::default() };
        let names = trainees.iter().map(|trainee| trainee.network.name.to_string()).collect();
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

    /// The index of the next step; `None` when the run is complete.
    pub fn step(&self) -> Option<usize> {
        (self.next < self.steps).then_some(self.next)
    }

    /// Takes an optimizer step. `objective` is a scalar whose gradient is that of the loss; `loss` is reported.
    ///
    /// The learning rate warms up for 200 steps and decays along a cosine.
    pub fn learn(&mut self, objective: &Tensor, loss: f32, trainees: &[&Trainee]) -> Result<()> {
        let done = self.next as f64 / self.steps as f64;
        let warm_up = ((self.next + 1) as f64 / 200.0).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.optimizer.set_learning_rate(self.rate * warm_up * (0.005 + 0.995 * cosine));
        self.optimizer.step(&objective.backward()?)?;
        self.losses.push(loss);
        self.next += 1;
        if self.next.is_multiple_of(REPORT_STEPS) || self.next == self.steps {
            println!(
                "{} step {} of {}: loss {:.6}, {:.0} s",
                self.names.join("+"),
                self.next,
                self.steps,
                self.losses.iter().sum::<f32>() / self.losses.len() as f32,
                self.start.elapsed().as_secs_f64()
            );
            self.losses.clear();
            self.save(trainees)?;
        }
        Ok(())
    }

    fn save(&self, trainees: &[&Trainee]) -> Result<()> {
        let tensor = |trainee: &&Trainee| {
            (trainee.network.name.to_string(), trainee.parameters.as_detached_tensor())
        };
        let mut tensors: HashMap<_, _> = trainees.iter().map(tensor).collect();
        tensors.insert("step".into(), Tensor::new(&[self.next as u32], &Device::Cpu)?);
        let partial = self.file.with_extension("partial");
        safetensors::save(&tensors, &partial)?;
        std::fs::rename(partial, &self.file)?;
        Ok(())
    }
}

/// The tensors of a network for the plugin: weight [out, in, 3, 3] and bias \[out\] of each layer, in f16. The output is
/// multiplied by `scale`.
pub fn export_layers(
    network: NetworkShape,
    parameters: &Tensor,
    scale: f64,
) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    let layers = split_layers(parameters, network.channels)?;
    let last = layers.len() - 1;
    for (n, (weight, bias)) in layers.into_iter().enumerate() {
        let scale = if n == last { scale } else { 1.0 };
        for (kind, tensor) in [("weight", weight), ("bias", bias)] {
            let name = format!("{}.{n}.{kind}", network.name);
            tensors.push((name, (tensor * scale)?.to_dtype(DType::F16)?));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_scales_the_last_layer() {
        let network = NetworkShape { name: "test", channels: &[1, 2, 1] };
        let parameters = Tensor::ones(9 * 2 + 2 + 9 * 2 + 1, DType::F32, &Device::Cpu).unwrap();
        let tensors = export_layers(network, &parameters, 0.5).unwrap();
        let mean = |tensor: &Tensor| {
            let values = tensor.to_dtype(DType::F32).unwrap();
            values.mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let means: Vec<_> = tensors.iter().map(|(name, x)| (name.as_str(), mean(x))).collect();
        let expected = [
            ("test.0.weight", 1.0),
            ("test.0.bias", 1.0),
            ("test.1.weight", 0.5),
            ("test.1.bias", 0.5),
        ];
        assert_eq!(means, expected);
    }
}
