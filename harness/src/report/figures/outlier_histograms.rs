//! `outlier-histograms`: how the magnitudes of activations are spread, by block and over models.
//!
//! Three kinds of drawings, all of models without a prefix:
//!
//! - for each model and calibration set, the histogram of |x| of every block as a column of colour, a panel for each
//!   port;
//! - for each calibration set, the histogram of |x| of all blocks together, a line for each model;
//! - for each calibration set, the number of blocks × sequences by their greatest magnitude, a line for each model, as in
//!   the histograms of arXiv:2405.20835. Its counts sum to blocks × sequences.
//!
//! Of many sets, those that others are normalised to; maxima also of languages and of generated text.
//!
//! Histograms are those of the record, four bins per octave. Maxima are counted two bins per octave, edges 2^(k/2).

use std::collections::BTreeMap;

use super::{Figure, file_stem};
use crate::record::Contents;
use crate::record::statistics::{HistogramRow, SequenceRow};
use crate::report::ReportError;
use crate::report::calibrated;
use crate::report::drawing::axis::LogAxis;
use crate::report::drawing::canvas::{Canvas, STROKE, Sample};
use crate::report::drawing::panel::{Panel, panels};
use crate::report::drawing::{Colour, Drawing, Point, palette};
use crate::report::observed::{
    Observed, ShownPort, State, by_calibration, capital, is_positive, observed, ports,
};

/// See the module.
pub struct OutlierHistograms;

/// Height of a panel in points.
const HEIGHT: f64 = 165.0;
/// The share of smallest magnitudes that axes leave out: they are many octaves, and no outliers.
const CUT: f64 = 0.01;
/// The same where only outliers are to be seen.
const CUT_BY_BLOCK: f64 = 0.1;
/// Decades of shares that have a tone of their own; what is rarer has the lightest.
const TONES: i32 = 8;

impl Figure for OutlierHistograms {
    fn name(&self) -> &'static str {
        "outlier-histograms"
    }

    fn about(&self) -> &'static str {
        "magnitudes of activations by block, and of several models over one another"
    }

    fn applies(&self, contents: &Contents) -> bool {
        // Whether the tables have rows is known only after reading them; then some drawings are left out.
        observed(contents).iter().any(|observed| {
            observed.original().is_some_and(|state| {
                ports()
                    .iter()
                    .any(|port| state.sites_of(port.port).iter().any(|(_, site)| is_positive(site.absmax)))
            })
        })
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let observed = observed(contents);
        let mut drawings = Vec::new();
        for (calibration, all) in by_calibration(&observed) {
            let mut models = Vec::new();
            for one in all {
                if let Some(state) = one.original() {
                    let (histograms, sequences) = (state.stored.histograms()?, state.stored.sequences()?);
                    models.push(Model { observed: one, state, histograms, sequences });
                }
            }
            let is_reference = calibrated::is_reference(contents, calibration);
            if is_reference {
                drawings.extend(models.iter().filter_map(by_block));
                drawings.extend(over_models(calibration, &models, Counted::Values));
            }
            if is_reference || models.iter().any(|model| model.observed.is_language_or_nonsense()) {
                drawings.extend(over_models(calibration, &models, Counted::Maxima));
            }
        }
        Ok(drawings)
    }
}

/// One model and the tables of its original.
struct Model<'a> {
    observed: &'a Observed<'a>,
    state: State<'a>,
    histograms: Vec<HistogramRow>,
    sequences: Vec<SequenceRow>,
}

/// A bin of magnitudes: `lower ≤ |x| < upper`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// Lower edge; 0 for the bin of zeros and for the bin of what is too small to be told apart.
    pub lower: f64,
    /// Upper edge; infinite for the last bin, 0 for the bin of zeros.
    pub upper: f64,
    /// How many.
    pub count: u64,
}

impl Bin {
    /// Both edges where a logarithmic axis can show them: the last bin is drawn half an octave wide.
    fn edges(&self) -> Option<(f64, f64)> {
        let upper = if self.upper.is_infinite() { self.lower * std::f64::consts::SQRT_2 } else { self.upper };
        (is_positive(self.lower) && is_positive(upper) && self.count > 0 && upper > self.lower)
            .then_some((self.lower, upper))
    }
}

