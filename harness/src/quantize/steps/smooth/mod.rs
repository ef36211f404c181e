//! `smooth`: channel scales that move difficulty from activations to weights; one file per method.

use models::architecture::Architecture;
use models::{Off, Port, Site, Tap, token_tensor};
use serde_json::{Map, Value, json};

use crate::hidden::Hidden;
use crate::names;
use crate::quantize::steps::Stage;
use crate::quantize::steps::activations::PORTS;
use crate::quantize::{ModelFacts, ModelInFlight, StepError};

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

/// Whether a site's scales are those of another one: experts read what their router reads.
fn follows(site: Site) -> bool {
    site.expert.is_some() && site.port == Port::MlpIn
}

/// The sites of a model that `sites` names, from the end of a block to its beginning, without those that follow another one.
fn sites_of(sites: &[String], architecture: &Architecture) -> Vec<Site> {
    let groups = architecture.first_groups();
    let of_port = |port: Port| groups.iter().map(|(site, _)| *site).filter(move |site| site.port == port);
    ports(sites).into_iter().flat_map(of_port).filter(|site| !follows(*site)).collect()
}

/// Refuses a model some of whose sites can take no scale. Behind a rotation any site of the forward pass can, which is left to
/// acting.
fn check_scales(sites: &[String], facts: &ModelFacts) -> Result<(), StepError> {
    if facts.earlier.iter().any(|step| step.method().stage() == Stage::Rotate) {
        return Ok(());
    }
    let sites = sites_of(sites, facts.architecture);
    sites.into_iter().try_for_each(|site| Ok(facts.architecture.check_rescale(site)?))
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

/// Leads the samples of a search past a tap through all that the decoder holds, without the transform that is searched; on
/// the first part they are what `samples` gives, and on later ones what the parts before have made of them.
///
/// # Errors
/// Those of `samples`, states that find no place, or where the user stopped it.
fn lead(
    model: &mut ModelInFlight,
    tap: &mut dyn Tap,
    samples: impl FnOnce(&ModelInFlight) -> Result<Vec<Vec<u32>>, StepError>,
) -> Result<(), StepError> {
    let states = |error: std::io::Error| StepError::States(error.to_string());
    let device = model.decoder.device();
    let mut stream = match model.carried.take::<Hidden>() {
        Some(stream) => stream,
        None => {
            let mut stream = Hidden::default();
            let read = samples(model)?;
            stream.push(model.decoder.embed(token_tensor(&read, &device))).map_err(states)?;
            stream
        }
    };
    let layers = model.decoder.architecture.layers;
    for layer in model.decoder.blocks.layers() {
        if !model.calibrator.progress(layer, layers) {
            return Err(StepError::Interrupted);
        }
        let x = stream.get(0, &device).map_err(states)?;
        let x = model.decoder.through_block(layer, x, tap);
        stream.put(0, x).map_err(states)?;
    }
    model.carried.put(stream);
    Ok(())
}

/// Leads the samples of a search that is remembered to where the next part of the model needs them. Behind the last part, and
/// so in a whole model, nobody does.
///
/// # Errors
/// As [`lead`].
fn lead_on(
    model: &mut ModelInFlight,
    samples: impl FnOnce(&ModelInFlight) -> Result<Vec<Vec<u32>>, StepError>,
) -> Result<(), StepError> {
    if model.decoder.has_head() { Ok(()) } else { lead(model, &mut Off, samples) }
}

/// What a search is remembered by: the transforms before it, the step, and the part of the model.
fn search_key(model: &ModelInFlight, step: Value) -> String {
    json!({ "state": model.state, "step": step, "blocks": model.decoder.blocks.layers() }).to_string()
}

/// A report of scales by site.
fn report(scales: Map<String, Value>) -> Map<String, Value> {
    let mut report = Map::new();
    report.insert("groups".into(), scales.len().into());
    report.insert("scales".into(), scales.into());
    report
}
