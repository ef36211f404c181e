//! `layer-profiles`: percentiles of the magnitudes of activations, block by block, one drawing for each model and reference
//! set with a panel for each port.
//!
//! Percentiles are read from the recorded histograms, four bins per octave: the value is interpolated within its bin in
//! the logarithm, so it is known to a quarter of an octave at the worst. The 100th is the recorded greatest magnitude.
//!
//! # Reference
//! arXiv:2405.20835, its distributions of activations across layers, one per model.

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::record::statistics::HistogramRow;
use crate::report::ReportError;
use crate::report::drawing::Drawing;
use crate::report::drawing::canvas::{Canvas, STROKE, Sample};
use crate::report::drawing::palette;
use crate::report::drawing::panel::panels;
use crate::report::figures::outlier_histograms::{Bin, pooled};
use crate::report::observed::{Observed, State, is_positive, of_references, ports};

/// See the module.
pub struct LayerProfiles;

const HEIGHT: f64 = 170.0;
/// Per cent of values that a line lies above.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 100.0];

impl Figure for LayerProfiles {
    fn name(&self) -> &'static str {
        "layer-profiles"
    }

    fn about(&self) -> &'static str {
        "percentiles of activations, block by block"
    }

    fn applies(&self, contents: &Contents) -> bool {
        let shown = |one: &Observed<'_>| {
            let has = |state: State<'_>| state.result().sites.iter().any(|site| is_positive(site.absmax));
            one.original().is_some_and(has)
        };
        contents.manifest.calibrations.len() > 1 && of_references(contents).iter().any(shown)
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let mut drawings = Vec::new();
        for one in &of_references(contents) {
            if let Some(state) = one.original() {
                let rows = state.stored.histograms()?;
                drawings.extend(drawing(one, state, &rows));
            }
        }
        Ok(drawings)
    }
}

/// The magnitude below which so many per cent of the counted values lie; `largest` is the greatest of all. Nothing where
/// nothing was counted, or the value is 0 or in the lowest bin, whose lower edge is 0.
pub fn percentile(bins: &[Bin], per_cent: f64, largest: f64) -> Option<f64> {
    if per_cent >= 100.0 {
        return is_positive(largest).then_some(largest);
    }
    let total: f64 = bins.iter().map(|bin| bin.count as f64).sum();
    let (wanted, mut below) = (per_cent / 100.0 * total, 0.0);
    for bin in bins {
        let count = bin.count as f64;
        if below + count >= wanted && count > 0.0 {
            let upper = bin.upper.min(largest);
            if !(is_positive(bin.lower) && is_positive(upper)) {
                return None;
            }
            let share = ((wanted - below) / count).clamp(0.0, 1.0);
            return Some(bin.lower * (upper.max(bin.lower) / bin.lower).powf(share));
        }
        below += count;
    }
    None
}

fn drawing(observed: &Observed<'_>, state: State<'_>, rows: &[HistogramRow]) -> Option<Drawing> {
    let profile = |port: &str, per_cent: f64| -> Vec<(u32, f64)> {
        let sites = state.sites_of(port).into_iter();
        let value = |(block, site): (u32, &crate::record::statistics::SiteSummary)| {
            let of_site = rows.iter().filter(|row| row.port == port && row.layer == Some(block));
            Some((block, percentile(&pooled(of_site), per_cent, site.absmax)?))
        };
        sites.filter_map(value).collect()
    };
    let shown: Vec<_> = ports()
        .into_iter()
        .map(|port| (port, PERCENTILES.map(|per_cent| profile(port.port, per_cent))))
        .filter(|(_, lines)| lines.iter().any(|line| !line.is_empty()))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let mut canvas = Canvas::default();
    let y = canvas
        .title(&format!("Activations block by block: {}", observed.model), &observed.about_calibration());
    // From light to dark, the greatest in the colour of what to look at.
    let colour = |i: usize| match i {
        4 => crate::report::drawing::Colour::ACCENT,
        i => palette::tone(0.2 + 0.8 * i as f64 / 3.0),
    };
    let entries: Vec<_> = PERCENTILES
        .iter()
        .enumerate()
        .rev()
        .map(|(i, per_cent)| {
            let name = if *per_cent == 100.0 { "greatest".to_owned() } else { format!("{per_cent} %") };
            (Sample::Line, colour(i), name)
        })
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(shown.len(), 2, y, HEIGHT);
    for ((port, lines), panel) in shown.iter().zip(&panels) {
        let upright = panel.upright(lines.iter().flatten().map(|(_, value)| *value));
        let level = panel.blocks(state.blocks());
        panel.heading(&mut canvas, &port.label());
        panel.upright_grid(&mut canvas, &upright, "|x|");
        panel.block_grid(&mut canvas, &level, "block, from 0");
        for (i, line) in lines.iter().enumerate() {
            let points: Vec<_> = line.iter().map(|(b, v)| (level.place(*b), upright.place(*v))).collect();
            canvas.path(points, colour(i), STROKE);
        }
        panel.edges(&mut canvas);
    }
    let caption = format!(
        "Percentiles of the magnitudes of activations of {}, block by block: 50, 90, 99 and 99.9 % of a block's values lie \
         below the lines, read from histograms of four bins per octave, and the greatest. {}",
        observed.model,
        observed.provenance(&[state])
    );
    Some(canvas.finish(
        file_stem(&format!("layer-profiles/{}/{}", observed.model, observed.calibration)),
        caption,
        end,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_interpolated_in_their_bin() {
        let bin = |lower: f64, upper: f64, count| Bin { lower, upper, count };
        let bins = [bin(0.0, 0.0, 10), bin(1.0, 4.0, 80), bin(4.0, 16.0, 10)];
        // Half of all is half way through the second bin.
        assert_eq!(percentile(&bins, 50.0, 9.0), Some(2.0));
        assert_eq!(percentile(&bins, 90.0, 9.0), Some(4.0));
        // The last bin ends at the greatest value: 4 · (9/4)^½.
        assert!((percentile(&bins, 95.0, 9.0).unwrap() - 6.0).abs() < 1e-12);
        assert_eq!(percentile(&bins, 100.0, 9.0), Some(9.0));
        assert_eq!(percentile(&bins, 5.0, 9.0), None, "zeros have no place on a logarithmic axis");
        assert_eq!(percentile(&[], 50.0, 9.0), None);
    }
}
