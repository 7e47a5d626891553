// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks that a diffusion model fits the memory of its devices before any weights are downloaded or loaded.

use candle_core::DType;

use super::{config::Config, device::Device};
use crate::{
    engine::{Error, Format, MAX_INTERPOLATED_FRAMES},
    networks::{unet, vae},
    sampler::{Canvas, Footprint, Need, RESERVE, SamplerParams, Slices, Work},
    weights::keys::Keys,
};

/// The [`Footprint`] of a model, from the shapes of its tensors.
pub(super) struct Sizes {
    config: Config,
    dtype: DType,
    denoiser: usize,
    autoencoder: usize,
}

impl Sizes {
    /// Computes the sizes of networks with activations of type `dtype`.
    ///
    /// # Errors
    /// [`Error::Weights`] if `config` is invalid.
    pub(super) fn new(config: &Config, dtype: DType) -> Result<Self, Error> {
        let count =
            |keys: &Keys| keys.values().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
        Ok(Self {
            dtype,
            denoiser: count(&config.unet_keys()?) * dtype.size_in_bytes(),
            autoencoder: vae::weight_bytes(&config.vae_keys()?, dtype),
            config: config.clone(),
        })
    }
}

impl Footprint for Sizes {
    fn denoiser(&self) -> usize {
        self.denoiser
    }

    fn autoencoder(&self) -> usize {
        self.autoencoder
    }

    fn evaluate(
        &self,
        frames: usize,
        latent: (usize, usize),
        guided: bool,
        slices: Slices,
    ) -> usize {
        let branches = if guided { 2 } else { 1 };
        unet::peak_bytes(&self.config.unet, frames, latent, branches, self.dtype, slices)
    }

    fn encode(&self, latent: (usize, usize)) -> usize {
        vae::encode_bytes(&self.config.vae, latent)
    }

    fn decode(&self, frames: usize, latent: (usize, usize), slices: Slices) -> usize {
        vae::decode_bytes(&self.config.vae, frames, latent, self.dtype, slices)
    }
}

/// Checks the memory of a run. Each device has its memory in bytes, if known.
pub(super) struct MemoryCheck<'a> {
    pub(super) networks: &'a dyn Footprint,
    pub(super) params: &'a SamplerParams,
    pub(super) devices: &'a [(Device, Option<usize>)],
}

