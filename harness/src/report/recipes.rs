//! Recipes by their steps: which cells are equal but for one step, and what a reader calls the step.
//!
//! Figures and tables of a paper compare cells that differ in one thing. Names of recipes do not say in what they
//! differ, the resolved steps in a cell's record do.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::metric;
use super::pivot::distinct;
use super::rows::{self, Outcome, Row};
use crate::record::{CellResult, Contents, canonical_json};

/// Two-sided 95 % quantile of the normal distribution.
const Z95: f64 = 1.96;

/// A planned measurement whose cell is on record, so that its steps are known.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Names, metric, and what became of the measurement.
    pub row: Row<'a>,
    /// The cell.
    pub cell: &'a CellResult,
}

/// What is drawn at random for a cell: calibration set and seed. A recipe that needs neither belongs to every draw.
pub type Draw<'a> = (Option<&'a str>, Option<u64>);

/// The entries of one metric in the order of the manifest, one a recipe name: the last reading of each cell.
pub fn entries<'a>(contents: &'a Contents, metric: &str) -> Vec<Entry<'a>> {
    let cells: BTreeMap<&str, &CellResult> =
        contents.cells.iter().map(|cell| (cell.result.id.as_str(), &cell.result)).collect();
    let rows = rows::rows(contents).into_iter().filter(|row| row.last && row.metric == metric);
    rows.filter_map(|row| Some(Entry { row, cell: cells.get(row.cell.id.as_str())? })).collect()
}

impl<'a> Entry<'a> {
    /// The measured value, where it is a number.
    pub fn value(&self) -> Option<f64> {
        self.row.value().filter(|value| value.is_finite())
    }

    /// Its standard error, where known.
    pub fn stderr(&self) -> Option<f64> {
        match self.row.outcome {
            Outcome::Measured(m) => m.stderr.filter(|stderr| stderr.is_finite()),
            _ => None,
        }
    }

    /// The value between the ends of its 95 % interval: value · exp(±1.96 · stderr / value) for perplexities, which is
    /// the interval of the mean loss, else value ± 1.96 · stderr.
    pub fn interval(&self) -> Option<(f64, f64, f64)> {
        let value = self.value()?;
        let Some(stderr) = self.stderr() else {
            return Some((value, value, value));
        };
        if metric::split(self.row.metric).0 == "perplexity" {
            let factor = (Z95 * stderr / value).exp();
            return (value > 0.0).then_some((value / factor, value, value * factor));
        }
        Some((value - Z95 * stderr, value, value + Z95 * stderr))
    }

    /// Whether there is no number because something failed.
    pub fn is_failed(&self) -> bool {
        match self.row.outcome {
            Outcome::Failed(_) => true,
            Outcome::Measured(_) => self.value().is_none(),
            Outcome::Missing => false,
        }
    }

    /// The model's name.
    pub fn model(&self) -> &'a str {
        &self.row.cell.model
    }

    /// The recipe's name.
    pub fn recipe(&self) -> &'a str {
        &self.row.cell.recipe
    }

    /// Its calibration set and seed.
    pub fn draw(&self) -> Draw<'a> {
        (self.row.cell.calibration.as_deref(), self.row.cell.seed)
    }

    /// Whether it can stand among the cells of a draw.
    pub fn is_of(&self, (calibration, seed): Draw<'_>) -> bool {
        let (own_calibration, own_seed) = self.draw();
        (own_calibration.is_none() || own_calibration == calibration)
            && (own_seed.is_none() || own_seed == seed)
    }

    /// Whether it is the untouched model.
    pub fn is_original(&self) -> bool {
        self.cell.steps.is_empty()
    }

    /// Whether it is the original behind a prefix.
    pub fn is_reference(&self) -> bool {
        matches!(self.cell.steps.as_slice(), [step] if is_prefix(step))
    }

    /// Its first step of a kind.
    pub fn step(&self, of: fn(&Value) -> bool) -> Option<&'a Value> {
        self.cell.steps.iter().find(|step| of(step))
    }

    /// What its first step of a kind fitted.
    pub fn fitted(&self, of: fn(&Value) -> bool) -> Option<&'a Map<String, Value>> {
        let place = self.cell.steps.iter().position(of)?;
        let key = format!("{place}.{}", text(&self.cell.steps[place], "step")?);
        self.cell.fitted.get(&key)?.as_object()
    }

    /// Its steps but those of some kinds.
    pub fn without(&self, kinds: &[fn(&Value) -> bool]) -> Vec<&'a Value> {
        self.cell.steps.iter().filter(|step| !kinds.iter().any(|kind| kind(step))).collect()
    }

    /// [`Entry::without`] as a key: equal where the remaining steps are equal.
    pub fn key_without(&self, kinds: &[fn(&Value) -> bool]) -> String {
        key(&self.without(kinds))
    }

    /// The groups that its `keep` step by QFeM excepted, with their ratios, largest first.
    pub fn excepted(&self) -> Option<Vec<(&'a str, f64)>> {
        self.fitted(is_qfem)?.get("excepted")?.as_array()?.iter().map(site_and_ratio).collect()
    }

    /// The group with the largest ratio that is not excepted.
    pub fn next(&self) -> Option<(&'a str, f64)> {
        self.fitted(is_qfem)?.get("next").and_then(site_and_ratio)
    }

    /// The tokens of its prefix as texts, in quotation marks that show their spaces.
    pub fn prefix_text(&self) -> Option<String> {
        let texts = self.fitted(is_prefix)?.get("text")?.as_array()?;
        let quoted: Vec<String> = texts.iter().filter_map(Value::as_str).map(quoted).collect();
        (!quoted.is_empty()).then(|| quoted.join(" "))
    }

    /// How many groups the model has.
    pub fn groups(&self) -> Option<u64> {
        self.fitted(is_qfem)?.get("groups")?.as_u64()
    }
}