/// The histogram of these rows together, ascending. Their bins are parts of one series, so equal lower edges are equal
/// bins.
pub fn pooled<'a>(rows: impl IntoIterator<Item = &'a HistogramRow>) -> Vec<Bin> {
    let mut bins: BTreeMap<(u64, u64), Bin> = BTreeMap::new();
    for row in rows {
        // Bits of positive floats are in the order of their values.
        let key = (row.lower.max(0.0).to_bits(), row.upper.max(0.0).to_bits());
        let bin = bins.entry(key).or_insert(Bin { lower: row.lower, upper: row.upper, count: 0 });
        bin.count = bin.count.saturating_add(row.count);
    }
    bins.into_values().collect()
}

/// Greatest magnitudes of sequences at one port, counted two bins per octave, ascending; zeros in a bin of their own.
/// The counts sum to the number of rows.
pub fn maxima<'a>(rows: impl IntoIterator<Item = &'a SequenceRow>) -> Vec<Bin> {
    let mut zeros = 0;
    let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
    for row in rows {
        let max = f64::from(row.max);
        if is_positive(max) {
            *counts.entry((2.0 * max.log2()).floor() as i32).or_default() += 1;
        } else {
            zeros += 1;
        }
    }
    let zeros = (zeros > 0).then_some(Bin { lower: 0.0, upper: 0.0, count: zeros });
    let edge = |key: i32| (f64::from(key) / 2.0).exp2();
    let bins = counts.into_iter().map(|(key, count)| Bin { lower: edge(key), upper: edge(key + 1), count });
    zeros.into_iter().chain(bins).collect()
}

fn total(bins: &[Bin]) -> u64 {
    bins.iter().fold(0, |sum, bin| sum.saturating_add(bin.count))
}

/// The lower edge from which on an axis shows these bins: no more than this share of what they count lies below.
fn cut(bins: &[Bin], share: f64) -> Option<f64> {
    let least = share * total(bins) as f64;
    let mut before = 0.0;
    let shown = bins.iter().find(|bin| {
        before += bin.count as f64;
        before > least && bin.edges().is_some()
    });
    shown.and_then(Bin::edges).map(|(lower, _)| lower)
}

/// The drawing of one model, block by block.
fn by_block(model: &Model<'_>) -> Option<Drawing> {
    let of_port = |port: &ShownPort| -> BTreeMap<u32, Vec<Bin>> {
        let mut rows: BTreeMap<u32, Vec<&HistogramRow>> = BTreeMap::new();
        for row in model.histograms.iter().filter(|row| row.port == port.port) {
            if let Some(block) = row.layer {
                rows.entry(block).or_default().push(row);
            }
        }
        rows.into_iter().map(|(block, rows)| (block, pooled(rows))).collect()
    };
    let shown: Vec<(ShownPort, BTreeMap<u32, Vec<Bin>>)> = ports()
        .into_iter()
        .map(|port| (port, of_port(&port)))
        .filter(|(_, blocks)| blocks.values().flatten().any(|bin| bin.edges().is_some()))
        .collect();
    let all = || shown.iter().flat_map(|(_, blocks)| blocks.values());
    let low = shown
        .iter()
        .filter_map(|(port, _)| {
            let rows = model.histograms.iter().filter(|row| row.port == port.port && row.layer.is_some());
            cut(&pooled(rows), CUT_BY_BLOCK)
        })
        .fold(f64::INFINITY, f64::min);
    let high = all().flatten().filter_map(Bin::edges).map(|(_, upper)| upper).fold(0.0, f64::max);
    let rarest = all().flat_map(|bins| runs(bins, low)).map(|(_, _, level)| level).max()?;
    if shown.is_empty() || !(is_positive(low) && is_positive(high)) {
        return None;
    }
    let tone = |level: i32| palette::tone(1.0 - f64::from(level) / f64::from(rarest.max(1)));

    let mut canvas = Canvas::default();
    let y = canvas.title(
        &format!("Magnitudes of activations by block: {}", model.observed.model),
        &model.observed.about_calibration(),
    );
    let mut entries: Vec<_> = (0..=rarest)
        .map(|level| {
            let last = level == rarest;
            let name = if last { "rarer".to_owned() } else { format!("≥ {}", tenth(level + 1)) };
            (Sample::Patch, tone(level), name)
        })
        .collect();
    entries.push((Sample::Line, Colour::ACCENT, "greatest".to_owned()));
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(shown.len(), 2, y, HEIGHT);
    for ((port, blocks), panel) in shown.iter().zip(&panels) {
        let upright = panel.upright([low, high]);
        let level_axis = panel.blocks(model.state.blocks());
        panel.heading(&mut canvas, &port.label());
        panel.upright_grid(&mut canvas, &upright, "|x|");
        panel.block_grid(&mut canvas, &level_axis, "block, from 0");
        let half = level_axis.step() / 2.0;
        for (block, bins) in blocks {
            let x = level_axis.place(*block);
            for (from, to, level) in runs(bins, low) {
                let (upper, lower) = (upright.place(to), upright.place(from));
                canvas.fill((x - half, upper), (x + half, lower), tone(level));
            }
        }
        for (block, site) in model.state.sites_of(port.port) {
            if is_positive(site.absmax) && site.absmax <= high {
                let (x, y) = (level_axis.place(block), upright.place(site.absmax.max(low)));
                canvas.line((x - half, y), (x + half, y), Colour::ACCENT, STROKE, None);
            }
        }
        panel.edges(&mut canvas);
    }
    let caption = format!(
        "Histograms of the magnitudes of activations of {}, a column of colour for each block. Blocks are numbered from \
         0; tones are the share of a block's values per octave, in four bins per octave; red lines are the greatest. The \
         smallest values, up to a tenth of a port's, are below the axis. {}",
        model.observed.model,
        model.observed.provenance(&[model.state])
    );
    let stem = file_stem(&format!(
        "outlier-histograms/blocks/{}/{}",
        model.observed.model, model.observed.calibration
    ));
    Some(canvas.finish(stem, caption, end))
}

