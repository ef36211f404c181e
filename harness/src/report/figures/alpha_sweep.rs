//! `alpha-sweep`: what QFeM's threshold α costs and buys, one drawing for each model, family of recipes and metric.
//!
//! Recipes that are equal but for how many groups their `keep` step excepts. Where they give α, the upper panel shows
//! the metric against α and the lower one the number of excepted groups, with the stairs that the ratios on record
//! make; where they give numbers of groups, one panel shows the metric against the number. The recipe without a `keep`
//! step stands at α = ∞, the one that does not round activations at α = 0: both are equal to those by definition.
//!
//! # Reference
//! arXiv:2405.14428, its figure of perplexity and |M_unq| against α.

use super::{Figure, file_stem};
use crate::record::{Contents, canonical_json};
use crate::report::ReportError;
use crate::report::drawing::axis::Tick;
use crate::report::drawing::bands::axis_name;
use crate::report::drawing::scale::{EndedAxis, LinearAxis, ValueAxis};
use crate::report::drawing::sheet::{DASH, DROP, MARGIN, RADIUS, STROKE, Sample, Sheet, TEXT, WIDTH};
use crate::report::drawing::{Anchor, Colour, Dash, Drawing, Shape, palette, text_width};
use crate::report::pivot::distinct;
use crate::report::recipes::{self, Entry, Given, is_activations, is_qfem};
use crate::report::{metric, rows};

/// See the module.
pub struct AlphaSweep;

impl Figure for AlphaSweep {
    fn name(&self) -> &'static str {
        "alpha-sweep"
    }

    fn about(&self) -> &'static str {
        "perplexity and excepted groups against QFeM's α"
    }

    fn applies(&self, contents: &Contents) -> bool {
        rows::metrics(contents).iter().any(|metric| !families(&recipes::entries(contents, metric)).is_empty())
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let mut drawings = Vec::new();
        for metric in rows::metrics(contents) {
            let entries = recipes::entries(contents, metric);
            drawings.extend(families(&entries).into_iter().map(|family| family.chart(&entries).draw(metric)));
        }
        Ok(drawings)
    }
}

/// Recipes that are equal but for what QFeM was given.
struct Family<'a> {
    members: Vec<Entry<'a>>,
    /// Whether their places are values of α, else numbers of groups.
    by_alpha: bool,
}

/// The families of at least two thresholds or two numbers of groups.
fn families<'a>(entries: &[Entry<'a>]) -> Vec<Family<'a>> {
    let kept: Vec<Entry<'_>> = entries
        .iter()
        .filter(|entry| entry.step(is_qfem).is_some() && entry.value().is_some())
        .copied()
        .collect();
    let key = |entry: &Entry<'_>| {
        let rest = entry.step(is_qfem).map(|step| canonical_json(&recipes::ungiven(step)));
        (entry.model().to_owned(), entry.key_without(&[is_qfem]), rest)
    };
    let mut families = Vec::new();
    for family in distinct(kept.iter().map(key)) {
        let members: Vec<Entry<'a>> = kept.iter().filter(|entry| key(entry) == family).copied().collect();
        let given = distinct(members.iter().filter_map(|entry| recipes::given(entry.step(is_qfem)?)));
        let alphas = given.iter().filter(|given| matches!(given, Given::Alpha(_))).count();
        let tops = given.iter().filter(|given| matches!(given, Given::Top(_))).count();
        if alphas > 1 || tops > 1 {
            families.push(Family { members, by_alpha: alphas > 1 });
        }
    }
    families
}

/// A measured recipe of the sweep.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// α, or the number of groups again.
    x: f64,
    count: f64,
    interval: (f64, f64, f64),
    auto: bool,
}

/// A calibration set and a seed.
struct Series {
    name: String,
    places: Vec<Place>,
    /// The ratios on record, largest first, and whether they are those of all groups.
    ratios: Vec<f64>,
    all_ratios: bool,
    original: Option<f64>,
}

struct Chart {
    model: String,
    host: String,
    series: Vec<Series>,
    by_alpha: bool,
    failed: usize,
}

