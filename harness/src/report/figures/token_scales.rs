//! `token-scales`: the scale of every token at the group with the greatest spike ratio, the tokens written below.
//!
//! One drawing for each model and calibration set: the beginning of the first sample whose scales are all in the record,
//! because spikes stand at the first token and where a token occurs first. Red are tokens whose scale is more than eight
//! lower medians of that sample. What the same tokens have behind a prefix stands over it. Figure 2 of arXiv:2405.14428.

use super::{Figure, file_stem};
use crate::calibrate::statistics::OUTLIER_RATIO;
use crate::record::Contents;
use crate::record::statistics::TokenScaleRow;
use crate::record::store::StoreError;
use crate::report::ReportError;
use crate::report::drawing::canvas::{Canvas, DASH, DROP, MARGIN, RADIUS, STROKE, Sample, TEXT, WIDTH};
use crate::report::drawing::glyphs::token_text;
use crate::report::drawing::panel::Panel;
use crate::report::drawing::{Anchor, Colour, Drawing, Mark, elide, palette, text_width};
use crate::report::observed::{Observed, State, is_positive, of_references, ports};

/// See the module.
pub struct TokenScales;

/// Tokens of a stretch at most.
pub const STRETCH: usize = 60;
/// Height of the plot in points.
const HEIGHT: f64 = 230.0;
/// Size of the tokens' texts, and the most room that one may take.
const TOKEN: f64 = 9.5;
const LONGEST: f64 = 72.0;

impl Figure for TokenScales {
    fn name(&self) -> &'static str {
        "token-scales"
    }

    fn about(&self) -> &'static str {
        "scale of every token of a text at the group with the greatest spike ratio"
    }

    fn applies(&self, contents: &Contents) -> bool {
        of_references(contents).iter().any(|observed| site(observed).is_some())
    }

    fn draw(&self, contents: &Contents) -> Result<Vec<Drawing>, ReportError> {
        let mut drawings = Vec::new();
        for observed in of_references(contents) {
            drawings.extend(drawing(&observed)?);
        }
        Ok(drawings)
    }
}

/// The group with the greatest ratio of the first state, and the ratio.
fn site<'a>(observed: &Observed<'a>) -> Option<(&'a str, f64)> {
    let state = observed.states.first()?;
    let groups = ports().into_iter().filter(|port| port.is_group());
    let sites = groups.flat_map(|port| state.sites_of(port.port));
    let ratios =
        sites.filter_map(|(_, site)| Some((site.site.as_str(), site.ratio.filter(|r| is_positive(*r))?)));
    ratios.max_by(|a, b| a.1.total_cmp(&b.1))
}

/// The tokens that are shown, and what they are compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// The sample.
    pub sample: u32,
    /// Its first tokens, by position.
    pub tokens: Vec<TokenScaleRow>,
    /// Above this scale a token spikes: eight lower medians of the whole sample.
    pub threshold: f64,
}

impl Stretch {
    /// Of the rows of one site, the beginning of the first sample; `None` without rows.
    pub fn of(mut rows: Vec<TokenScaleRow>) -> Option<Self> {
        let sample = rows.iter().map(|row| row.sample).min()?;
        rows.retain(|row| row.sample == sample);
        rows.sort_by_key(|row| row.position);
        let mut scales: Vec<f32> = rows.iter().map(|row| row.scale).collect();
        scales.sort_by(f32::total_cmp);
        let median = scales[(scales.len() - 1) / 2];
        rows.truncate(STRETCH);
        Some(Self { sample, tokens: rows, threshold: f64::from(OUTLIER_RATIO) * f64::from(median) })
    }

    /// Whether a token of this scale spikes.
    pub fn spikes(&self, scale: f32) -> bool {
        f64::from(scale) > self.threshold
    }
}

fn rows(state: &State<'_>, site: &str) -> Result<Vec<TokenScaleRow>, StoreError> {
    let mut rows = state.stored.token_scales()?;
    rows.retain(|row| row.site == site);
    Ok(rows)
}

