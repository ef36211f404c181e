//! A device without a GPU.

use std::io::Write;

use burn::tensor::Device;
use harness::device::{self, Choice};

/// Mesa's software driver for Vulkan; where there is none, says loudly that the test is skipped.
pub fn software(test: &str) -> Option<Device> {
    match device::select(Choice::Vulkan { software: true }) {
        Ok(selected) => Some(selected.device),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {error}");
            None
        }
    }
}
