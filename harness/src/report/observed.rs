//! Which statistics the figures of activations show, and how they name them.
//!
//! Only statistics that a cell of the manifest read: others in the store belong to an earlier plan. Of several seeds the
//! first that has any, because a figure shows one text and not a mean. States are the original and the original behind a
//! prefix; statistics of a model that was changed in another way are of no use to a figure about the model.

use crate::record::statistics::{RESIDUAL, SiteSummary, StatisticsResult};
use crate::record::{CellResult, Contents, ManifestCell, StoredStatistics};
use crate::report::calibrated;
use crate::report::drawing::glyphs::token_text;
use crate::report::drawing::{Colour, Mark, palette};

/// The states of one model over one calibration set.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The model's label.
    pub model: &'a str,
    /// The calibration set's label, or the name of its text where it has none.
    pub calibration: &'a str,
    /// The seed of the cells.
    pub seed: Option<u64>,
    /// Whether cells of other seeds have statistics too.
    pub other_seeds: bool,
    /// The original first, if there are statistics of it; then behind every prefix, each once.
    pub states: Vec<State<'a>>,
    /// Cells of this seed that read statistics.
    pub cells: Vec<(&'a ManifestCell, &'a CellResult)>,
}

/// A model without changes, or behind a prefix.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Its statistics.
    pub stored: &'a StoredStatistics,
}

/// What the manifest's cells read, in the manifest's order.
pub fn observed(contents: &Contents) -> Vec<Observed<'_>> {
    let mut found: Vec<Observed<'_>> = Vec::new();
    for planned in &contents.manifest.cells {
        let cell = contents.cells.iter().map(|envelope| &envelope.result).find(|cell| cell.id == planned.id);
        let Some(cell) = cell else { continue };
        let of_id = |id: &String| contents.statistics.iter().find(|s| s.envelope.result.id == *id);
        let states: Vec<State<'_>> =
            cell.statistics.iter().filter_map(of_id).map(|stored| State { stored }).collect();
        let Some(first) = states.first() else { continue };
        let calibration = planned.calibration.as_deref().unwrap_or_else(|| first.text());
        let known = found.iter().position(|o| o.model == planned.model && o.calibration == calibration);
        let at = known.unwrap_or_else(|| {
            let (model, seed) = (planned.model.as_str(), planned.seed);
            let (states, cells) = (Vec::new(), Vec::new());
            found.push(Observed { model, calibration, seed, other_seeds: false, states, cells });
            found.len() - 1
        });
        let observed = &mut found[at];
        if observed.seed != planned.seed {
            observed.other_seeds = true;
            continue;
        }
        observed.cells.push((planned, cell));
        for state in states {
            let known = observed.states.iter().any(|other| other.prefix() == state.prefix());
            if state.is_shown() && !known {
                observed.states.push(state);
            }
        }
    }
    for observed in &mut found {
        // Stable: prefixes stay in the order of the recipes.
        observed.states.sort_by_key(|state| !state.is_original());
    }
    found.retain(|observed| !observed.states.is_empty());
    found
}

/// As [`observed`], of the sets that others are normalised to where there are many sets: a figure for each of a dozen would
/// be a report that nobody reads.
pub fn of_references(contents: &Contents) -> Vec<Observed<'_>> {
    let mut found = observed(contents);
    found.retain(|one| calibrated::is_reference(contents, one.calibration));
    found
}