impl Family<'_> {
    fn chart(&self, entries: &[Entry<'_>]) -> Chart {
        let draws = recipes::draws(&self.members);
        let mut series = Vec::new();
        let model = self.members[0].model();
        for draw in &draws {
            let members: Vec<&Entry<'_>> = self.members.iter().filter(|entry| entry.is_of(*draw)).collect();
            if let Some(first) = members.first() {
                let name = recipes::with_draw(model, *draw, &draws);
                let ends = ends(first, entries);
                series.push(self.series(name, &members, ends, recipes::original(entries, model)));
            }
        }
        let rest = |entry: &Entry<'_>| entry.key_without(&[is_qfem]);
        let own = rest(&self.members[0]);
        let failed = |entry: &&Entry<'_>| {
            entry.is_failed() && entry.model() == model && entry.step(is_qfem).is_some() && rest(entry) == own
        };
        Chart {
            model: model.to_owned(),
            host: recipes::host_name(&self.members[0].without(&[is_qfem])),
            series,
            by_alpha: self.by_alpha,
            failed: entries.iter().filter(failed).count(),
        }
    }

    fn series(
        &self,
        name: String,
        members: &[&Entry<'_>],
        (none, all): (Option<&Entry<'_>>, Option<&Entry<'_>>),
        original: Option<&Entry<'_>>,
    ) -> Series {
        let excepted = |entry: &Entry<'_>| -> Vec<f64> {
            entry.excepted().unwrap_or_default().into_iter().map(|(_, ratio)| ratio).collect()
        };
        let mut places: Vec<Place> = Vec::new();
        for entry in members {
            let Some((given, interval)) = entry.step(is_qfem).and_then(recipes::given).zip(entry.interval())
            else {
                continue;
            };
            let ratios = excepted(entry);
            let count = ratios.len() as f64;
            let x = match given {
                _ if !self.by_alpha => count,
                Given::Alpha(alpha) => alpha,
                // A number of groups is the threshold that the last of them just meets.
                Given::Top(_) | Given::Auto => ratios.last().copied().unwrap_or(f64::INFINITY),
            };
            places.push(Place { x, count, interval, auto: given == Given::Auto });
        }
        let groups = members.iter().find_map(|entry| entry.groups()).unwrap_or(0) as f64;
        let nothing = if self.by_alpha { f64::INFINITY } else { 0.0 };
        let everything = if self.by_alpha { 0.0 } else { groups };
        for (x, count, entry) in [(nothing, 0.0, none), (everything, groups, all)] {
            let taken = places.iter().any(|place| place.x == x);
            if let Some(interval) = entry.and_then(Entry::interval).filter(|_| !taken) {
                places.push(Place { x, count, interval, auto: false });
            }
        }
        places.sort_by(|a, b| a.x.total_cmp(&b.x));

        let mut ratios = Vec::new();
        for entry in members {
            let own: Vec<f64> =
                excepted(entry).into_iter().chain(entry.next().map(|(_, ratio)| ratio)).collect();
            if own.len() > ratios.len() {
                ratios = own;
            }
        }
        let all_ratios = ratios.len() as f64 == groups;
        Series { name, places, ratios, all_ratios, original: original.and_then(Entry::value) }
    }
}

/// The recipes that are equal to α = ∞ and to α = 0 by definition: without the step, and without rounded activations.
fn ends<'a, 'b>(
    member: &Entry<'a>,
    entries: &'b [Entry<'a>],
) -> (Option<&'b Entry<'a>>, Option<&'b Entry<'a>>) {
    let with = |steps: String| {
        entries.iter().find(|entry| {
            entry.model() == member.model() && entry.is_of(member.draw()) && entry.key_without(&[]) == steps
        })
    };
    let all = member.step(is_activations).and_then(|_| with(member.key_without(&[is_qfem, is_activations])));
    (with(member.key_without(&[is_qfem])), all)
}

/// Heights of the panels, and the room that a panel's name takes above it.
const UPPER: f64 = 230.0;
const LOWER: f64 = 130.0;
const NAME: f64 = 24.0;
/// From the end of the logarithm to the middle of the gap beside it.
const BREAK: f64 = 13.0;

/// The number of groups along an axis: logarithmic from one group on where there are many.
enum CountAxis {
    Linear(LinearAxis),
    Log(EndedAxis),
}

impl CountAxis {
    fn around(counts: &[f64], start: f64, end: f64) -> Self {
        let most = counts.iter().copied().fold(0.0, f64::max);
        if most > 12.0 {
            CountAxis::Log(EndedAxis::around(counts, start, end))
        } else {
            CountAxis::Linear(LinearAxis::around(counts.iter().copied(), start, end))
        }
    }

    fn place(&self, count: f64) -> f64 {
        match self {
            CountAxis::Linear(axis) => axis.place(count),
            CountAxis::Log(axis) => axis.place(count),
        }
    }

    fn ticks(&self) -> Vec<Tick> {
        let ticks = match self {
            CountAxis::Linear(axis) => axis.ticks(TEXT),
            CountAxis::Log(axis) => axis.ticks(TEXT),
        };
        // There is no half of a group.
        let whole = |tick: &Tick| tick.label.as_ref().is_none_or(|label| !label.contains(['.', '-']));
        ticks.into_iter().filter(whole).collect()
    }
}

/// The axis across: α, or numbers of groups.
enum Across {
    Alpha(EndedAxis),
    Count(CountAxis),
}

impl Across {
    fn place(&self, x: f64) -> f64 {
        match self {
            Across::Alpha(axis) => axis.place(x),
            Across::Count(axis) => axis.place(x),
        }
    }

