//! `rotate`: orthogonal transforms that spread what is large over all channels; one file per method.
//!
//! | site | what is turned | where |
//! |---|---|---|
//! | `residual` | the residual stream, and so `attn_in`, `mlp_in` and `head_in` | in the weights; norms are folded |
//! | `v` | values, head by head | in the weights of v and o |
//! | `o_in` | as `v`, and then across the query heads | the second part in the forward pass |
//! | `down_in` | what down reads | in the forward pass |
//! | `qk` | queries and keys behind rotary embedding, head by head | in the forward pass |

use models::{Decoder, Fallback, Hadamard, Port, Site};
use rand_chacha::rand_core::Rng;
use serde_json::{Map, Value, json};

use crate::calibrate::set;
use crate::names;
use crate::quantize::{ModelFacts, StepError};

pub mod best_of;
pub mod cayley;
pub mod hadamard;
pub mod random_orthogonal;

/// The words of `sites`.
pub const SITES: [&str; 5] = ["residual", "v", "o_in", "down_in", "qk"];

/// QuaRot's, where keys are not rounded.
fn default_sites() -> Vec<String> {
    ["residual", "o_in", "down_in"].map(String::from).to_vec()
}

/// Refuses sites that cannot be rotated, and repetition.
fn check_sites(sites: &[String]) -> Result<(), String> {
    if sites.is_empty() {
        return Err("`sites` is empty: leave it out for the default, or the step".into());
    }
    for (i, site) in sites.iter().enumerate() {
        if !SITES.contains(&site.as_str()) {
            let near = names::hint(site, SITES);
            return Err(format!(
                "`sites`: nothing can be rotated at `{site}`{near}; possible are {}",
                SITES.join(", ")
            ));
        }
        if sites[..i].contains(site) {
            return Err(format!("`sites` names `{site}` twice"));
        }
    }
    if has(sites, "v") && has(sites, "o_in") {
        return Err("`sites` names `v` and `o_in`, which begins with what `v` does: keep one of them".into());
    }
    Ok(())
}

fn has(sites: &[String], site: &str) -> bool {
    sites.iter().any(|other| other == site)
}

/// The sites in the order of [`SITES`].
fn ordered(sites: &[String]) -> Vec<String> {
    SITES.into_iter().filter(|site| has(sites, site)).map(String::from).collect()
}

/// Refuses a model whose sites cannot be rotated.
fn check_model(sites: &[String], facts: &ModelFacts) -> Result<(), StepError> {
    match has(sites, "residual") {
        true => Ok(facts.architecture.check_residual_rotation()?),
        false => Ok(()),
    }
}

/// What a rotation has for itself: a second one of the same channels would be part of the first.
fn claims(sites: &[String]) -> Vec<String> {
    let claim = |site: &String| match site.as_str() {
        "v" | "o_in" => "the rotation of the values".into(),
        other => format!("the rotation at `{other}`"),
    };
    sites.iter().map(claim).collect()
}

/// Seeds of everything that one rotation draws.
#[derive(Clone, Copy, Debug)]
struct Seeds {
    cell: u64,
    draw: usize,
}

impl Seeds {
    fn of(self, what: &str) -> u64 {
        set::stream(&format!("rotation {} of {what}", self.draw), self.cell).next_u64()
    }
}

/// Whose matrices a method chooses.
struct Matrices<'a> {
    /// Of the residual stream, by its width.
    residual: &'a dyn Fn(usize) -> Hadamard,
    /// Of the values of a block, by its number and the channels of a head.
    values: &'a dyn Fn(usize, usize) -> Hadamard,
}

/// Rotates the sites of a decoder; what is reported of it. Everything in the forward pass is a Hadamard transform, whose
/// product is cheap, or what `fallback` puts in its place.
fn rotate(
    decoder: &mut Decoder,
    sites: &[String],
    matrices: &Matrices,
    fallback: Fallback,
    seeds: Seeds,
) -> Result<Map<String, Value>, StepError> {
    let a = decoder.architecture.clone();
    let (heads, head_dim) = (a.attention.heads, a.attention.head_dim);
    let online = |what: &str, order: usize| Hadamard::new(order, fallback, seeds.of(what));
    let mut found = Map::new();
    if has(sites, "residual") {
        let rotation = (matrices.residual)(a.hidden);
        decoder.rotate_residual(&rotation)?;
        found.insert("residual".into(), described(&rotation));
    }
    if has(sites, "v") || has(sites, "o_in") {
        for layer in decoder.blocks.layers() {
            let rotation = (matrices.values)(layer, head_dim);
            decoder.rotate_values(layer, &rotation)?;
            found.insert("v".into(), described(&rotation));
        }
    }
    if has(sites, "o_in") {
        let rotation = online("heads", heads).over(head_dim);
        found.insert("heads".into(), everywhere(decoder, Port::OIn, &rotation)?);
    }
    if has(sites, "down_in") {
        let rotation = online("down_in", a.mlp.intermediate);
        found.insert("down_in".into(), everywhere(decoder, Port::DownIn, &rotation)?);
    }
    if has(sites, "qk") {
        let rotation = online("qk", head_dim);
        for layer in decoder.blocks.layers() {
            decoder.rotate_queries_and_keys(layer, &rotation)?;
        }
        found.insert("qk".into(), described(&rotation));
    }
    let mut report = Map::new();
    report.insert("rotations".into(), found.into());
    Ok(report)
}

/// One rotation in the forward pass at a port of every block, where it is one.
fn everywhere(decoder: &mut Decoder, port: Port, rotation: &Hadamard) -> Result<Value, StepError> {
    if rotation.construction().is_identity() {
        // A transform that does nothing would still be computed.
        let mut skipped = described(rotation);
        skipped["skipped"] = format!("no Hadamard matrix of order {}", rotation.order()).into();
        return Ok(skipped);
    }
    let sites = decoder.groups().into_iter().map(|(site, _)| site).filter(|site| site.port == port);
    for site in sites.collect::<Vec<Site>>() {
        decoder.rotate_online(site, rotation)?;
    }
    Ok(described(rotation))
}

/// How a matrix was made, for the record.
fn described(rotation: &Hadamard) -> Value {
    json!({
        "order": rotation.order(),
        "construction": rotation.construction(),
        "random-signs": rotation.has_random_signs(),
    })
}
