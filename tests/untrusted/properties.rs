// SPDX-License-Identifier: MIT OR Apache-2.0
//! Properties of the element as texts in the syntax of gst-launch.

use gst::{glib, prelude::*};
use gstvenhance::VEnhance;
use proptest::{collection::vec, prelude::*};

use crate::{assert_printable, bounded, cases, common};

/// The properties that can be set.
fn names() -> Vec<String> {
    common::init();
    let own = VEnhance::static_type();
    let class = glib::Class::<VEnhance>::from_type(own).unwrap();
    let specs = class.list_properties();
    let settable = specs.iter().filter(|spec| {
        spec.owner_type() == own && spec.flags().contains(glib::ParamFlags::WRITABLE)
    });
    settable.map(|spec| spec.name().to_owned()).collect()
}

fn value() -> impl Strategy<Value = String> {
    let texts = [
        "",
        "0",
        "1",
        "-1",
        "1.0",
        "2",
        "1e308",
        "-1e308",
        "NaN",
        "inf",
        "1e-320",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "0/1",
        "1/0",
        "0/0",
        "-24/1",
        "24000/1001",
        "2147483647/1",
        "1/2147483647",
        "23.976",
        "auto",
        "cpu",
        "cuda",
        "cuda:",
        "cuda:-1",
        "cuda:99999999999999999999",
        "cpu,cpu",
        ",",
        "cpu,,cpu",
        "lite",
        "v1",
        "V2",
        "fast",
        "true",
        "(string)x",
        "%s%n",
        "/dev/null",
        "/proc/self/mem",
    ];
    // The time that GStreamer takes to parse a text grows with the square of its length.
    let long = (0..1000_usize).prop_map(|count| "x,".repeat(count));
    prop_oneof![
        12 => proptest::sample::select(texts.map(str::to_owned).to_vec()).boxed(),
        4 => any::<String>().boxed(),
        4 => any::<f64>().prop_map(|number| number.to_string()).boxed(),
        4 => any::<i64>().prop_map(|number| number.to_string()).boxed(),
        1 => long.boxed(),
    ]
}

/// Runs two frames through an element with these properties; `lite` needs no weights.
fn check(properties: &[(String, String)]) {
    // GObject warns of a value that is out of range.
    glib::log_set_always_fatal(glib::LogLevels::LEVEL_ERROR);
    let properties: Vec<_> = properties
        .iter()
        .map(|(name, value)| {
            let value = value.replace('\0', "").replace('\\', "\\\\").replace('"', "\\\"");
            format!("{name}=\"{value}\"")
        })
        .collect();
    let pipeline = format!(
        "videotestsrc num-buffers=2 ! video/x-raw,width=32,height=16,framerate=8/1 ! venhance {} \
         model=lite ! fakesink",
        properties.join(" ")
    );
    bounded(|| {
        // With other flags, a pipeline that is parsed in part would never be freed.
        if gst::parse::launch_full(&pipeline, None, gst::ParseFlags::FATAL_ERRORS).is_ok()
            && let (_, Some(error)) = common::try_run(&pipeline)
        {
            assert_printable(&error);
            assert!(!error.contains("internal error"), "{error}");
        }
    });
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn any_texts_run_or_are_refused(
        properties in vec((proptest::sample::select(names()), value()), 1..4),
    ) {
        check(&properties);
    }
}