    fn ticks(&self) -> Vec<Tick> {
        match self {
            Across::Alpha(axis) => axis.ticks(TEXT),
            Across::Count(axis) => axis.ticks(),
        }
    }
}

impl Chart {
    fn draw(&self, id: &str) -> Drawing {
        let mut sheet = Sheet::default();
        let values: Vec<f64> = self
            .series
            .iter()
            .flat_map(|series| {
                let places = series
                    .places
                    .iter()
                    .flat_map(|place| [place.interval.0, place.interval.1, place.interval.2]);
                places.chain(series.original)
            })
            .collect();
        let value_axis = ValueAxis::around(&values, 0.0, UPPER);
        let counts: Vec<f64> =
            self.series.iter().flat_map(|series| &series.places).map(|place| place.count).collect();
        let count_axis = CountAxis::around(&counts, 0.0, LOWER);

        let upright: Vec<Tick> = value_axis.ticks(TEXT);
        let lower: Vec<Tick> = if self.by_alpha { count_axis.ticks() } else { Vec::new() };
        let labels = upright.iter().chain(&lower).filter_map(|tick| tick.label.as_ref());
        let widest = labels.map(|label| text_width(label, TEXT)).fold(0.0, f64::max);
        let (left, right) = (MARGIN + widest + 10.0, WIDTH - MARGIN - 8.0);
        let across = self.across(left, right);

        let title = if self.by_alpha { "Threshold α of QFeM" } else { "Groups that QFeM excepts" };
        let visible = |place: &Place| {
            value_axis.place(place.interval.2) - value_axis.place(place.interval.1) > RADIUS + 1.0
        };
        let bars = self.series.iter().flat_map(|series| &series.places).any(visible);
        let top = sheet.head(&format!("{title}, {}: {}", self.host, self.model), &self.legend(bars)) + NAME;
        let bottom = top + UPPER;
        panel(&mut sheet, (left, right), (top, bottom), &upright, &across);
        sheet.text((left, top - 8.0), &axis_name(id, &value_axis), TEXT, Anchor::Start, Colour::INK);
        for (i, series) in self.series.iter().enumerate() {
            let (colour, form) = palette::series(i);
            let phase = (DASH.on + DASH.off) * i as f64 / self.series.len() as f64;
            if let Some(original) = series.original {
                let y = bottom - value_axis.place(original);
                sheet.line((left, y), (right, y), colour, STROKE, Some(Dash { phase, ..DASH }));
            }
            let points: Vec<_> = series
                .places
                .iter()
                .map(|place| (across.place(place.x), bottom - value_axis.place(place.interval.1)))
                .collect();
            // Rings first: their white must not cover a neighbour.
            for (_, at) in series.places.iter().zip(&points).filter(|(place, _)| place.auto) {
                sheet.ring(*at, colour);
            }
            sheet.shapes.push(Shape::Line { points: points.clone(), colour, width: 1.0, dash: None });
            for (place, at) in series.places.iter().zip(points) {
                if visible(place) {
                    let (low, _, high) = place.interval;
                    let ends = (bottom - value_axis.place(low), bottom - value_axis.place(high));
                    sheet.upright_bar(at.0, ends.0, ends.1, colour);
                }
                sheet.mark(at, form, colour);
            }
        }

        let mut end = bottom;
        if self.by_alpha {
            let top = bottom + NAME + 6.0;
            end = top + LOWER;
            panel(&mut sheet, (left, right), (top, end), &lower, &across);
            sheet.text((left, top - 8.0), "number of excepted groups", TEXT, Anchor::Start, Colour::INK);
            for (i, series) in self.series.iter().enumerate() {
                let (colour, form) = palette::series(i);
                let at = |place: &Place| (across.place(place.x), end - count_axis.place(place.count));
                for place in series.places.iter().filter(|place| place.auto) {
                    sheet.ring(at(place), colour);
                }
                let stairs = stairs(series);
                let points =
                    stairs.iter().map(|(x, n)| (across.place(*x).max(left), end - count_axis.place(*n)));
                sheet.shapes.push(Shape::Line { points: points.collect(), colour, width: 1.0, dash: None });
                for place in &series.places {
                    sheet.mark(at(place), form, colour);
                }
            }
        }

        for tick in across.ticks() {
            if let Some(label) = tick.label {
                sheet.text((tick.position, end + 8.0 + TEXT), &label, TEXT, Anchor::Middle, Colour::INK);
            }
        }
        let (first, second) = (end + 28.0 + TEXT, end + 33.0 + 2.0 * TEXT);
        let name = if self.by_alpha {
            "α: groups whose ratio is at least α keep their activations in floating point"
        } else {
            "number of excepted groups: they keep their activations in floating point"
        };
        sheet.centred(left, right, first, name, Colour::INK);
        sheet.centred(left, right, second, id, Colour::GREY);
        let height = (second + 0.24 * TEXT + MARGIN).ceil();
        let stem =
            format!("alpha-sweep-{}-{}-{}", file_stem(&self.model), file_stem(&self.host), file_stem(id));
        Drawing { stem, caption: self.caption(id), width: WIDTH, height, shapes: sheet.shapes }
    }

