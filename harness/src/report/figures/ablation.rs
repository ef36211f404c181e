//! `ablation`: the ablation lattice of training, one drawing for each model and perplexity.
//!
//! A row is what is trained, and whether a prompt is in full precision; a mark is a host, its dashed line the host itself.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::report::ReportError;
use crate::report::ablation::{Lattice, lattices, name};
use crate::report::drawing::Drawing;
use crate::report::drawing::bands::{Bands, Point};
use crate::report::pivot::distinct;
use crate::report::recipes::with_draw;
use crate::report::{metric, rows};

/// See the module.
pub struct Ablation;

impl Figure for Ablation {
    fn name(&self) -> &'static str {
        "ablation"
    }

    fn about(&self) -> &'static str {
        "what every part of training and a prompt in full precision are good for"
    }

    fn applies(&self, contents: &Contents) -> bool {
        metrics(contents).iter().any(|metric| !lattices(contents, metric).is_empty())
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let mut drawings = Vec::new();
        for metric in metrics(contents) {
            let all = lattices(contents, metric);
            for model in distinct(all.iter().map(|lattice| lattice.model)) {
                let here: Vec<&Lattice<'_>> = all.iter().filter(|lattice| lattice.model == model).collect();
                drawings.push(draw(model, &here, metric));
            }
        }
        Ok(drawings)
    }
}

/// The perplexities of the plan.
pub fn metrics(contents: &Contents) -> Vec<&str> {
    rows::metrics(contents).into_iter().filter(|id| metric::split(id).0 == "perplexity").collect()
}

fn draw(model: &str, lattices: &[&Lattice<'_>], id: &str) -> Drawing {
    let members = || lattices.iter().flat_map(|lattice| &lattice.members);
    let mut bands = distinct(members().map(|(parts, _)| parts.clone()));
    bands.sort_by_key(|parts| (parts.len(), parts.clone()));
    let draws: Vec<_> = lattices.iter().map(|lattice| lattice.draw).collect();
    let mut points = Vec::new();
    let mut lines = Vec::new();
    for (series, lattice) in lattices.iter().enumerate() {
        for (parts, entry) in &lattice.members {
            let band = bands.iter().position(|other| other == parts);
            let Some((band, interval)) = band.zip(entry.interval()) else { continue };
            points.push(Point { band, series, interval, hollow: false });
            if parts.is_empty() {
                lines.push((Some(series), interval.1));
            }
        }
    }
    let chart = Bands {
        title: format!("Ablation of training: {model}"),
        bands: bands.iter().map(name).collect(),
        series: lattices.iter().map(|lattice| with_draw(&lattice.host, lattice.draw, &draws)).collect(),
        points,
        lines,
        hollow: None,
        dashed: "host".to_owned(),
        metric: id.to_owned(),
    };
    let caption = format!(
        "Perplexity of {model} by what is trained on top of each host, and with a prompt in full precision; {}. Dashed \
         lines are the hosts.",
        metric::split(id).1
    );
    chart.draw(file_stem(&format!("ablation/{model}/{id}")), caption)
}
