//! `prefix-ablation`: recipes that are equal but for their prefix, one drawing for each such family and metric.
//!
//! A row is a kind of prefix, a mark a model (and calibration set and seed, where there are several), an outline the
//! original behind the same prefix: what the prefix itself costs or gains. A dashed line is the original without one.
//!
//! # Reference
//! arXiv:2405.14428, its figure of prefixes (random, BOS only, searched without BOS, searched).

use serde_json::Value;

use super::{Figure, file_stem};
use crate::record::{Contents, canonical_json};
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::drawing::bands::{Bands, Point};
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Entry, is_prefix};
use crate::report::{metric, rows};

/// See the module.
pub struct PrefixAblation;

impl Figure for PrefixAblation {
    fn name(&self) -> &'static str {
        "prefix-ablation"
    }

    fn about(&self) -> &'static str {
        "what the prefix has to be: recipes equal but for it"
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

/// Measured recipes that are equal but for the prefix, of which at least two have one.
fn families<'a>(entries: &[Entry<'a>]) -> Vec<Vec<Entry<'a>>> {
    let recipes: Vec<Entry<'_>> = entries
        .iter()
        .filter(|entry| !entry.is_original() && !entry.is_reference() && entry.value().is_some())
        .copied()
        .collect();
    let key = |entry: &Entry<'_>| entry.key_without(&[is_prefix]);
    let families = distinct(recipes.iter().map(key));
    let of_family = families
        .into_iter()
        .map(|family| recipes.iter().filter(|entry| key(entry) == family).copied().collect::<Vec<_>>());
    let prefixes = |family: &Vec<Entry<'_>>| {
        distinct(family.iter().filter_map(|entry| entry.step(is_prefix).map(canonical_json))).len()
    };
    of_family.filter(|family| prefixes(family) > 1).collect()
}

/// From no prefix to the longest search, as the paper has it.
fn rank(prefix: Option<&Value>) -> usize {
    let Some(prefix) = prefix else {
        return 0;
    };
    let order = ["random", "bos", "qfep", "prefixquant", "tokens"];
    let method = prefix.get("method").and_then(Value::as_str).unwrap_or_default();
    let place = order.iter().position(|other| *other == method).unwrap_or(order.len());
    let with_bos = prefix.get("bos").and_then(Value::as_bool).unwrap_or(true);
    1 + 2 * place + usize::from(with_bos)
}

fn draw(family: &[Entry<'_>], entries: &[Entry<'_>], id: &str) -> Drawing {
    let mut prefixes: Vec<(Option<&Value>, &str)> = Vec::new();
    for entry in family {
        let prefix = entry.step(is_prefix);
        if !prefixes.iter().any(|(known, _)| *known == prefix) {
            prefixes.push((prefix, entry.recipe()));
        }
    }
    prefixes.sort_by_key(|(prefix, _)| rank(*prefix));
    let name = |prefix: Option<&Value>| prefix.map_or("no prefix".to_owned(), recipes::step_name);
    let bands =
        recipes::told_apart(prefixes.iter().map(|(prefix, recipe)| (name(*prefix), *recipe)).collect());

    let draws = recipes::draws(family);
    let models = distinct(family.iter().map(Entry::model));
    let series: Vec<_> =
        models.iter().flat_map(|model| draws.iter().map(move |draw| (*model, *draw))).collect();
    let mut points = Vec::new();
    let mut said = Vec::new();
    for (lane, (model, draw)) in series.iter().enumerate() {
        for entry in family.iter().filter(|entry| entry.model() == *model && entry.is_of(*draw)) {
            let band = prefixes.iter().position(|(prefix, _)| *prefix == entry.step(is_prefix));
            let Some((band, shown)) = band.zip(entry.interval()) else {
                continue;
            };
            let behind = match entry.step(is_prefix) {
                Some(_) => recipes::reference(entries, entry),
                None => recipes::original(entries, model),
            };
            let behind = behind.and_then(Entry::interval);
            points.extend(behind.map(|interval| Point { band, series: lane, interval, hollow: true }));
            points.push(Point { band, series: lane, interval: shown, hollow: false });
            if let Some(text) = entry.prefix_text() {
                said.push((
                    band,
                    format!("{} of {}: {text}", bands[band], recipes::with_draw(model, *draw, &draws)),
                ));
            }
        }
    }
    said.sort_by_key(|(band, _)| *band);
    let said = distinct(said.into_iter().map(|(_, text)| text));
    let lines = models.iter().enumerate().filter_map(|(i, model)| {
        let original = recipes::original(entries, model)?.value()?;
        Some((Some(i * draws.len()), original))
    });
    let lines: Vec<_> = lines.collect();

    let host = recipes::host_name(&family[0].without(&[is_prefix]));
    let mut caption = format!(
        "{} behind different prefixes, {}: {host}. Outlines are the originals behind the same prefix, dashed lines the \
         originals without one.",
        capital(metric::split(id).0),
        metric::split(id).1
    );
    if !said.is_empty() {
        caption.push_str(&format!(" Prefixes: {}.", said.join("; ")));
    }
    let key = family[0].key_without(&[is_prefix]);
    let failed = |entry: &&Entry<'_>| entry.is_failed() && entry.key_without(&[is_prefix]) == key;
    let failed = entries.iter().filter(failed).count();
    if failed > 0 {
        caption.push_str(&format!(" {failed} failed and are not shown."));
    }
    let chart = Bands {
        title: format!("Prefixes before {host}"),
        bands,
        series: series.iter().map(|(model, draw)| recipes::with_draw(model, *draw, &draws)).collect(),
        points,
        lines,
        hollow: Some("original behind the prefix".to_owned()),
        dashed: "original".to_owned(),
        metric: id.to_owned(),
    };
    chart.draw(format!("prefix-ablation-{}-{}", file_stem(&host), file_stem(id)), caption)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