/// The share of `total` that a bin holds, per octave of its width, so that bins of unequal width compare.
fn density(bin: &Bin, total: u64) -> Option<f64> {
    let (lower, upper) = bin.edges()?;
    Some(bin.count as f64 / total.max(1) as f64 / (upper / lower).log2())
}

/// The decade of a density: 0 from a tenth on, 1 from a hundredth on …
fn level(density: f64) -> i32 {
    // Exact powers of ten belong to the decade above.
    ((-density.log10() - 1e-9).floor() as i32).clamp(0, TONES - 1)
}

/// Neighbouring bins of one level together: lower and upper edge, level. From `low` up.
fn runs(bins: &[Bin], low: f64) -> Vec<(f64, f64, i32)> {
    let total = total(bins);
    let mut runs: Vec<(f64, f64, i32)> = Vec::new();
    for bin in bins {
        let Some((lower, upper)) = bin.edges().filter(|(_, upper)| *upper > low) else { continue };
        let level = density(bin, total).map_or(TONES - 1, level);
        match runs.last_mut() {
            Some(last) if last.1 == lower && last.2 == level => last.1 = upper,
            _ => runs.push((lower.max(low), upper, level)),
        }
    }
    runs
}

/// `10⁻³`, for 1 to 9.
fn tenth(exponent: i32) -> String {
    const RAISED: [char; 9] = ['¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    format!("10⁻{}", RAISED[exponent.clamp(1, 9) as usize - 1])
}

/// What a histogram over models counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// Values of all blocks, as shares.
    Values,
    /// Greatest magnitudes of blocks × sequences.
    Maxima,
}

