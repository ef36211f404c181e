//! `schemes`: ways to round activations, plain and repaired, one drawing for each model and metric.
//!
//! Shows recipes of `weights` and `activations` alone, with or without QFeM and a prefix. A row is a way to choose the
//! scales (per-tensor dynamic, per-tensor static by some observer, per-token), a mark a cure that stands with at least
//! two of them, the dashed line the original.
//!
//! # Reference
//! arXiv:2405.14428, its figure of quantization schemes. Its second half, latency, is not shown: rounding is simulated.

use serde_json::Value;

use super::{Figure, file_stem};
use crate::record::{Contents, canonical_json};
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::drawing::bands::{Bands, Point};
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Entry, is_activations, is_prefix, is_qfem, is_weights};
use crate::report::{metric, rows};

/// See the module.
pub struct Schemes;

impl Figure for Schemes {
    fn name(&self) -> &'static str {
        "schemes"
    }

    fn about(&self) -> &'static str {
        "activation scales per tensor, static, per token, with and without cures"
    }

    fn applies(&self, contents: &Contents) -> bool {
        rows::metrics(contents).iter().any(|metric| !families(&recipes::entries(contents, metric)).is_empty())
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let mut drawings = Vec::new();
        for metric in rows::metrics(contents) {
            let entries = recipes::entries(contents, metric);
            drawings.extend(families(&entries).iter().map(|family| draw(family, &entries, metric)));
        }
        Ok(drawings)
    }
}

/// What the members of a family have in common: model, weights, and the width of activations.
fn common(entry: &Entry<'_>) -> Option<(String, String, u64)> {
    let host = entry.without(&[is_qfem, is_prefix]);
    if !matches!(host.as_slice(), [weights, activations] if is_weights(weights) && is_activations(activations))
    {
        return None;
    }
    let bits = host[1].get("bits")?.as_u64().filter(|bits| *bits < 16)?;
    Some((entry.model().to_owned(), canonical_json(host[0]), bits))
}

/// Measured recipes with the same model and weights and at least two schemes, plain or with cures that stand with two.
fn families<'a>(entries: &[Entry<'a>]) -> Vec<Vec<Entry<'a>>> {
    let plain: Vec<Entry<'_>> =
        entries.iter().filter(|entry| common(entry).is_some() && entry.value().is_some()).copied().collect();
    let mut families = Vec::new();
    for family in distinct(plain.iter().filter_map(common)) {
        let members: Vec<Entry<'a>> =
            plain.iter().filter(|entry| common(entry).as_ref() == Some(&family)).copied().collect();
        let schemes_with = |cure: &(Option<String>, Option<String>)| {
            let with = members.iter().filter(|entry| cure_of(entry) == *cure);
            distinct(with.filter_map(|entry| entry.step(is_activations))).len()
        };
        let shown = |entry: &&Entry<'_>| {
            let cure = cure_of(entry);
            cure == (None, None) || schemes_with(&cure) > 1
        };
        let shown: Vec<Entry<'a>> = members.iter().filter(shown).copied().collect();
        let schemes = distinct(shown.iter().filter_map(|entry| entry.step(is_activations))).len();
        if schemes > 1 && shown.iter().any(is_of_the_paper) {
            families.push(shown);
        }
    }
    families
}

/// Plain dynamic schemes alone are what the figure of perplexities shows.
fn is_of_the_paper(entry: &Entry<'_>) -> bool {
    let fixed = entry.step(is_activations).is_some_and(|step| step.get("observer").is_some());
    fixed || cure_of(entry) != (None, None)
}

fn cure_of(entry: &Entry<'_>) -> (Option<String>, Option<String>) {
    (entry.step(is_qfem).map(canonical_json), entry.step(is_prefix).map(canonical_json))
}

/// Dynamic before static, one scale before many.
fn rank(activations: &Value) -> usize {
    let text = |key: &str| activations.get(key).and_then(Value::as_str);
    match (text("granularity"), text("observer")) {
        (Some("tensor"), None) => 0,
        (Some("tensor"), Some(_)) => 1,
        (Some("token"), _) => 3,
        _ => 2,
    }
}

fn draw(family: &[Entry<'_>], entries: &[Entry<'_>], id: &str) -> Drawing {
    let mut schemes: Vec<(&Value, &str)> = Vec::new();
    let mut cures: Vec<(Option<&Value>, Option<&Value>, &str)> = Vec::new();
    for entry in family {
        let (keep, prefix) = (entry.step(is_qfem), entry.step(is_prefix));
        if let Some(scheme) = entry.step(is_activations)
            && !schemes.iter().any(|(known, _)| *known == scheme)
        {
            schemes.push((scheme, entry.recipe()));
        }
        if !cures.iter().any(|cure| (cure.0, cure.1) == (keep, prefix)) {
            cures.push((keep, prefix, entry.recipe()));
        }
    }
    schemes.sort_by_key(|(scheme, _)| rank(scheme));
    cures.sort_by_key(|(keep, prefix, _)| 2 * usize::from(prefix.is_some()) + usize::from(keep.is_some()));
    let cure_name = |keep: Option<&Value>, prefix: Option<&Value>| {
        if keep.is_none() && prefix.is_none() { "plain".to_owned() } else { recipes::cure_name(keep, prefix) }
    };
    let series =
        recipes::told_apart(cures.iter().map(|(k, p, recipe)| (cure_name(*k, *p), *recipe)).collect());

    let mut points = Vec::new();
    for entry in family {
        let band = schemes.iter().position(|(scheme, _)| Some(*scheme) == entry.step(is_activations));
        let lane =
            cures.iter().position(|cure| (cure.0, cure.1) == (entry.step(is_qfem), entry.step(is_prefix)));
        if let (Some(band), Some(series), Some(interval)) = (band, lane, entry.interval()) {
            points.push(Point { band, series, interval, hollow: false });
        }
    }
    let model = family[0].model();
    let original = recipes::original(entries, model).and_then(Entry::value);
    let host = family[0].without(&[is_qfem, is_prefix]);
    let host = recipes::grid_name(&host);
    let mut caption = format!(
        "{host} of {model} with different scales of activations, {}. The dashed line is the original.",
        metric::split(id).1
    );
    let key = common(&family[0]);
    let failed = entries.iter().filter(|entry| entry.is_failed() && common(entry) == key).count();
    if failed > 0 {
        caption.push_str(&format!(" {failed} failed and are not shown."));
    }
    let chart = Bands {
        title: format!("Scales of activations, {host}: {model}"),
        bands: recipes::told_apart(
            schemes.iter().map(|(scheme, recipe)| (recipes::scheme_name(scheme), *recipe)).collect(),
        ),
        series,
        points,
        lines: original.map(|value| (None, value)).into_iter().collect(),
        hollow: None,
        dashed: "original".to_owned(),
        metric: id.to_owned(),
    };
    chart.draw(format!("schemes-{}-{}-{}", file_stem(model), file_stem(&host), file_stem(id)), caption)
}