    fn across(&self, left: f64, right: f64) -> Across {
        let places = self.series.iter().flat_map(|series| series.places.iter().map(|place| place.x));
        if !self.by_alpha {
            return Across::Count(CountAxis::around(&places.collect::<Vec<_>>(), left, right));
        }
        let ratios = self.series.iter().flat_map(|series| series.ratios.iter().copied());
        Across::Alpha(EndedAxis::around(&places.chain(ratios).collect::<Vec<_>>(), left, right))
    }

    fn legend(&self, bars: bool) -> Vec<(Sample, Colour, String)> {
        let mut entries: Vec<_> = self
            .series
            .iter()
            .enumerate()
            .map(|(i, series)| {
                (Sample::Mark(palette::series(i).1), palette::series(i).0, series.name.clone())
            })
            .collect();
        if self.series.iter().any(|series| series.original.is_some()) {
            entries.push((Sample::Dashes, Colour::GREY, "original".to_owned()));
        }
        if self.has_auto() {
            entries.push((Sample::Ring, Colour::GREY, "α found by search".to_owned()));
        }
        if bars {
            entries.push((Sample::Bar, Colour::GREY, "95 % interval".to_owned()));
        }
        entries
    }

    fn has_auto(&self) -> bool {
        self.series.iter().flat_map(|series| &series.places).any(|place| place.auto)
    }

    fn caption(&self, id: &str) -> String {
        let (name, protocol) = metric::split(id);
        let mut caption = if self.by_alpha {
            format!(
                "QFeM's threshold: {name} and number of excepted groups against α, {protocol}: {} of {}.",
                self.host, self.model
            )
        } else {
            format!(
                "QFeM: {name} against the number of excepted groups, {protocol}: {} of {}.",
                self.host, self.model
            )
        };
        if self.by_alpha {
            caption.push_str(
                " At ∞ no group is excepted, at 0 all of them; a recipe that gives a number of groups stands at the ratio \
                 of the last. Stairs are the ratios of the groups.",
            );
        }
        if self.failed > 0 {
            caption.push_str(&format!(" {} failed and are not shown.", self.failed));
        }
        caption
    }
}

/// How many groups have a ratio of at least α, as far as the ratios are known, from α = ∞ down.
fn stairs(series: &Series) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    if series.places.iter().any(|place| place.x.is_infinite()) {
        points.push((f64::INFINITY, 0.0));
    }
    let known = if series.all_ratios { series.ratios.len() } else { series.ratios.len().saturating_sub(1) };
    for (n, ratio) in series.ratios.iter().enumerate() {
        points.push((*ratio, n as f64));
        // Of the last known ratio only where the stair begins is sure to be right.
        if n < known {
            points.push((*ratio, n as f64 + 1.0));
        }
    }
    if series.all_ratios && series.places.iter().any(|place| place.x == 0.0) {
        points.push((0.0, series.ratios.len() as f64));
    }
    points
}

/// The grid of a panel.
fn panel(
    sheet: &mut Sheet,
    (left, right): (f64, f64),
    (top, bottom): (f64, f64),
    upright: &[Tick],
    across: &Across,
) {
    for tick in across.ticks() {
        let (end, colour) =
            if tick.label.is_some() { (bottom + 5.0, Colour::GRID) } else { (bottom, Colour::MINOR_GRID) };
        sheet.line((tick.position, top), (tick.position, end), colour, 1.0, None);
    }
    for tick in upright {
        let y = bottom - tick.position;
        let colour = if tick.label.is_some() { Colour::GRID } else { Colour::MINOR_GRID };
        sheet.line((left, y), (right, y), colour, 1.0, None);
        if let Some(label) = &tick.label {
            sheet.text((left - 8.0, y + DROP), label, TEXT, Anchor::End, Colour::INK);
        }
    }
    sheet.line((left, bottom), (right, bottom), Colour::GREY, 1.0, None);
    // The base line has gaps between the ends and the logarithm, so that nobody reads a distance there.
    if let Across::Alpha(axis) = across {
        let (from, to) = axis.span();
        for (x, side) in [(from, -1.0), (to, 1.0)] {
            if x > left && x < right {
                let middle = x + side * BREAK;
                let (from, to) = ((middle - 3.0, bottom - 1.0), (middle + 3.0, bottom + 1.0));
                sheet.shapes.push(Shape::Fill { from, to, colour: Colour::WHITE });
            }
        }
    }
}