/// The drawing that overlays all models of a calibration set.
fn over_models(calibration: &str, models: &[Model<'_>], counted: Counted) -> Option<Drawing> {
    let bins = |model: &Model<'_>, port: &ShownPort| -> Vec<Bin> {
        match counted {
            Counted::Values => pooled(model.histograms.iter().filter(|row| row.port == port.port)),
            Counted::Maxima => maxima(model.sequences.iter().filter(|row| row.port == port.port)),
        }
    };
    let shown: Vec<(ShownPort, Vec<Vec<Bin>>)> = ports()
        .into_iter()
        .map(|port| (port, models.iter().map(|model| bins(model, &port)).collect::<Vec<_>>()))
        .filter(|(_, series)| series.iter().flatten().any(|bin| bin.edges().is_some()))
        .collect();
    let first = models.first()?.observed;
    if shown.is_empty() {
        return None;
    }
    let mut canvas = Canvas::default();
    let (title, upright_name, level_name) = match counted {
        Counted::Values => ("Magnitudes of activations, all blocks together", "share per octave", "|x|"),
        Counted::Maxima => {
            ("Greatest activations, by block and sequence", "blocks × sequences", "greatest |x|")
        }
    };
    let y = canvas.title(title, &first.about_calibration());
    let entries: Vec<_> = models
        .iter()
        .enumerate()
        .map(|(i, model)| (Sample::Line, palette::series(i).0, model.observed.model.to_owned()))
        .collect();
    let y = canvas.legend(&entries, y + 8.0);
    let (panels, end) = panels(shown.len(), 2, y, HEIGHT);
    for ((port, series), panel) in shown.iter().zip(&panels) {
        let height = |bin: &Bin, all: &[Bin]| match counted {
            Counted::Values => density(bin, total(all)).unwrap_or(0.0),
            Counted::Maxima => bin.count as f64,
        };
        let low = match counted {
            Counted::Values => series.iter().filter_map(|bins| cut(bins, CUT)).fold(f64::INFINITY, f64::min),
            Counted::Maxima => 0.0,
        };
        let edges = |bins: &[Bin]| -> Vec<(f64, f64, f64)> {
            let edges = bins.iter().filter_map(|bin| Some((bin.edges()?, height(bin, bins))));
            let edges = edges.filter(|((_, upper), _)| *upper > low);
            edges.map(|((lower, upper), height)| (lower.max(low), upper, height)).collect()
        };
        let steps: Vec<Vec<(f64, f64, f64)>> = series.iter().map(|bins| edges(bins)).collect();
        let heights = steps.iter().flatten().map(|(_, _, height)| *height);
        // A single count stands above the axis, not on it.
        let least = (counted == Counted::Maxima).then_some(1.0);
        let upright = panel.upright(heights.filter(|height| is_positive(*height)).chain(least));
        let level = panel.level(steps.iter().flatten().flat_map(|(lower, upper, _)| [*lower, *upper]));
        panel.heading(&mut canvas, &port.label());
        panel.upright_grid(&mut canvas, &upright, upright_name);
        panel.level_grid(&mut canvas, &level, level_name);
        for (i, steps) in steps.iter().enumerate() {
            for path in stairs(steps, panel, &level, &upright) {
                // What comes later is thinner, so that lines of equal models show all their colours.
                let width = STROKE + 1.4 * (models.len() - 1 - i).min(3) as f64;
                canvas.path(path, palette::series(i).0, width);
            }
        }
        panel.edges(&mut canvas);
    }
    let names: Vec<&str> = models.iter().map(|model| model.observed.model).collect();
    let seen: Vec<String> = models
        .iter()
        .map(|model| {
            let result = model.state.result();
            let (blocks, samples, tokens) = (model.state.blocks(), result.samples, result.tokens);
            match counted {
                Counted::Values => format!("{tokens} in {}", model.observed.model),
                Counted::Maxima => format!(
                    "{blocks} × {samples} = {} in {}",
                    u64::from(blocks) * samples,
                    model.observed.model
                ),
            }
        })
        .collect();
    let (what, sums) = match counted {
        Counted::Values => (
            "Share of activation values per octave of magnitude, all blocks together, of",
            format!(
                "Four bins per octave, both axes logarithmic; the smallest hundredth of a model's values is below the axis. Tokens seen without \
                 prefix: {}.",
                seen.join(", ")
            ),
        ),
        Counted::Maxima => (
            "Number of blocks × sequences by their greatest magnitude, of",
            format!(
                "Two bins per octave, both axes logarithmic, without prefix; counts of a port sum to blocks × sequences: \
                 {}.",
                seen.join(", ")
            ),
        ),
    };
    let caption = format!("{what} {}. {sums} {}.", names.join(" and "), capital(&first.about_calibration()));
    let kind = match counted {
        Counted::Values => "models",
        Counted::Maxima => "maxima",
    };
    Some(canvas.finish(file_stem(&format!("outlier-histograms/{kind}/{calibration}")), caption, end))
}