/// The calibration sets, each once, with what was observed over each.
pub fn by_calibration<'a>(observed: &'a [Observed<'a>]) -> Vec<(&'a str, Vec<&'a Observed<'a>>)> {
    let mut sets: Vec<(&str, Vec<&Observed<'_>>)> = Vec::new();
    for one in observed {
        match sets.iter_mut().find(|(calibration, _)| *calibration == one.calibration) {
            Some((_, all)) => all.push(one),
            None => sets.push((one.calibration, vec![one])),
        }
    }
    sets
}

impl<'a> Observed<'a> {
    /// Whether the text is a parallel one in some language, or generated.
    pub fn is_language_or_nonsense(&self) -> bool {
        let text = |key: &str| {
            let state = self.states.first();
            state.and_then(|state| state.result().calibration[key].as_str()).unwrap_or_default()
        };
        text("text").starts_with("udhr/") || text("text-origin") == "generated"
    }

    /// The model without a prefix.
    pub fn original(&self) -> Option<State<'a>> {
        self.states.first().copied().filter(State::is_original)
    }

    /// `calibration stories: 32 samples × 128 tokens`, and the seed where there are others.
    pub fn about_calibration(&self) -> String {
        let size = self.states.first().and_then(State::size);
        let size =
            size.map_or(String::new(), |(samples, length)| format!(": {samples} samples × {length} tokens"));
        let seed = self.seed.filter(|_| self.other_seeds);
        let seed = seed.map_or(String::new(), |seed| format!(", seed {seed} of several"));
        format!("calibration {}{size}{seed}", self.calibration)
    }

    /// The sentences of a caption that say what was seen, for the states that a figure shows.
    pub fn provenance(&self, shown: &[State<'_>]) -> String {
        let seen: Vec<String> =
            shown.iter().map(|state| format!("{} {}", state.result().tokens, state.name())).collect();
        let mut text = format!("{}; tokens seen: {}.", capital(&self.about_calibration()), seen.join(", "));
        if self.other_seeds {
            text.push_str(" Other seeds are not shown.");
        }
        text
    }
}

impl<'a> State<'a> {
    /// `statistics.json`.
    pub fn result(&self) -> &'a StatisticsResult {
        &self.stored.envelope.result
    }

    /// Whether nothing had been done to the model.
    pub fn is_original(&self) -> bool {
        self.prefix().is_empty() && self.result().steps.is_empty()
    }

    /// Whether it is the original, or the original behind a prefix.
    fn is_shown(&self) -> bool {
        let only_prefixes = self.result().steps.iter().all(|step| step["step"] == "prefix");
        self.is_original() || (only_prefixes && !self.prefix().is_empty())
    }

    fn prefix(&self) -> &'a [u32] {
        self.result().prefix.as_ref().map_or(&[], |prefix| &prefix.tokens)
    }

    /// `without prefix` or `behind [<s>, ␣but, .]`.
    pub fn name(&self) -> String {
        let Some(prefix) = &self.result().prefix else {
            return "without prefix".to_owned();
        };
        let text =
            |(i, &token): (usize, &u32)| token_text(prefix.texts.get(i).map_or("", String::as_str), token);
        let texts: Vec<String> = prefix.tokens.iter().enumerate().map(text).collect();
        format!("behind [{}]", texts.join(", "))
    }

    /// Samples and tokens of each, as the calibration set was asked for.
    fn size(&self) -> Option<(u64, u64)> {
        let calibration = &self.result().calibration;
        Some((calibration["samples"].as_u64()?, calibration["length"].as_u64()?))
    }

    fn text(&self) -> &'a str {
        self.result().calibration["text"].as_str().unwrap_or("calibration")
    }

    /// Sites of blocks at one port, by block.
    pub fn sites_of(&self, port: &str) -> Vec<(u32, &'a SiteSummary)> {
        let sites = self.result().sites.iter().filter(|site| site.port == port);
        let mut sites: Vec<_> = sites.filter_map(|site| Some((site.layer?, site))).collect();
        sites.sort_by_key(|(layer, _)| *layer);
        sites
    }

    /// Blocks of the model, as far as there are sites of them.
    pub fn blocks(&self) -> u32 {
        self.result()
            .sites
            .iter()
            .filter_map(|site| site.layer)
            .max()
            .map_or(0, |last| last.saturating_add(1))
    }
}

/// A port that figures show: its word, what it is, and how it is drawn everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShownPort {
    /// As in records.
    pub port: &'static str,
    /// The linear layers that read it, or what it is.
    pub about: &'static str,
    /// Its colour in every figure.
    pub colour: Colour,
    /// Its mark in every figure.
    pub mark: Mark,
}

impl ShownPort {
    /// `down_in (down)`.
    pub fn label(&self) -> String {
        format!("{} ({})", self.port, self.about)
    }

    /// Whether linear layers read it, so that a quantizer can act there.
    pub fn is_group(&self) -> bool {
        self.port != RESIDUAL
    }
}

/// The ports of a block, in the order of the forward pass, the hidden states behind it last.
pub fn ports() -> [ShownPort; 5] {
    let of = |port, about, series: usize| {
        let (colour, mark) = palette::series(series);
        ShownPort { port, about, colour, mark }
    };
    [
        of("attn_in", "q, k, v", 0),
        of("o_in", "o", 2),
        of("mlp_in", "gate, up", 4),
        of("down_in", "down", 1),
        ShownPort { port: RESIDUAL, about: "hidden states", colour: Colour::GREY, mark: Mark::Diamond },
    ]
}

/// Whether a logarithmic axis can show it. The bounds are beyond every ratio of two f32; what a record could say beyond
/// them would make an axis whose ends are no numbers.
pub fn is_positive(value: f64) -> bool {
    (1e-100..1e100).contains(&value)
}

/// With a capital at its beginning.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}
