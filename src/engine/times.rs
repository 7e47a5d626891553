// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times in a clip: what a caller of an [`Enhancer`](super::Enhancer) asks for.

use super::Error;

/// Returns the times of input frame `n` of a clip and of the output frames that it adds, with `interpolated`
/// frames (k) between two input frames. The unit is the interval between two output frames: input frame n is
/// at n·(k+1).
///
/// `begins` says whether the frame is the first one that is pushed: it adds only itself.
pub fn multiple_times(n: u64, begins: bool, interpolated: usize) -> (u64, Vec<u64>) {
    let interpolated = interpolated as u64;
    let time = n.saturating_mul(interpolated + 1);
    let first = if begins { time } else { time.saturating_sub(interpolated) };
    (time, (first..=time).collect())
}

/// Checks what a caller asks for with an input frame at `time`, after one at `previous` if there is one.
///
/// # Errors
/// [`Error::Internal`] unless the times ascend: `previous`, then `outputs`, the last of them at `time` or before
/// it; and `time` after `previous`.
pub fn check_times(previous: Option<u64>, time: u64, outputs: &[u64]) -> Result<(), Error> {
    let after_previous = |time: u64| previous.is_none_or(|previous| time > previous);
    let valid = after_previous(time)
        && outputs.first().is_none_or(|first| after_previous(*first))
        && outputs.is_sorted_by(|a, b| a < b)
        && outputs.last().is_none_or(|last| *last <= time);
    match valid {
        true => Ok(()),
        false => Err(Error::Internal {
            what: format!(
                "output frames at {outputs:?} with an input frame at {time}, after one at {previous:?}"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_multiple_of_the_output_interval_comes_once() {
        for interpolated in 0..4 {
            let step = interpolated as u64 + 1;
            let times = |n| multiple_times(n, n == 5, interpolated);
            let outputs: Vec<u64> = (5..9).flat_map(|n| times(n).1).collect();
            assert_eq!(outputs, (5 * step..=8 * step).collect::<Vec<_>>());
            for n in 5..9 {
                let previous = (n > 5).then(|| (n - 1) * step);
                assert_eq!(check_times(previous, times(n).0, &times(n).1), Ok(()));
            }
        }
    }

    #[test]
    fn times_that_do_not_ascend_are_refused() {
        for (previous, time, outputs) in [
            (Some(5), 5, &[][..]),
            (Some(5), 9, &[5, 9]),
            (Some(5), 9, &[8, 10]),
            (Some(5), 9, &[8, 7]),
            (Some(5), 9, &[8, 8]),
            (None, 3, &[2, 4]),
        ] {
            let checked = check_times(previous, time, outputs);
            assert!(matches!(checked, Err(Error::Internal { .. })), "{outputs:?}");
        }
        assert_eq!(check_times(None, 3, &[0, 1, 3]), Ok(()));
        assert_eq!(check_times(Some(3), 4, &[]), Ok(()));
    }
}