fn drawing(observed: &Observed<'_>) -> Result<Option<Drawing>, ReportError> {
    let (Some((site, ratio)), Some(first)) = (site(observed), observed.states.first()) else {
        return Ok(None);
    };
    let Some(stretch) = Stretch::of(rows(first, site)?) else {
        return Ok(None);
    };
    // The same tokens behind every prefix; a first token that stands in the prefix itself is not among them.
    let mut others = Vec::new();
    for state in &observed.states[1..] {
        let of_stretch = |row: &TokenScaleRow| {
            let same = |token: &TokenScaleRow| (token.position, token.token) == (row.position, row.token);
            row.sample == stretch.sample && stretch.tokens.iter().any(same)
        };
        let rows: Vec<TokenScaleRow> = rows(state, site)?.into_iter().filter(of_stretch).collect();
        if !rows.is_empty() {
            others.push((*state, rows));
        }
    }
    let behind = others.iter().flat_map(|(_, rows)| rows);
    let scales = stretch.tokens.iter().chain(behind).map(|row| f64::from(row.scale));
    let scales: Vec<f64> = scales.chain([stretch.threshold]).filter(|scale| is_positive(*scale)).collect();

    let mut canvas = Canvas::default();
    let y = canvas.title(
        &format!("Scale of every token at {site}: {}", observed.model),
        &format!("sample {} of {}", stretch.sample, observed.about_calibration()),
    );
    let mut entries = vec![
        (Sample::Mark(Mark::Circle), palette::series(0).0, first.name()),
        (Sample::Mark(Mark::Circle), Colour::ACCENT, format!("{}, spiking", first.name())),
        (Sample::Dashes, Colour::GREY, format!("{OUTLIER_RATIO} medians")),
    ];
    for (i, (state, _)) in others.iter().enumerate() {
        let (colour, form) = palette::series(i + 2);
        entries.push((Sample::Mark(form), colour, state.name()));
    }
    let top = canvas.legend(&entries, y + 8.0) + 10.0;
    let panel = Panel { left: MARGIN + 60.0, right: WIDTH - MARGIN, top, bottom: top + HEIGHT };
    let axis = panel.upright(scales);
    panel.upright_grid(&mut canvas, &axis, "token scale");
    let step = (panel.right - panel.left) / stretch.tokens.len().max(20) as f64;
    let x = |i: usize| panel.left + step * (i as f64 + 0.5);

    if is_positive(stretch.threshold) {
        let y = axis.place(stretch.threshold);
        canvas.line((panel.left, y), (panel.right, y), Colour::GREY, 1.0, Some(DASH));
    }
    let mut lowest = panel.bottom;
    for (i, token) in stretch.tokens.iter().enumerate() {
        let spikes = stretch.spikes(token.scale);
        let colour = if spikes { Colour::ACCENT } else { palette::series(0).0 };
        if is_positive(token.scale.into()) {
            let at = (x(i), axis.place(token.scale.into()));
            canvas.line((x(i), panel.bottom), at, colour, STROKE, None);
            canvas.mark(at, Mark::Circle, RADIUS, colour);
        }
        let text = elide(&token_text(&token.text, token.token), TOKEN, LONGEST);
        lowest = lowest.max(panel.bottom + 6.0 + text_width(&text, TOKEN));
        let ink = if spikes { Colour::ACCENT } else { Colour::INK };
        canvas.upward((x(i) + DROP * TOKEN, panel.bottom + 6.0), &text, TOKEN, Anchor::End, ink);
    }
    for (i, (_, rows)) in others.iter().enumerate() {
        let (colour, form) = palette::series(i + 2);
        for row in rows.iter().filter(|row| is_positive(row.scale.into())) {
            let place = stretch.tokens.iter().position(|token| token.position == row.position);
            if let Some(place) = place {
                canvas.mark((x(place), axis.place(row.scale.into())), form, RADIUS, colour);
            }
        }
    }
    panel.edges(&mut canvas);
    let from = stretch.tokens.first().map_or(0, |token| token.position);
    let to = stretch.tokens.last().map_or(0, |token| token.position);
    let name = format!("tokens at positions {from} to {to}; a space is ␣, a line feed ↵, #n is a token's id");
    let end = lowest + 8.0 + TEXT;
    canvas.text(((panel.left + panel.right) / 2.0, end), &name, TEXT, Anchor::Middle, Colour::INK);

    let spiking = stretch.tokens.iter().filter(|token| stretch.spikes(token.scale)).count();
    let mut caption = format!(
        "Scale of the first {} tokens of a calibration sample at {site} of {}. It is the site of a block with the greatest \
         spike ratio, {ratio:.1}; a token's scale is its greatest magnitude over channels, logarithmic. Red: above \
         {OUTLIER_RATIO} lower medians of the sample, {spiking} of these tokens. Sample {}, {}.",
        stretch.tokens.len(),
        observed.model,
        stretch.sample,
        observed.about_calibration(),
    );
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|(state, _)| state.name()).collect();
        caption.push_str(&format!(" The same tokens {} are drawn over it.", names.join(" and ")));
    }
    let stem = file_stem(&format!("token-scales/{}/{}", observed.model, observed.calibration));
    Ok(Some(canvas.finish(stem, caption, end + 0.24 * TEXT)))
}
