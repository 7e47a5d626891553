// SPDX-License-Identifier: MIT OR Apache-2.0
//! A diffusion model at work in the element stops within a block of the network. Alone in its process: all
//! products are counted, which no slow machine changes.

mod common;

use std::{path::Path, thread::sleep, time::Duration};

use common::{Rig, TIMEOUT, caps, wait_for};
use gst::prelude::*;
use gstvenhance::{
    networks::{text, unet, vae},
    ops::operations,
    weights::{self, Config},
};

/// An element in the middle of an evaluation, and the products of a whole one.
fn busy(model: &Path) -> (Rig, u64) {
    let properties = format!("model=v1 model-dir={} up-scale=1 min-height=0", model.display());
    let mut rig = Rig::with(&properties, &caps("RGB", 64, 16, (8, 1)));
    rig.push(4);
    rig.event(gst::event::Eos::new());
    let done = |step: usize| {
        loop {
            let message = rig.bus.timed_pop_filtered(
                gst::ClockTime::try_from(TIMEOUT).unwrap(),
                &[gst::MessageType::Element, gst::MessageType::Error],
            );
            let message = message.unwrap_or_else(|| panic!("step {step} never ends"));
            assert_eq!(message.type_(), gst::MessageType::Element, "{message:?}");
            let unit = message.structure().and_then(|s| s.get::<String>("unit").ok());
            if unit == Some(format!("window 0, step {step}")) {
                return operations();
            }
        }
    };
    let (first, second) = (done(0), done(1));
    let evaluation = second - first;
    wait_for("the next evaluation", || operations() > second + evaluation / 20);
    (rig, evaluation)
}

#[test]
fn an_evaluation_ends_within_a_block_when_the_element_stops_or_flushes() {
    common::init();
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        min_padded: (16, 64),
        unet: unet::Config {
            dim: 32,
            head_dim: 8,
            context_dim: 48,
            num_res_blocks: 1,
            ..unet::Config::full()
        },
        vae: vae::Config { block_out_channels: vec![32; 4], layers_per_block: 1 },
        text: text::Config { width: 48, heads: 4, layers: 3 },
    };
    weights::synthesize(folder.path(), &config, candle_core::DType::F32).unwrap();
    for state in [Some(gst::State::Ready), Some(gst::State::Null), None] {
        let (rig, evaluation) = busy(folder.path());
        let before = operations();
        match state {
            // Returns when the model has stopped.
            Some(state) => drop(rig.element.set_state(state).unwrap()),
            None => {
                rig.element.static_pad("sink").unwrap().send_event(gst::event::FlushStart::new());
                let mut last = 0;
                wait_for("rest", || {
                    sleep(Duration::from_millis(500));
                    std::mem::replace(&mut last, operations()) == last
                });
            }
        }
        let after = operations() - before;
        eprintln!("{state:?}: {:.3} of an evaluation", after as f64 / evaluation as f64);
        assert!(after < evaluation / 4, "{state:?}: {after} of {evaluation}");
        sleep(Duration::from_millis(50));
        assert_eq!(operations() - before, after, "{state:?}: something works on");
        assert!(rig.frames().is_empty());
    }
}
