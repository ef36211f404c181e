//! Spike ratios of a model from this program's statistics, in the form of `scripts/oracle/activation_ratios.py`.
//!
//!     activation_ratios MODEL_DIR TOKENS.json
//!
//! TOKENS.json is a list of lists of token ids. Prints as JSON, greatest ratio first, what the script prints.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use burn::tensor::Device;
use harness::calibrate::observe::{Options, collect};
use models::Checkpoint;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens] = &arguments[..] else {
        return Err("usage: activation_ratios MODEL_DIR TOKENS.json".into());
    };
    let samples: Vec<Vec<u32>> = serde_json::from_str(&std::fs::read_to_string(tokens)?)?;
    let mut decoder = Checkpoint::open(Path::new(model))?.load(&Device::flex())?;
    let statistics = collect(&mut decoder, &samples, false, &Options::default(), &mut |_, _| true)?;
    let mut ratios = statistics.ratios()?;
    ratios.sort_by(|a, b| b.1.total_cmp(&a.1));
    let sites: Vec<Value> = ratios
        .into_iter()
        .map(|(site, ratio)| {
            let statistics = &statistics.sites[&site];
            let top: Vec<Value> = statistics
                .top(8)
                .into_iter()
                .map(|peak| {
                    let at = peak.at;
                    json!({
                        "sample": peak.sample, "position": at.position, "token": at.token, "scale": at.scale,
                    })
                })
                .collect();
            json!({ "site": site.to_string(), "ratio": ratio, "absmax": statistics.absmax(), "top": top })
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&sites)?);
    Ok(())
}