impl MemoryCheck<'_> {
    /// Returns the share of device number `device` for frames of size (w, h).
    fn work(&self, (width, height): (usize, usize), interpolated: usize, device: usize) -> Work {
        let canvas = Canvas::new((height, width), self.params.smallest);
        Work::new(self.params, &canvas, interpolated, (device, self.devices.len()))
    }

    fn need(
        &self,
        size: (usize, usize),
        interpolated: usize,
        device: usize,
        slices: Slices,
    ) -> Need {
        self.work(size, interpolated, device).need(self.networks, slices)
    }

    /// Returns the first device whose memory is smaller than the need in the smallest slices plus `reserve`
    /// bytes: its index, the needed bytes and the available bytes.
    fn lacks(
        &self,
        size: (usize, usize),
        interpolated: usize,
        reserve: usize,
    ) -> Option<(usize, usize, usize)> {
        let devices = self.devices.iter().enumerate();
        let mut lacks = devices.filter_map(|(device, (_, memory))| {
            let memory = (*memory)?;
            let need = self.need(size, interpolated, device, Slices::SMALLEST).total() + reserve;
            (need > memory).then_some((device, need, memory))
        });
        lacks.next()
    }

    /// Checks that the smallest output fits.
    ///
    /// # Errors
    /// [`Error::TooLittleMemory`].
    pub(super) fn check_any(&self, model: &str) -> Result<(), Error> {
        let (height, width) = self.params.smallest;
        // The longest window depends on the number of interpolated frames: the one that needs least decides.
        let fits = |interpolated| self.lacks((width, height), interpolated, 0);
        let lacks: Option<Vec<_>> = (0..=MAX_INTERPOLATED_FRAMES).map(fits).collect();
        let least = lacks.and_then(|all| all.into_iter().min_by_key(|(_, need, _)| *need));
        least.map_or(Ok(()), |(device, needed, available)| {
            let what = format!("{model} for the smallest output, {width}×{height},");
            Err(self.error(what, device, needed, available, NO_SIZE))
        })
    }

    /// Checks that a format fits. `output` maps max-pixels to the output size (w, h).
    ///
    /// # Errors
    /// [`Error::TooLittleMemory`].
    pub(super) fn check(
        &self,
        model: &str,
        format: &Format,
        output: impl Fn(u32) -> (usize, usize),
    ) -> Result<(), Error> {
        let Some((device, needed, available)) = self.lacks(format.output, format.interpolated, 0)
        else {
            return Ok(());
        };
        let what = format!("{model} for output of {}×{}", format.output.0, format.output.1);
        let instead = match self.max_pixels(format, output) {
            Some(pixels) => format!("use max-pixels={pixels} or less, or another device"),
            None => NO_SIZE.into(),
        };
        Err(self.error(what, device, needed, available, &instead))
    }

    /// Returns the largest max-pixels below the area of `format` whose output fits, or `None`.
    fn max_pixels(&self, format: &Format, output: impl Fn(u32) -> (usize, usize)) -> Option<u32> {
        let fits = |pixels| self.lacks(output(pixels), format.interpolated, RESERVE).is_none();
        let area = format.output.0 * format.output.1;
        // Memory grows with the area, except for the rounding of slices: a binary search finds the limit.
        let (mut low, mut high) = (0, u32::try_from(area).unwrap_or(u32::MAX));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        (low > 0).then_some(low)
    }

    fn error(
        &self,
        what: String,
        device: usize,
        needed: usize,
        available: usize,
        instead: &str,
    ) -> Error {
        Error::TooLittleMemory {
            what,
            device: self.devices[device].0.to_string(),
            needed: gib(needed, f64::ceil),
            available: gib(available, f64::floor),
            instead: instead.into(),
        }
    }

    /// Describes for users the memory and slices of a format: a line for each device, and one if it does not fit.
    pub(super) fn describe(
        &self,
        format: &Format,
        output: impl Fn(u32) -> (usize, usize),
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for (n, (device, memory)) in self.devices.iter().enumerate() {
            let need = |slices| self.need(format.output, format.interpolated, n, slices);
            let fits = |memory: usize| {
                let peak = |slices| need(slices).total();
                Slices::largest(memory.saturating_sub(RESERVE), peak).unwrap_or(Slices::SMALLEST)
            };
            let slices = memory.map_or_else(Slices::default, fits);
            let Need { weights, latents, networks } = need(slices);
            let [weights, latents, networks, total] =
                [weights, latents, networks, need(slices).total()].map(|n| gib(n, f64::ceil));
            let available = memory
                .map_or(String::new(), |memory| format!("; available {}", gib(memory, f64::floor)));
            lines.push(format!(
                "memory of {device}: weights {weights}, latents {latents}, networks {networks}, total \
                 {total}, in slices of {} pixels{available}",
                slices.pixels()
            ));
        }
        if self.lacks(format.output, format.interpolated, 0).is_some() {
            lines.push(match self.max_pixels(format, output) {
                Some(pixels) => {
                    format!("too little memory: the largest max-pixels that fits is {pixels}")
                }
                None => "too little memory: no max-pixels fits".into(),
            });
        }
        lines
    }
}

/// Advice if a smaller output does not help.
const NO_SIZE: &str = "no max-pixels fits: use a smaller min-height, another device or model=lite";

