//! `beside`: our numbers beside published ones, when the experiment's `reference` names a paper whose numbers are known.
//!
//! Nothing is compared that was measured differently: perplexities stand as ratios to the own original, each row says
//! under which protocol, and the notes say in what the settings differ and how the published numbers came to be known.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Section;
use super::cures::{Host, hosts};
use super::partial::{PARTS, rankings};
use crate::record::{Contents, canonical_json};
use crate::report::pivot::distinct;
use crate::report::published::{self, Cure, ORIGINAL, Origin, Published};
use crate::report::recipes::{self, Draw, Entry, Given, is_activations, is_prefix, is_qfem, is_weights};
use crate::report::table::{Cell, Column, Digits, Kind, Table};
use crate::report::{metric, rows};

/// See the module.
pub struct Beside;

impl Section for Beside {
    fn name(&self) -> &'static str {
        "beside"
    }

    fn tables(&self, contents: &Contents) -> Vec<Table> {
        let papers = published::named_by(&contents.manifest.reference);
        papers.iter().flat_map(|paper| of_paper(paper, contents)).collect()
    }
}

fn of_paper(paper: &Published, contents: &Contents) -> Vec<Table> {
    let ids: Vec<&str> =
        rows::metrics(contents).into_iter().filter(|id| metric::split(id).0 == "perplexity").collect();
    let mut tables = Vec::new();
    for id in &ids {
        let entries = recipes::entries(contents, id);
        tables.extend(ratios(paper, &entries, id));
        tables.extend(partial(paper, &entries, id));
    }
    if let Some(id) = rows::metrics(contents).first() {
        let entries = recipes::entries(contents, id);
        tables.extend(thresholds(paper, &entries));
        tables.extend(prefixes(paper, &entries));
    }
    if let Some(first) = tables.first_mut() {
        first.notes.extend(settings(paper, contents));
    }
    tables
}

/// The published host that a host is an instance of: 8 bits, weights per channel, activations per-tensor dynamic.
fn published_host(steps: &[&Value]) -> Option<&'static str> {
    let text = |step: &Value, key: &str| step.get(key).and_then(Value::as_str).map(str::to_owned);
    let grid = |step: &&&Value, granularity: &str| {
        step.get("bits").and_then(Value::as_u64) == Some(8)
            && text(step, "granularity").as_deref() == Some(granularity)
            && step.get("observer").is_none()
            && step.get("symmetric") == Some(&Value::Bool(true))
    };
    let weights = |step: &&&Value| is_weights(step) && grid(step, "channel");
    let activations = |step: &&&Value| is_activations(step) && grid(step, "tensor");
    if steps.iter().filter(weights).count() != 1 || steps.iter().filter(activations).count() != 1 {
        return None;
    }
    let others: Vec<_> = steps.iter().filter(|step| !is_weights(step) && !is_activations(step)).collect();
    match others.as_slice() {
        [] => Some("W8A8"),
        [step] => match (text(step, "step").as_deref(), text(step, "method").as_deref()) {
            (Some("smooth"), Some("smoothquant")) => Some("SmoothQuant"),
            (Some("smooth"), Some("osplus")) => Some("OS+"),
            _ => None,
        },
        _ => None,
    }
}

/// Our hosts that are published ones, model by model.
fn our_hosts<'a>(entries: &[Entry<'a>]) -> Vec<(&'a str, &'static str, Host<'a>)> {
    let models = distinct(entries.iter().map(Entry::model));
    let all =
        models.into_iter().flat_map(|model| hosts(entries, model).into_iter().map(move |host| (model, host)));
    all.filter_map(|(model, host)| {
        let name = published_host(&host.members.first()?.without(&[is_qfem, is_prefix]))?;
        Some((model, name, host))
    })
    .collect()
}

/// Whether a prefix is the searched one of the paper.
fn is_qfep(prefix: &Value) -> bool {
    prefix.get("method").and_then(Value::as_str) == Some("qfep")
        && prefix.get("bos") != Some(&Value::Bool(false))
}

fn ratio(value: Option<f64>, original: Option<f64>) -> Cell {
    match (value, original) {
        (Some(value), Some(original)) if original != 0.0 => {
            let ratio = value / original;
            let digits = if ratio < 10.0 { Digits::Decimals(3) } else { Digits::Significant(3) };
            Cell::Number { value: ratio, stderr: None, digits }
        }
        _ => Cell::Missing,
    }
}

