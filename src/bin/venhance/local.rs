// SPDX-License-Identifier: MIT OR Apache-2.0
//! Only the file that the user names is read: nothing that a file says opens a network connection or another
//! file.

use gst::prelude::*;

/// The only element that opens an address.
const FILE_SOURCE: &str = "filesrc";

/// Removes from this process every element that can open what a playlist or a redirection refers to.
pub fn forbid_references() {
    let registry = gst::Registry::get();
    for feature in registry.features(gst::ElementFactory::static_type()) {
        let Some(factory) = feature.downcast_ref::<gst::ElementFactory>() else { continue };
        let opens_addresses =
            factory.uri_type() == gst::URIType::Src && factory.name() != FILE_SOURCE;
        let class = factory.metadata("klass").unwrap_or_default();
        // Adaptive: HLS, DASH and Smooth Streaming. Network: SDP. Editing: projects.
        let follows =
            class.split('/').any(|part| ["Adaptive", "Network", "Editing"].contains(&part));
        if opens_addresses || follows {
            registry.remove_feature(&feature);
        }
    }
}

/// Whether a file of this format can only refer to videos: a playlist, a manifest, or any other text.
pub fn is_text(format: &str) -> bool {
    let formats = ["application/x-hls", "application/sdp", "application/smil", "application/xges"];
    format.starts_with("text/") || format.ends_with("xml") || formats.contains(&format)
}