/// A histogram's outline: level over a bin, down to the panel's edge where the next bin is empty.
fn stairs(steps: &[(f64, f64, f64)], panel: &Panel, level: &LogAxis, upright: &LogAxis) -> Vec<Vec<Point>> {
    let mut paths: Vec<Vec<Point>> = Vec::new();
    let mut end = None;
    for (lower, upper, height) in steps {
        let (x0, x1, y) = (level.place(*lower), level.place(*upper), upright.place(*height));
        if end != Some(*lower) {
            if let (Some(path), Some(end)) = (paths.last_mut(), end) {
                path.push((level.place(end), panel.bottom));
            }
            paths.push(vec![(x0, panel.bottom)]);
        }
        if let Some(path) = paths.last_mut() {
            path.extend([(x0, y), (x1, y)]);
        }
        end = Some(*upper);
    }
    if let (Some(path), Some(end)) = (paths.last_mut(), end) {
        path.push((level.place(end), panel.bottom));
    }
    paths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(max: f32) -> SequenceRow {
        let site = "layers.0.down_in".into();
        SequenceRow { site, layer: Some(0), port: "down_in".into(), sample: 0, max, median: 1.0, ratio: None }
    }

    fn bin(lower: f64, upper: f64, count: u64) -> Bin {
        Bin { lower, upper, count }
    }

    #[test]
    fn maxima_fall_into_half_octaves() {
        let rows = [0.0, 1.0, 1.4, 1.5, 2.0, 1000.0, 0.3].map(sequence);
        let found: Vec<(f64, u64)> =
            maxima(&rows).iter().map(|bin| ((bin.lower * 1e4).round() / 1e4, bin.count)).collect();
        let root = 2f64.sqrt();
        let lower = |value: f64| (value * 1e4).round() / 1e4;
        assert_eq!(
            found,
            [(0.0, 1), (0.25, 1), (1.0, 2), (lower(root), 1), (2.0, 1), (lower(512.0 * root), 1)]
        );
    }

    #[test]
    fn bins_of_one_decade_are_one_patch() {
        let bins =
            [bin(0.0, 0.0, 0), bin(1.0, 2.0, 9000), bin(2.0, 2.5, 290), bin(2.5, 3.0, 240), bin(3.0, 3.5, 3)];
        let gap = bin(4.0, 8.0, 9);
        // Per octave nine tenths; just below a tenth, twice; thousandths, with a gap between.
        assert_eq!(
            runs(&[&bins[..], &[gap]].concat(), 1.0),
            [(1.0, 2.0, 0), (2.0, 3.0, 1), (3.0, 3.5, 2), (4.0, 8.0, 3)]
        );
        let together = [bin(1.0, 1.25, 50), bin(1.25, 1.5, 50)];
        assert_eq!(runs(&together, 1.1), [(1.1, 1.5, 0)]);
    }

    #[test]
    fn an_axis_begins_where_a_hundredth_is_left_out() {
        assert_eq!(cut(&[bin(0.0, 0.0, 5), bin(1.0, 2.0, 4), bin(2.0, 4.0, 991)], 0.01), Some(2.0));
        assert_eq!(cut(&[bin(0.0, 0.0, 999), bin(1.0, 2.0, 1)], 0.01), Some(1.0));
        assert_eq!(cut(&[bin(0.0, 0.0, 7)], 0.01), None);
        assert_eq!(cut(&[], 0.01), None);
    }

    proptest! {
        #[test]
        fn counts_of_maxima_sum_to_the_rows(values in proptest::collection::vec(proptest::num::f32::ANY, 0..50)) {
            let rows: Vec<SequenceRow> = values.into_iter().map(sequence).collect();
            let bins = maxima(&rows);
            prop_assert_eq!(total(&bins), rows.len() as u64);
            for bin in bins.iter().filter(|bin| bin.upper > 0.0) {
                let inside = |row: &&SequenceRow| {
                    let max = f64::from(row.max);
                    // Edges are rounded, and so is a logarithm.
                    max >= bin.lower * (1.0 - 1e-12) && max < bin.upper * (1.0 + 1e-12)
                };
                prop_assert!(rows.iter().filter(inside).count() as u64 >= bin.count);
            }
        }
    }
}
