// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a frame costs in the element, beside GStreamer's own `videoconvert ! videoscale`.
//!
//! Output is always 1280×720 I420. "own" enlarges nothing: what is left is the element's way through
//! 16-bit R'G'B' and its queue.

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const FRAMES: u64 = 30;

fn bench(c: &mut Criterion) {
    gst::init().unwrap();
    gstvenhance::plugin_register_static().unwrap();
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(1));
    let scale = "videoconvert ! videoscale method=lanczos \
                 ! capsfilter caps=video/x-raw,width=1280,height=720";
    for (name, elements, (width, height)) in [
        ("own, 720p", "venhance up-scale=1 target-fps=0/1", (1280, 720)),
        ("lite, 360p to 720p", "venhance up-scale=2 target-fps=0/1", (640, 360)),
        ("videoconvert ! videoscale, 360p to 720p", scale, (640, 360)),
    ] {
        let caps = gst::Caps::builder("video/x-raw")
            .field("format", "I420")
            .field("width", width)
            .field("height", height)
            .field("framerate", gst::Fraction::new(30, 1))
            .build();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
        for (i, byte) in buffer.get_mut().unwrap().map_writable().unwrap().iter_mut().enumerate() {
            *byte = 16 + (i * 7 / 5 % 200) as u8;
        }
        let mut harness = gst_check::Harness::new_parse(elements);
        harness.set_src_caps(caps);
        let mut next = 0;
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations.div_ceil(FRAMES) {
                    for _ in 0..FRAMES {
                        let mut frame = buffer.copy();
                        frame.make_mut().set_pts(gst::ClockTime::SECOND * next / 30);
                        next += 1;
                        harness.push(frame).unwrap();
                    }
                    for _ in 0..FRAMES {
                        harness.pull().unwrap();
                    }
                }
                // Criterion divides by its own number.
                let frames = iterations.div_ceil(FRAMES) * FRAMES;
                start.elapsed().mul_f64(iterations as f64 / frames as f64)
            })
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