/// A key of steps: equal where they are equal.
pub fn key(steps: &[&Value]) -> String {
    steps.iter().map(|step| canonical_json(step)).collect::<Vec<_>>().join("\n")
}

/// A group of `fitted`.
pub fn site_and_ratio(group: &Value) -> Option<(&str, f64)> {
    Some((group.get("site")?.as_str()?, group.get("ratio")?.as_f64()?))
}

/// The original behind the same prefix as `entry`, with the same draw.
pub fn reference<'a, 'b>(entries: &'b [Entry<'a>], entry: &Entry<'a>) -> Option<&'b Entry<'a>> {
    let prefix = entry.step(is_prefix)?;
    let same = |other: &&Entry<'_>| {
        other.model() == entry.model() && other.is_reference() && other.step(is_prefix) == Some(prefix)
    };
    let mut found = entries.iter().filter(same);
    found.find(|other| other.is_of(entry.draw()))
}

/// The untouched model of `model`.
pub fn original<'a, 'b>(entries: &'b [Entry<'a>], model: &str) -> Option<&'b Entry<'a>> {
    entries.iter().find(|other| other.model() == model && other.is_original())
}

/// The draws among entries; one that draws nothing where there are none.
pub fn draws<'a>(entries: &[Entry<'a>]) -> Vec<Draw<'a>> {
    let all = distinct(entries.iter().map(Entry::draw));
    // A recipe without a calibration set may still have a seed of its own: it joins those that have both.
    let most = all.iter().map(specified).max().unwrap_or(0);
    let draws: Vec<Draw<'_>> = all.into_iter().filter(|draw| specified(draw) == most).collect();
    if draws.is_empty() { vec![(None, None)] } else { draws }
}

fn specified((calibration, seed): &Draw<'_>) -> usize {
    usize::from(calibration.is_some()) + usize::from(seed.is_some())
}

/// `name`, with the parts of its draw in which draws differ: `tiny · c4 · seed 1`.
pub fn with_draw(name: &str, draw: Draw<'_>, among: &[Draw<'_>]) -> String {
    let mut text = name.to_owned();
    if let Some(calibration) = draw.0
        && distinct(among.iter().map(|draw| draw.0)).len() > 1
    {
        text.push_str(&format!(" · {calibration}"));
    }
    if let Some(seed) = draw.1
        && distinct(among.iter().map(|draw| draw.1)).len() > 1
    {
        text.push_str(&format!(" · seed {seed}"));
    }
    text
}

fn text<'a>(step: &'a Value, key: &str) -> Option<&'a str> {
    step.get(key)?.as_str()
}

fn is(step: &Value, name: &str, method: Option<&str>) -> bool {
    text(step, "step") == Some(name) && method.is_none_or(|method| text(step, "method") == Some(method))
}

/// A step that excepts groups whose activations have spikes.
pub fn is_qfem(step: &Value) -> bool {
    is(step, "keep", Some("qfem"))
}

/// A step that quantizes a part of the groups only.
pub fn is_ranked(step: &Value) -> bool {
    is(step, "keep", Some("ranked"))
}

/// A step that puts tokens in front of every sequence.
pub fn is_prefix(step: &Value) -> bool {
    is(step, "prefix", None)
}

