//! `smooth`: channel scales that move difficulty from activations to weights; one file per method.

use models::Port;
use serde_json::{Map, Value, json};

use crate::names;
use crate::quantize::steps::activations::PORTS;
use crate::quantize::{ModelInFlight, StepError};

pub mod awq;
pub mod osplus;
pub mod smoothquant;

/// Refuses sites where no scale can be folded, and repetition.
fn check_sites(sites: &[String], allowed: &[Port]) -> Result<(), String> {
    if sites.is_empty() {
        return Err("`sites` is empty: leave it out for the default, or the step".into());
    }
    let words: Vec<&str> = allowed.iter().map(|port| port.as_str()).collect();
    for (i, site) in sites.iter().enumerate() {
        if !words.contains(&site.as_str()) {
            let near = names::hint(site, words.iter().copied());
            return Err(format!(
                "`sites`: no scale can be folded at `{site}`{near}; possible are {}",
                words.join(", ")
            ));
        }
        if sites[..i].contains(site) {
            return Err(format!("`sites` names `{site}` twice"));
        }
    }
    Ok(())
}

/// The ports that `sites` names, from the end of a block to its beginning.
///
/// `v` and `up` produce what `o` and `down` read: their rows are scaled before the scales of the sites that they read
/// are fitted, so that every site is balanced when the step is done.
fn ports(sites: &[String]) -> Vec<Port> {
    let named = |port: &Port| sites.iter().any(|site| site == port.as_str());
    PORTS.into_iter().rev().filter(named).collect()
}

/// Smallest and largest scale of a site, for the record.
pub(crate) fn extremes(scales: &[f64]) -> Value {
    let smallest = scales.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = scales.iter().copied().fold(0.0, f64::max);
    json!({ "smallest": smallest, "largest": largest })
}

/// What a smoothing step claims: the scales of its sites. Two steps may smooth one site, one after the other.
fn claims() -> Vec<String> {
    Vec::new()
}

/// The first samples of the calibration set, as they are fed: without BOS where a prefix stands for it.
///
/// # Errors
/// Where the set has fewer; `method` is named.
fn first_samples(model: &ModelInFlight, count: usize, method: &str) -> Result<Vec<Vec<u32>>, StepError> {
    let start = model.calibrator.start();
    let samples = model.calibrator.samples();
    if samples.len() < count {
        return Err(StepError::TooLittle(format!(
            "{method} searches on {count} samples and the calibration set has {}: lower the step's `samples`, or raise \
             the set's",
            samples.len()
        )));
    }
    let fed =
        |sample: &Vec<u32>| sample[usize::from(model.decoder.stands_for_first(start, sample))..].to_vec();
    Ok(samples[..count].iter().map(fed).collect())
}

/// A report of scales by site.
fn report(scales: Map<String, Value>) -> Map<String, Value> {
    let mut report = Map::new();
    report.insert("groups".into(), scales.len().into());
    report.insert("scales".into(), scales.into());
    report
}