/// Formats bytes in GiB with two decimals.
fn gib(bytes: usize, round: fn(f64) -> f64) -> String {
    format!("{:.2} GiB", round(bytes as f64 / f64::from(1 << 30) * 100.0) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Model, Options, Sizing, Version};

    const GIB: usize = 1 << 30;

    /// The published model on devices with given memory.
    struct Case {
        params: SamplerParams,
        networks: Sizes,
        devices: Vec<(Device, Option<usize>)>,
    }

    impl Case {
        fn new(memory: &[usize]) -> Self {
            let devices = memory.iter().enumerate();
            Self {
                params: SamplerParams::from(&Options::default()),
                networks: Sizes::new(&Config::full(), DType::F16).unwrap(),
                devices: devices.map(|(n, bytes)| (Device::Cuda(n), Some(*bytes))).collect(),
            }
        }

        fn checks(&self) -> MemoryCheck<'_> {
            MemoryCheck { networks: &self.networks, params: &self.params, devices: &self.devices }
        }

        /// Checks the published example: 720×480, upscaled by 4.
        fn check(&self) -> Result<(), Error> {
            self.checks().check("model v1", &format(output(2_621_440)), output)
        }
    }

    /// Output size of the published example for a value of max-pixels.
    fn output(max_pixels: u32) -> (usize, usize) {
        let options = Options { max_pixels, ..Options::default() };
        let sizing = Sizing::Scale(4.0);
        options.output_size(Model::Diffusion(Version::V1), (720, 480), sizing).unwrap()
    }

    fn format(output: (usize, usize)) -> Format {
        Format { input: (720, 480), output, interpolated: 2, exact: false, alpha: false }
    }

    /// Parses the number that follows `part` in `text`.
    fn number_after(text: &str, part: &str) -> u32 {
        let rest = text.split(part).nth(1).unwrap_or_else(|| panic!("{part} is not in {text}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    #[test]
    fn too_little_memory_is_an_error_with_both_numbers_and_the_largest_max_pixels_that_fits() {
        assert_eq!(Case::new(&[16 * GIB]).check(), Ok(()));
        let case = Case::new(&[11 * GIB]);
        let text = case.check().unwrap_err().to_string();
        for part in
            ["model v1 for output of 1982×1320 needs", "GiB of memory on cuda:0", "11.00 GiB"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let pixels = number_after(&text, "max-pixels=");
        let fits = |pixels| case.checks().lacks(output(pixels), 2, RESERVE).is_none();
        assert!(fits(pixels) && !fits(pixels + 1), "{text}");
        let (w, h) = output(pixels);
        assert!(w * h <= pixels as usize, "{text}");
    }

    #[test]
    fn the_error_suggests_no_max_pixels_if_none_fits() {
        let case = Case::new(&[6 * GIB]);
        let text = case.check().unwrap_err().to_string();
        assert!(text.contains("no max-pixels fits") && text.contains("model=lite"), "{text}");
        let text = case.checks().check_any("model v1").unwrap_err().to_string();
        assert!(text.contains("smallest output, 1280×720, needs"), "{text}");
        assert_eq!(Case::new(&[11 * GIB]).checks().check_any("model v1"), Ok(()));
    }

    #[test]
    fn every_device_is_checked_for_its_share() {
        let text = Case::new(&[24 * GIB, 11 * GIB]).check().unwrap_err().to_string();
        assert!(text.contains("on cuda:1"), "{text}");
        // The first device encodes while it evaluates.
        let text = Case::new(&[16 * GIB, 16 * GIB]).check().unwrap_err().to_string();
        assert!(text.contains("on cuda:0"), "{text}");
        assert_eq!(Case::new(&[24 * GIB, 16 * GIB]).check(), Ok(()));
    }

    #[test]
    fn unknown_memory_passes_the_check() {
        let mut case = Case::new(&[0]);
        case.devices[0] = (Device::Cpu, None);
        assert_eq!(case.check(), Ok(()));
        let text = case.checks().describe(&format((1982, 1320)), output).join("\n");
        assert!(text.contains("memory of cpu") && text.contains("32768 pixels"), "{text}");
        assert!(!text.contains("available") && !text.contains("too little"), "{text}");
    }

    #[test]
    fn a_plan_lists_needed_and_available_memory_and_the_largest_max_pixels() {
        let plan =
            |bytes| Case::new(&[bytes]).checks().describe(&format((1982, 1320)), output).join("\n");
        let text = plan(79 * GIB);
        for part in ["memory of cuda:0: weights", "slices of 131072 pixels; available 79.00 GiB"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let text = plan(11 * GIB);
        assert!(text.contains("2048 pixels; available 11.00 GiB"), "{text}");
        assert!(number_after(&text, "max-pixels that fits is ") > 1_000_000, "{text}");
    }

    /// Usable memory of a GPU of given GB: the driver and a CUDA context take about 0.6 GiB.
    fn usable(gigabytes: usize) -> usize {
        gigabytes * GIB - 600 * (1 << 20)
    }

    /// Prints the table in benches/RESULTS.md: `cargo test --lib table_of_cards -- --nocapture`.
    #[test]
    fn table_of_cards() {
        let mut largest = Vec::new();
        for gigabytes in [8, 10, 12, 16, 24, 80] {
            let case = Case::new(&[usable(gigabytes)]);
            let check = case.checks();
            let slices = |size, interpolated| {
                let peak = |slices| check.need(size, interpolated, 0, slices).total();
                Slices::largest(usable(gigabytes) - RESERVE, peak)
            };
            // 16:9 frames, up to the default area of max-pixels.
            let heights = (720..=1212_usize).step_by(2);
            let sizes: Vec<_> =
                heights.map(|h| ((h * 16).div_ceil(9).next_multiple_of(2), h)).collect();
            let fitting = sizes.partition_point(|size| slices(*size, 2).is_some());
            let found = sizes[..fitting].last().and_then(|size| Some((*size, slices(*size, 2)?)));
            match found {
                Some(((w, h), slices)) => {
                    let Need { weights, latents, networks } = check.need((w, h), 2, 0, slices);
                    println!(
                        "| {gigabytes} | {w}×{h} | {} | {} | {} | {} |",
                        slices.pixels(),
                        gib(weights, f64::round),
                        gib(latents, f64::round),
                        gib(networks, f64::round)
                    );
                }
                None => println!("| {gigabytes} | none | | | | |"),
            }
            largest.push(found.map_or(0, |((w, h), _)| w * h));
        }
        // README.md, scripts/README.md and benches/RESULTS.md name these sizes.
        let expected = [0, 1504 * 846, 1790 * 1006, 2156 * 1212, 2156 * 1212, 2156 * 1212];
        assert_eq!(largest, expected);
    }
}
