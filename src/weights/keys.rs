// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which tensors a network needs, and whether a file holds them: all mistakes in one error.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Names of tensors, with their shapes.
pub type Keys = BTreeMap<String, Vec<usize>>;

/// Mistakes that an error lists; it counts the others.
const LISTED: usize = 10;

/// The tensors that `build` asks for, without memory for any.
///
/// # Errors
/// If it asks for one twice, or fails by itself.
pub fn keys<T>(build: impl FnOnce(VarBuilder) -> Result<T>) -> Result<Keys> {
    let recorder = Recorder::default();
    build(VarBuilder::from_backend(Box::new(recorder.clone()), DType::F32, Device::Cpu))?;
    let keys = recorder.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(keys.clone())
}

/// Compares what a network needs with what there is.
///
/// # Errors
/// If tensors are missing, superfluous or of another shape.
pub fn check(needed: &Keys, found: &Keys) -> Result<()> {
    let missing = needed.iter().filter(|(name, _)| !found.contains_key(*name));
    let missing = missing.map(|(name, shape)| format!("{name} {shape:?} is missing"));
    let extra = found.iter().filter(|(name, _)| !needed.contains_key(*name));
    let extra = extra.map(|(name, shape)| format!("{name} {shape:?} is not of this network"));
    let misshapen = needed.iter().filter_map(|(name, shape)| {
        let found = found.get(name).filter(|found| *found != shape)?;
        Some(format!("{name} is {found:?}, not {shape:?}"))
    });
    let mistakes: Vec<_> = missing.chain(misshapen).chain(extra).collect();
    if mistakes.is_empty() {
        return Ok(());
    }
    let listed = mistakes.iter().take(LISTED).cloned().collect::<Vec<_>>().join("; ");
    let more = match mistakes.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    candle_core::bail!(
        "these are not the weights of this network: of {} tensors, {} are wrong: {listed}{more}",
        needed.len(),
        mistakes.len()
    )
}

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
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.insert(name.to_owned(), shape.dims().to_vec()).is_some() {
            candle_core::bail!("{name} is asked for twice");
        }
        // One number that looks like all.
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is asked for without its shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_one_error_that_lists_ten() {
        let needed: Keys = (0..20).map(|n| (format!("a{n:02}"), vec![2, 3])).collect();
        assert!(check(&needed, &needed).is_ok());
        let mut found = needed.clone();
        found.retain(|name, _| name.as_str() > "a10");
        found.insert("a19".into(), vec![3, 2]);
        found.insert("b".into(), vec![1]);
        let error = check(&needed, &found).unwrap_err().to_string();
        for part in ["of 20 tensors, 13 are wrong", "a00 [2, 3] is missing", "and 3 more"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(error.matches("is missing").count(), 10);
        found = needed.clone();
        found.insert("a19".into(), vec![3, 2]);
        found.insert("b".into(), vec![1]);
        let error = check(&needed, &found).unwrap_err().to_string();
        assert!(
            error.contains("a19 is [3, 2], not [2, 3]; b [1] is not of this network"),
            "{error}"
        );
    }
}
