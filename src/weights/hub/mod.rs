// SPDX-License-Identifier: MIT OR Apache-2.0
//! Downloads from the Hugging Face hub to the cache that `huggingface_hub` uses as well: files that Python downloaded
//! are used here, and vice versa.

mod client;
mod config;
mod download;
mod failure;
mod partial;

pub use config::Hub;