/// A step that rounds activations.
pub fn is_activations(step: &Value) -> bool {
    is(step, "activations", None)
}

/// A step that rounds weights.
pub fn is_weights(step: &Value) -> bool {
    is(step, "weights", None)
}

/// A step that rounds keys and values.
pub fn is_kv(step: &Value) -> bool {
    is(step, "kv", None)
}

/// What QFeM was given: a threshold, a number of groups, or the task to find one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Given {
    /// α, possibly infinite.
    Alpha(f64),
    /// A number of groups.
    Top(u64),
    /// `alpha = "auto"`.
    Auto,
}

/// What a QFeM step was given.
pub fn given(step: &Value) -> Option<Given> {
    if let Some(top) = step.get("top").and_then(Value::as_u64) {
        return Some(Given::Top(top));
    }
    match step.get("alpha")? {
        Value::String(word) if word == "auto" => Some(Given::Auto),
        // JSON has no infinity.
        Value::String(word) if word == "inf" => Some(Given::Alpha(f64::INFINITY)),
        alpha => alpha.as_f64().map(Given::Alpha),
    }
}

/// A QFeM step with what it was given left out: the others of its sweep have the same.
pub fn ungiven(step: &Value) -> Value {
    let mut step = step.clone();
    if let Some(keys) = step.as_object_mut() {
        for key in ["alpha", "top", "epsilon"] {
            keys.remove(key);
        }
    }
    step
}

/// A token as text, in quotation marks, with arrows for what has no shape.
pub fn quoted(token: &str) -> String {
    format!("“{}”", token.replace('\n', "↵").replace('\t', "⇥"))
}

/// A number as short as it can be written.
pub fn short(value: f64) -> String {
    if value.is_infinite() { "∞".to_owned() } else { format!("{value}") }
}

/// What a reader calls a step that repairs: `QFeM (top 2)`, `QFeP`, `QFeP without BOS`.
pub fn step_name(step: &Value) -> String {
    let word = |key: &str| text(step, key).unwrap_or_default();
    let number = |key: &str| step.get(key).and_then(Value::as_f64).map(short).unwrap_or_default();
    match (word("step"), word("method")) {
        ("keep", "qfem") => {
            let mut said = match given(step) {
                Some(Given::Top(top)) => format!("top {top}"),
                Some(Given::Auto) => "α auto".to_owned(),
                Some(Given::Alpha(alpha)) => format!("α {}", short(alpha)),
                None => "α ?".to_owned(),
            };
            if word("ratio") == "pooled" {
                said.push_str(", pooled");
            }
            if word("of") == "present" {
                said.push_str(", present ratios");
            }
            format!("QFeM ({said})")
        }
        ("keep", "ranked") => format!("only {} {}", word("quantize"), number("groups")),
        ("prefix", "qfep") if step.get("bos") == Some(&Value::Bool(false)) => "QFeP without BOS".to_owned(),
        ("prefix", "qfep") => "QFeP".to_owned(),
        ("prefix", "bos") => "BOS".to_owned(),
        ("prefix", "random") => "random prefix".to_owned(),
        ("prefix", "prefixquant") => "PrefixQuant prefix".to_owned(),
        ("prefix", "tokens") => "given prefix".to_owned(),
        ("smooth", "smoothquant") => {
            let sites = step.get("sites").and_then(Value::as_array).map_or(0, Vec::len);
            let everywhere = if sites > 2 { ", all sites" } else { "" };
            format!("SmoothQuant (α {}{everywhere})", number("alpha"))
        }
        ("keep", "channels") => match step.get("count") {
            Some(_) => format!("{} outlier channels", number("count")),
            None => format!("outlier channels ({})", number("fraction")),
        },
        ("tune", "bisup-style") => "bisup-style".to_owned(),
        ("smooth", "osplus") => "OS+".to_owned(),
        (step, "") => step.to_owned(),
        (step, method) => format!("{step} {method}"),
    }
}

/// What a reader calls how activations are rounded: `per-tensor dynamic`, `per-tensor static, max`, `per-token`.
pub fn scheme_name(activations: &Value) -> String {
    let granularity = match text(activations, "granularity") {
        Some("token") => return asymmetric(activations, "per-token".to_owned()),
        Some("tensor") => "per-tensor",
        Some(group) => return asymmetric(activations, format!("per {group}")),
        None => "per ?",
    };
    let number = |key: &str| activations.get(key).and_then(Value::as_f64).map(short).unwrap_or_default();
    let name = match text(activations, "observer") {
        None => format!("{granularity} dynamic"),
        Some("percentile") => format!("{granularity} static, percentile {}", number("percentile")),
        Some("ema") => format!("{granularity} static, moving average"),
        Some(observer) => format!("{granularity} static, {observer}"),
    };
    asymmetric(activations, name)
}