/// The least certain of some numbers of a row or of several rows, in words.
fn least<'a>(origins: impl IntoIterator<Item = (&'a Origin, &'a str)>) -> Cell {
    let worst = origins.into_iter().map(|(origin, key)| origin.of(key)).max();
    worst.map_or(Cell::Missing, |worst| Cell::text(worst.words()))
}

const CURES: [Cure; 4] = [Cure::None, Cure::Qfem, Cure::Qfep, Cure::Both];

fn ratios(paper: &Published, entries: &[Entry<'_>], id: &str) -> Option<Table> {
    let ours = our_hosts(entries);
    if ours.is_empty() {
        return None;
    }
    let columns = [
        ("model", Kind::Text),
        ("whose", Kind::Text),
        ("host", Kind::Text),
        ("host ÷ original", Kind::Number),
        ("+QFeM", Kind::Number),
        ("+QFeP", Kind::Number),
        ("+both", Kind::Number),
        ("QFeM", Kind::Text),
        ("protocol", Kind::Text),
        ("known", Kind::Text),
    ];
    let columns = columns.map(|(name, kind)| Column::new(name, kind)).to_vec();
    let mut table =
        Table::new(&format!("Beside {}: perplexity as a ratio to the own original", paper.paper), columns);
    for (model, name, host) in &ours {
        let original = recipes::original(entries, model).and_then(Entry::value);
        let draws = recipes::draws(&host.members);
        for draw in &draws {
            let members: Vec<&Entry<'_>> = host.members.iter().filter(|entry| entry.is_of(*draw)).collect();
            let mut keeps: Vec<Option<&Value>> =
                distinct(members.iter().filter_map(|entry| entry.step(is_qfem)).map(Some));
            if keeps.is_empty() {
                keeps.push(None);
            }
            for keep in keeps {
                let value = |with: Option<&Value>, behind: bool| {
                    let same = |entry: &&&Entry<'_>| {
                        entry.step(is_qfem) == with
                            && match entry.step(is_prefix) {
                                Some(prefix) => behind && is_qfep(prefix),
                                None => !behind,
                            }
                    };
                    members.iter().find(same).and_then(|entry| entry.value())
                };
                let with_keep = |behind: bool| keep.and_then(|_| value(keep, behind));
                let values = [value(None, false), with_keep(false), value(None, true), with_keep(true)];
                let mut row = vec![
                    Cell::Text(recipes::with_draw(model, *draw, &draws)),
                    Cell::text("ours"),
                    Cell::text(name),
                ];
                row.extend(values.map(|value| ratio(value, original)));
                row.push(keep.map_or(Cell::Missing, |keep| Cell::Text(given_words(keep))));
                row.push(Cell::text(metric::split(id).1));
                row.push(Cell::text("measured"));
                table.rows.push(row);
            }
        }
    }
    let known = distinct(ours.iter().map(|(_, name, _)| *name));
    for model in distinct(paper.result.iter().map(|row| row.model.as_str())) {
        let original = paper.result(model, ORIGINAL, Cure::None);
        for host in distinct(paper.result.iter().map(|row| row.host.as_str())) {
            let found = CURES.map(|cure| paper.result(model, host, cure));
            if !known.contains(&host) || found.iter().all(Option::is_none) {
                continue;
            }
            let mut row = vec![Cell::text(model), Cell::text("paper"), Cell::text(host)];
            row.extend(
                found.map(|row| ratio(row.map(|row| row.perplexity), original.map(|row| row.perplexity))),
            );
            let alpha = paper.threshold.iter().find(|row| row.model == model);
            row.push(
                alpha.map_or(Cell::Missing, |row| Cell::Text(format!("α {}", recipes::short(row.printed)))),
            );
            row.push(Cell::text("the paper's"));
            row.push(least(found.iter().flatten().chain(&original).map(|row| (&row.origin, "perplexity"))));
            table.rows.push(row);
        }
    }
    Some(table)
}

/// `top 2`, `α 5`, `α auto`.
fn given_words(keep: &Value) -> String {
    match recipes::given(keep) {
        Some(Given::Top(top)) => format!("top {top}"),
        Some(Given::Alpha(alpha)) => format!("α {}", recipes::short(alpha)),
        Some(Given::Auto) => "α auto".to_owned(),
        None => String::new(),
    }
}

