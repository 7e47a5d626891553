// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names and shapes of the tensors of a network, and the comparison with those of a file.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use parking_lot::Mutex;

use crate::engine::printable;

/// Names and shapes of tensors.
pub type Keys = BTreeMap<String, Vec<usize>>;

/// Number of mismatches that an error lists.
const LISTED: usize = 10;

/// Records the tensors that `build` requests. They take no memory.
///
/// # Errors
/// If `build` requests a tensor twice, or fails.
pub fn keys<T>(build: impl FnOnce(VarBuilder) -> Result<T>) -> Result<Keys> {
    let recorder = Recorder::default();
    build(VarBuilder::from_backend(Box::new(recorder.clone()), DType::F32, Device::Cpu))?;
    let keys = recorder.0.lock();
    Ok(keys.clone())
}

/// Compares the tensors that a network needs with those that were found.
///
/// # Errors
/// If tensors are missing, unexpected, or have another shape; the error lists all of them, up to a limit.
pub fn check(needed: &Keys, found: &Keys) -> Result<()> {
    let missing = needed.iter().filter(|(name, _)| !found.contains_key(*name));
    let missing = missing.map(|(name, shape)| format!("{} is missing", shown(name, shape)));
    let extra = found.iter().filter(|(name, _)| !needed.contains_key(*name));
    let extra = extra.map(|(name, shape)| format!("{} is unexpected", shown(name, shape)));
    let misshapen = needed.iter().filter_map(|(name, shape)| {
        let found = found.get(name).filter(|found| *found != shape)?;
        Some(format!("{name} has shape {}, expected {shape:?}", shown_shape(found)))
    });
    let mut mismatches = missing.chain(misshapen).chain(extra);
    let listed: Vec<_> = mismatches.by_ref().take(LISTED).collect();
    if listed.is_empty() {
        return Ok(());
    }
    let more = mismatches.count();
    let (count, listed) = (listed.len() + more, listed.join("; "));
    let more = match more {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    candle_core::bail!(
        "the tensors do not match those of the network ({count} mismatches, {} tensors): {listed}{more}",
        needed.len()
    )
}

fn shown(name: &str, shape: &[usize]) -> String {
    format!("{} {}", printable(name), shown_shape(shape))
}

fn shown_shape(shape: &[usize]) -> String {
    match shape.len() {
        ..=8 => format!("{shape:?}"),
        rank => format!("of rank {rank}"),
    }
}

/// A `VarBuilder` backend that records what is requested.
#[derive(Default, Clone)]
struct Recorder(Arc<Mutex<Keys>>);

impl SimpleBackend for Recorder {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let mut keys = self.0.lock();
        if keys.insert(name.to_owned(), shape.dims().to_vec()).is_some() {
            candle_core::bail!("{name} is requested twice");
        }
        // A single element, expanded to the shape.
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is requested without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_lists_ten_mismatches_and_counts_the_others() {
        let needed: Keys = (0..20).map(|n| (format!("a{n:02}"), vec![2, 3])).collect();
        assert!(check(&needed, &needed).is_ok());
        let mut found = needed.clone();
        found.retain(|name, _| name.as_str() > "a10");
        found.insert("a19".into(), vec![3, 2]);
        found.insert("b".into(), vec![1]);
        let error = check(&needed, &found).unwrap_err().to_string();
        for part in ["13 mismatches, 20 tensors", "a00 [2, 3] is missing", "and 3 more"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(error.matches("is missing").count(), 10);
        found = needed.clone();
        found.insert("a19".into(), vec![3, 2]);
        found.insert("b".into(), vec![1]);
        let error = check(&needed, &found).unwrap_err().to_string();
        assert!(
            error.contains("a19 has shape [3, 2], expected [2, 3]; b [1] is unexpected"),
            "{error}"
        );
    }
}
