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

/// Whether a file with this beginning is text, such as a playlist, which can only refer to videos.
pub fn is_text(beginning: &[u8]) -> bool {
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => text,
        // The last character may be cut.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&beginning[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || c.is_whitespace())
}