fn asymmetric(activations: &Value, name: String) -> String {
    if activations.get("symmetric") == Some(&Value::Bool(false)) {
        format!("{name}, asymmetric")
    } else {
        name
    }
}

/// `W8A8`, `W4A8, weights per group(64)`, `W4A4KV4, keys before RoPE`: the widths of a recipe, the weights' granularity where
/// it is not `channel`, and what is unusual about its cache.
pub fn grid_name(steps: &[&Value]) -> String {
    let weights = steps.iter().find(|step| is_weights(step));
    let activations = steps.iter().find(|step| is_activations(step));
    let bits = |step: Option<&&Value>| step.map_or(16, |step| bits(step));
    let mut name = format!("W{}A{}", bits(weights), bits(activations));
    if let Some(granularity) = weights.and_then(|step| text(step, "granularity"))
        && granularity != "channel"
    {
        name.push_str(&format!(", weights per {granularity}"));
    }
    match cache_name(steps) {
        None => name,
        // The widths stand together.
        Some((width, rest)) => match name.split_once(',') {
            Some((widths, weights)) => format!("{widths}{width},{weights}{rest}"),
            None => format!("{name}{width}{rest}"),
        },
    }
}

/// `KV4` or `K2V4`, and what is unusual about the cache; `None` where it is not rounded.
fn cache_name(steps: &[&Value]) -> Option<(String, String)> {
    let rounded: Vec<&&Value> = steps.iter().filter(|step| is_kv(step)).collect();
    let least = |key: &str| rounded.iter().filter_map(|step| step.get(key)?.as_u64()).min().unwrap_or(16);
    let first = rounded.first()?;
    let (keys, values) = (least("key-bits"), least("value-bits"));
    let width = if keys == values { format!("KV{keys}") } else { format!("K{keys}V{values}") };
    let mut rest = String::new();
    if let Some(granularity) = text(first, "granularity").filter(|granularity| *granularity != "head") {
        rest.push_str(&format!(", cache per {granularity}"));
    }
    if text(first, "keys") == Some("before-rope") {
        rest.push_str(", keys before RoPE");
    }
    if let Some(prompt) = first.get("prompt").and_then(Value::as_u64).filter(|prompt| *prompt > 0) {
        rest.push_str(&format!(", prompt of {prompt}"));
    }
    Some((width, rest))
}

fn bits(step: &Value) -> u64 {
    step.get("bits").and_then(Value::as_u64).unwrap_or(16)
}

/// What a reader calls a recipe without its cures: `W8A8 per-tensor dynamic`, `SmoothQuant (α 0.8), W8A8 …`.
pub fn host_name(steps: &[&Value]) -> String {
    let mut parts: Vec<String> = steps
        .iter()
        .filter(|step| !is_weights(step) && !is_activations(step) && !is_kv(step))
        .map(|step| step_name(step))
        .collect();
    let mut grid = grid_name(steps);
    if let Some(activations) = steps.iter().find(|step| is_activations(step) && bits(step) < 16) {
        let scheme = scheme_name(activations);
        grid = match grid.split_once(',') {
            Some((widths, rest)) => format!("{widths} {scheme},{rest}"),
            None => format!("{grid} {scheme}"),
        };
    }
    parts.push(grid);
    parts.join(", ")
}

/// What was added to a host: `+QFeM (top 2) +QFeP`; nothing for the host itself.
pub fn cure_name(keep: Option<&Value>, prefix: Option<&Value>) -> String {
    let words = keep.into_iter().chain(prefix).map(|step| format!("+{}", step_name(step)));
    words.collect::<Vec<_>>().join(" ")
}