fn partial(paper: &Published, entries: &[Entry<'_>], id: &str) -> Option<Table> {
    let ours = rankings(entries);
    let mut columns = vec![Column::new("model", Kind::Text), Column::new("whose", Kind::Text)];
    columns.extend(PARTS.map(|part| Column::new(part, Kind::Number)));
    columns.extend(["groups", "protocol", "known"].map(|name| Column::new(name, Kind::Text)));
    let caption = format!(
        "Beside {}: perplexity with only a few groups quantized, as a ratio to the original",
        paper.paper
    );
    let mut table = Table::new(&caption, columns);
    for ranking in &ours {
        let draws = recipes::draws(&ranking.members);
        for model in distinct(ranking.members.iter().map(Entry::model)) {
            let original = recipes::original(entries, model).and_then(Entry::value);
            for draw in &draws {
                let values = PARTS.map(|part| ranking.part(model, *draw, part).and_then(Entry::value));
                if values.iter().all(Option::is_none) {
                    continue;
                }
                let mut row = vec![Cell::Text(recipes::with_draw(model, *draw, &draws)), Cell::text("ours")];
                row.extend(values.map(|value| ratio(value, original)));
                row.push(Cell::Text(format!("{} of {}", ranking.groups, ranking.host)));
                row.push(Cell::text(metric::split(id).1));
                row.push(Cell::text("measured"));
                table.rows.push(row);
            }
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    for found in &paper.partial {
        let mut row = vec![Cell::text(&found.model), Cell::text("paper")];
        row.extend(
            [found.top, found.middle, found.bottom].map(|value| ratio(Some(value), Some(found.original))),
        );
        row.push(Cell::Text(format!("{} of W8A8", found.groups)));
        row.push(Cell::text("the paper's, on the calibration set"));
        row.push(least(["original", "top", "middle", "bottom"].map(|key| (&found.origin, key))));
        table.rows.push(row);
    }
    Some(table)
}

fn thresholds(paper: &Published, entries: &[Entry<'_>]) -> Option<Table> {
    let columns = [
        ("model", Kind::Text),
        ("whose", Kind::Text),
        ("α", Kind::Number),
        ("excepted", Kind::Count),
        ("groups", Kind::Count),
        ("largest ratio", Kind::Number),
        ("at", Kind::Text),
        ("excepted inputs of", Kind::Text),
        ("known", Kind::Text),
    ];
    let mut table = Table::new(
        &format!("Beside {}: thresholds of QFeM and the groups that they except", paper.paper),
        columns.map(|(name, kind)| Column::new(name, kind)).to_vec(),
    );
    let number = |value: f64| Cell::Number { value, stderr: None, digits: Digits::Significant(4) };
    let mut seen: Vec<(String, Draw<'_>, String)> = Vec::new();
    for (model, _, host) in our_hosts(entries) {
        let draws = recipes::draws(&host.members);
        for entry in &host.members {
            let Some((keep, excepted)) = entry.step(is_qfem).zip(entry.excepted()) else {
                continue;
            };
            let what = (model.to_owned(), entry.draw(), canonical_json(keep));
            if seen.contains(&what) {
                continue;
            }
            seen.push(what);
            let first = excepted.first().copied().or_else(|| entry.next());
            let alpha = match recipes::given(keep) {
                Some(Given::Alpha(alpha)) if alpha.is_finite() => Some(alpha),
                _ => excepted.last().map(|(_, ratio)| *ratio),
            };
            let name = format!("{} ({})", recipes::with_draw(model, entry.draw(), &draws), given_words(keep));
            table.rows.push(vec![
                Cell::Text(name),
                Cell::text("ours"),
                alpha.map_or(Cell::Missing, number),
                Cell::Count(excepted.len() as u64),
                entry.groups().map_or(Cell::Missing, Cell::Count),
                first.map_or(Cell::Missing, |(_, ratio)| number(ratio)),
                first.map_or(Cell::Missing, |(site, _)| Cell::text(site)),
                composition(&excepted),
                Cell::text("measured"),
            ]);
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    for row in &paper.threshold {
        let mut parts: Vec<(&String, &u64)> = row.composition.iter().collect();
        parts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let parts: Vec<String> = parts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        table.rows.push(vec![
            Cell::text(&row.model),
            Cell::text("paper"),
            number(row.alpha),
            Cell::Count(row.excepted),
            Cell::Count(row.groups),
            row.largest.map_or(Cell::Missing, number),
            row.largest_at.as_deref().map_or(Cell::Missing, Cell::text),
            if parts.is_empty() { Cell::Missing } else { Cell::Text(parts.join(", ")) },
            least([(&row.origin, "alpha")]),
        ]);
    }
    table.notes.push(
        "α is the given threshold, else the smallest excepted ratio; layers count from 0; our down_in is the paper's down, \
         mlp_in its up, o_in its o, attn_in its q"
            .to_owned(),
    );
    Some(table)
}

/// `14 down_in, 2 mlp_in`: excepted groups by what reads them.
fn composition(excepted: &[(&str, f64)]) -> Cell {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (site, _) in excepted {
        *counts.entry(site.rsplit('.').next().unwrap_or(site)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let parts: Vec<String> = counts.iter().map(|(port, count)| format!("{count} {port}")).collect();
    if parts.is_empty() { Cell::Missing } else { Cell::Text(parts.join(", ")) }
}

fn prefixes(paper: &Published, entries: &[Entry<'_>]) -> Option<Table> {
    let columns = ["model", "whose", "prefix", "known"].map(|name| Column::new(name, Kind::Text)).to_vec();
    let mut table = Table::new(&format!("Beside {}: searched prefixes", paper.paper), columns);
    let found = entries.iter().filter(|entry| entry.step(is_prefix).is_some_and(is_qfep));
    let found: Vec<Entry<'_>> = found.copied().collect();
    let draws = recipes::draws(&found);
    let texts = found.iter().filter_map(|entry| {
        Some((recipes::with_draw(entry.model(), entry.draw(), &draws), entry.prefix_text()?))
    });
    for (name, text) in distinct(texts) {
        table.rows.push(vec![Cell::Text(name), Cell::text("ours"), Cell::Text(text), Cell::text("measured")]);
    }
    if table.rows.is_empty() {
        return None;
    }
    for row in &paper.prefix {
        let tokens: Vec<String> = row.tokens.iter().map(|token| recipes::quoted(token)).collect();
        table.rows.push(vec![
            Cell::text(&row.model),
            Cell::text("paper"),
            Cell::Text(tokens.join(" ")),
            least([(&row.origin, "tokens")]),
        ]);
    }
    Some(table)
}

/// In what our setting differs from the paper's, and what the words about certainty mean.
fn settings(paper: &Published, contents: &Contents) -> Vec<String> {
    let setting = &paper.setting;
    let planned: Vec<&str> = contents.manifest.cells.iter().map(|cell| cell.id.as_str()).collect();
    let cells: Vec<_> = contents
        .cells
        .iter()
        .map(|cell| &cell.result)
        .filter(|cell| planned.contains(&cell.id.as_str()))
        .collect();
    let mut models: Vec<(&str, u64)> = Vec::new();
    for planned in &contents.manifest.cells {
        let found = cells.iter().find(|cell| cell.id == planned.id);
        if let Some(cell) = found.filter(|_| !models.iter().any(|(name, _)| *name == planned.model)) {
            models.push((&planned.model, cell.model.parameters));
        }
    }
    let models: Vec<String> =
        models.iter().map(|(name, parameters)| format!("{name} {}", millions(*parameters))).collect();
    let calibrations: Vec<String> = distinct(cells.iter().filter_map(|cell| {
        let set = cell.calibration.as_ref()?;
        let number = |key: &str| set.get(key).and_then(Value::as_u64);
        let text = set.get("text").and_then(Value::as_str)?;
        Some(format!("{} samples of {} tokens of {text}", number("samples")?, number("length")?))
    }));
    let ours = if calibrations.is_empty() { "none".to_owned() } else { calibrations.join("; ") };
    let words = [
        published::Provenance::Read,
        published::Provenance::ReadInNotes,
        published::Provenance::RecalledChecked,
        published::Provenance::Recalled,
    ];
    let words: Vec<String> =
        words.iter().map(|word| format!("{} ({})", word.words(), word.meaning())).collect();
    vec![
        "absolute perplexities of two protocols are not comparable, hence ratios; nor is the size of an effect across \
         models of such different sizes: what can be compared is its order"
            .to_owned(),
        format!("models: ours {}; the paper's {}", models.join(", "), setting.models),
        format!("text and protocol: ours as the row says; the paper's {}; {}", setting.text, setting.protocol),
        format!("calibration: ours {ours}; the paper's {}", setting.calibration),
        format!("how published numbers are known: {}", words.join(", ")),
    ]
}

/// A number of parameters as a reader says it.
fn millions(parameters: u64) -> String {
    let parameters = parameters as f64;
    if parameters < 1e9 {
        format!("{:.1} M parameters", parameters / 1e6)
    } else {
        format!("{:.1} G parameters", parameters / 1e9)
    }
}
