// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the element's cost per input frame, compared with `videoconvert ! videoscale`.
//!
//! Output is always 1280×720 I420. "own" keeps the size: it measures the conversion to 16-bit R'G'B'
//! and back, and the queue. Shot detection holds a frame back, which the harness would wait for.

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const FRAMES: u64 = 30;

fn bench(c: &mut Criterion) {
    gst::init().unwrap();
    gstvenhance::plugin_register_static().unwrap();
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    let scale = "videoconvert ! videoscale method=lanczos \
                 ! capsfilter caps=video/x-raw,width=1280,height=720";
    for (name, elements, (width, height), outputs) in [
        ("own, 720p", "venhance shot-detection=false up-scale=1 target-fps=0/1", (1280, 720), 1),
        (
            "lite, 360p to 720p",
            "venhance shot-detection=false model=lite up-scale=2 target-fps=0/1",
            (640, 360),
            1,
        ),
        (
            "lite, 360p to 720p, one interpolated frame",
            "venhance shot-detection=false model=lite up-scale=2 target-fps=60",
            (640, 360),
            2,
        ),
        ("videoconvert ! videoscale, 360p to 720p", scale, (640, 360), 1),
    ] {
        let caps = gst::Caps::builder("video/x-raw")
            .field("format", "I420")
            .field("width", width)
            .field("height", height)
            .field("framerate", gst::Fraction::new(30, 1))
            .build();
        let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
        let buffers: Vec<_> = (0..8).map(|n| picture(&info, 3 * n)).collect();
        let mut harness = gst_check::Harness::new_parse(elements);
        harness.set_src_caps(caps);
        let (mut pushed, mut pulled) = (0, 0);
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations.div_ceil(FRAMES) {
                    for _ in 0..FRAMES {
                        let mut frame = buffers[pushed as usize % buffers.len()].copy();
                        frame.make_mut().set_pts(gst::ClockTime::SECOND * pushed / 30);
                        pushed += 1;
                        harness.push(frame).unwrap();
                    }
                    // No interpolated frame precedes the first input frame.
                    while pulled < outputs * pushed - (outputs - 1) {
                        harness.pull().unwrap();
                        pulled += 1;
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

/// A texture shifted right by `shift` pixels.
fn picture(info: &gst_video::VideoInfo, shift: usize) -> gst::Buffer {
    let mut buffer = gst::Buffer::with_size(info.size()).unwrap();
    let width = info.width() as usize;
    for (n, byte) in buffer.get_mut().unwrap().map_writable().unwrap().iter_mut().enumerate() {
        let (x, y) = ((n % width + shift) as f32, (n / width) as f32);
        *byte = (128.0 + 40.0 * ((0.3 * x + 0.1 * y).sin() + (0.05 * x - 0.4 * y).sin())) as u8;
    }
    buffer
}

criterion_group!(benches, bench);
criterion_main!(benches);