/// The cures that a comparison shows of a sweep: QFeM variants that also stand with a prefix and prefixes that also
/// stand with QFeM, or all where none does. The rest of a sweep has its own figure.
///
/// Returns the keys of the chosen `keep` steps and `prefix` steps.
pub fn chosen_cures(of: &[&Entry<'_>]) -> (Vec<String>, Vec<String>) {
    let pairs: Vec<(Option<String>, Option<String>)> = of
        .iter()
        .map(|entry| (entry.step(is_qfem).map(canonical_json), entry.step(is_prefix).map(canonical_json)))
        .collect();
    let both: Vec<(&String, &String)> =
        pairs.iter().filter_map(|(keep, prefix)| Some((keep.as_ref()?, prefix.as_ref()?))).collect();
    let kept =
        |own: Vec<String>, both: Vec<String>| distinct(if both.is_empty() { own } else { both }.into_iter());
    (
        kept(
            pairs.iter().filter_map(|pair| pair.0.clone()).collect(),
            both.iter().map(|pair| pair.0.clone()).collect(),
        ),
        kept(
            pairs.iter().filter_map(|pair| pair.1.clone()).collect(),
            both.iter().map(|pair| pair.1.clone()).collect(),
        ),
    )
}

/// Whether an entry's cures are among [`chosen_cures`]. The host itself is.
pub fn is_chosen(entry: &Entry<'_>, (keeps, prefixes): &(Vec<String>, Vec<String>)) -> bool {
    let among = |step: Option<&Value>, chosen: &[String]| {
        step.map(canonical_json).is_none_or(|key| chosen.contains(&key))
    };
    among(entry.step(is_qfem), keeps) && among(entry.step(is_prefix), prefixes)
}

/// Names that a reader can tell apart: where two are the same, each gets its recipe's name.
pub fn told_apart(names: Vec<(String, &str)>) -> Vec<String> {
    let said: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let repeated = |name: &String| said.iter().filter(|other| *other == name).count() > 1;
    names
        .iter()
        .map(|(name, recipe)| if repeated(name) { format!("{name} ({recipe})") } else { name.clone() })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_have_the_names_that_readers_give_them() {
        let tensor = json!({ "step": "activations", "bits": 8, "granularity": "tensor", "symmetric": true });
        let fixed = json!({ "step": "activations", "bits": 8, "granularity": "tensor", "observer": "max" });
        let token = json!({ "step": "activations", "bits": 6, "granularity": "token", "symmetric": false });
        let weights = json!({ "step": "weights", "bits": 8, "granularity": "channel" });
        let smooth = json!({ "step": "smooth", "method": "smoothquant", "alpha": 0.8, "sites": ["attn_in", "mlp_in"] });
        assert_eq!(host_name(&[&weights, &tensor]), "W8A8 per-tensor dynamic");
        assert_eq!(host_name(&[&weights, &fixed]), "W8A8 per-tensor static, max");
        assert_eq!(host_name(&[&weights]), "W8A16");
        assert_eq!(
            host_name(&[&smooth, &weights, &token]),
            "SmoothQuant (α 0.8), W8A6 per-token, asymmetric"
        );
        let cache =
            json!({ "step": "kv", "key-bits": 4, "value-bits": 4, "granularity": "head", "prompt": 0 });
        let odd = json!({
            "step": "kv", "key-bits": 2, "value-bits": 4, "granularity": "token", "keys": "before-rope", "prompt": 4,
        });
        let groups = json!({ "step": "weights", "bits": 4, "granularity": "group(64)" });
        assert_eq!(host_name(&[&weights, &tensor, &cache]), "W8A8KV4 per-tensor dynamic");
        let said = "W4A16K2V4, weights per group(64), cache per token, keys before RoPE, prompt of 4";
        assert_eq!(host_name(&[&groups, &odd]), said);
        let infinite = json!({ "step": "keep", "method": "qfem", "alpha": "inf", "of": "original" });
        let top = json!({ "step": "keep", "method": "qfem", "top": 2, "of": "present" });
        let prefix = json!({ "step": "prefix", "method": "qfep", "bos": true });
        assert_eq!(given(&infinite), Some(Given::Alpha(f64::INFINITY)));
        assert_eq!(cure_name(Some(&infinite), None), "+QFeM (α ∞)");
        assert_eq!(cure_name(Some(&top), Some(&prefix)), "+QFeM (top 2, present ratios) +QFeP");
        assert_eq!(cure_name(None, None), "");
        assert_eq!(ungiven(&infinite), json!({ "step": "keep", "method": "qfem", "of": "original" }));
    }

    #[test]
    fn equal_names_get_the_names_of_their_recipes() {
        let names = vec![("QFeP".into(), "a"), ("BOS".into(), "b"), ("QFeP".into(), "c")];
        assert_eq!(told_apart(names), ["QFeP (a)", "BOS", "QFeP (c)"]);
    }

    #[test]
    fn draws_are_named_where_they_differ() {
        let among = [(Some("c4"), Some(0)), (Some("wiki"), Some(0))];
        assert_eq!(with_draw("tiny", among[1], &among), "tiny · wiki");
        assert_eq!(with_draw("tiny", among[0], &among[..1]), "tiny");
    }
}
