//! Two readings of a task's items, side by side: what reports and `quantscope compare` say of them.
//!
//! Only readings of the same items are paired: the same documents and requests in the same order. The formulas are those
//! of [`crate::paired`].

use serde_json::Value;

use crate::paired::bootstrap::{self, Bootstrap, Ends, RESAMPLES};
use crate::paired::clustered::singles;
use crate::paired::mcnemar::{self, Changes, Outcome};
use crate::paired::{CONFIDENCE, Interval, PairedError, difference, multiplicity, power, proportion};
use crate::record::items::ItemRow;
use crate::record::{Contents, MeasurementResult};
use crate::report::rows::{Outcome as Became, Row};
use crate::report::table::{Cell, Column, Digits, Kind};

/// Seed of the bootstrap in tables: one for all, so that comparisons over the same items draw the same ones.
pub const SEED: u64 = 0;

/// By which score an item is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The highest log-likelihood.
    Acc,
    /// The highest log-likelihood per character.
    AccNorm,
    /// The highest log-likelihood per byte.
    AccBytes,
}

impl Measure {
    /// All of them.
    pub const ALL: [Measure; 3] = [Measure::Acc, Measure::AccNorm, Measure::AccBytes];

    /// Its name in metric ids.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Acc => "acc",
            Measure::AccNorm => "acc_norm",
            Measure::AccBytes => "acc_bytes",
        }
    }

    fn decision(self, row: &ItemRow) -> Option<u32> {
        match self {
            Measure::Acc => row.chosen,
            Measure::AccNorm => row.chosen_per_character,
            Measure::AccBytes => row.chosen_per_byte,
        }
    }

    /// What was decided on every item; `None` where the rows are of a task that has no right answers.
    pub fn outcomes(self, rows: &[ItemRow]) -> Option<Vec<Outcome>> {
        let firsts = rows.iter().filter(|row| row.request == 0);
        firsts
            .map(|row| match (row.gold, self.decision(row)) {
                (Some(gold), Some(decision)) => Some(Outcome { decision, correct: decision == gold }),
                // A target and no choices.
                (None, None) if row.words.is_none() => {
                    Some(Outcome { decision: row.greedy.into(), correct: row.greedy })
                }
                _ => None,
            })
            .collect()
    }
}

/// Task, measure and protocol of a metric id, if it is an accuracy of a task.
pub fn parse(id: &str) -> Option<(&str, Measure, String)> {
    let mut segments: Vec<&str> = id.split('/').collect();
    let measure_at = |segment: &&str| Measure::ALL.into_iter().find(|measure| measure.name() == *segment);
    let place = 1 + segments[1..].iter().position(|segment| measure_at(segment).is_some())?;
    let measure = measure_at(&segments.remove(place))?;
    Some((segments[0], measure, segments[1..].join("/")))
}

/// File and hash of the items behind a measurement.
pub fn named_items(measured: &MeasurementResult) -> Option<(&str, &str)> {
    let text = |key: &str| measured.detail.get(key).and_then(Value::as_str);
    Some((text("items-file")?, text("items-file-hash")?))
}

/// Items decided right.
pub fn right(outcomes: &[Outcome]) -> u64 {
    outcomes.iter().filter(|outcome| outcome.correct).count() as u64
}

/// The items behind a measurement, or why there are none. Nothing of the machine stands in the words: they are printed.
pub fn read(contents: &Contents, measured: &MeasurementResult) -> Result<Vec<ItemRow>, String> {
    let Some((file, hash)) = named_items(measured) else {
        return Err("has no items on record; run the sweep into an empty folder to compare it".to_owned());
    };
    let stored = contents.items.iter().find(|items| items.cell == measured.cell && items.file == file);
    let rows = stored.and_then(|items| items.rows(hash).ok());
    rows.filter(|rows| !rows.is_empty()).ok_or_else(|| {
        format!(
            "is not compared: items/{file}.parquet of cell {} is missing or not what was measured; restore it",
            measured.cell
        )
    })
}

/// Why two readings are not of the same items.
pub fn mismatch(other: &str, original: &[ItemRow], reading: &[ItemRow]) -> Option<String> {
    let items = |rows: &[ItemRow]| rows.iter().filter(|row| row.request == 0).count();
    let (expected, found) = (items(original), items(reading));
    if expected != found {
        return Some(format!("is not compared: it has {found} items, {other} has {expected}"));
    }
    let key = |row: &ItemRow| (row.item.clone(), row.document.clone(), row.request, row.request_hash.clone());
    let at = (0..original.len().max(reading.len()))
        .find(|&at| original.get(at).map(key) != reading.get(at).map(key))?;
    let (a, b) = (original.get(at), reading.get(at));
    let what = match (a, b) {
        (Some(a), Some(b)) if a.item != b.item => format!("item `{}` where {other} has `{}`", b.item, a.item),
        (Some(a), Some(b)) if a.document != b.document => {
            format!("another text of item `{}` than {other}", b.item)
        }
        (Some(row), _) | (_, Some(row)) => format!("other requests of item `{}` than {other}", row.item),
        (None, None) => return None,
    };
    Some(format!("is not compared: it has {what}"))
}

/// What changed between two readings of the same items.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Counts.
    pub changes: Changes,
    /// 1, 0 or −1 for every item: right less right before.
    pub differences: Vec<f64>,
}

/// A pair, or why there is none; nothing where there is nothing to say.
pub type Compared = Result<Option<Pair>, String>;

impl Pair {
    /// Pairs what was decided on the same items; none without items.
    pub fn of(before: &[Outcome], after: &[Outcome]) -> Option<Self> {
        let changes = mcnemar::changes(before, after).ok()?;
        let right = |outcomes: &[Outcome]| -> Vec<f64> {
            outcomes.iter().map(|outcome| f64::from(u8::from(outcome.correct))).collect()
        };
        let differences = difference::differences(&right(before), &right(after)).ok()?;
        Some(Self { changes, differences })
    }

    /// The bootstrap's interval of the difference; none from a single item.
    fn bootstrap(&self) -> Option<Interval> {
        let how = Bootstrap { resamples: RESAMPLES, seed: SEED, ends: Ends::Percentile };
        bootstrap::interval(&singles(&self.differences), CONFIDENCE, &how).ok()
    }
}

/// An accuracy with its standard error, and its interval.
pub fn accuracy_cells(row: Option<&Row<'_>>, outcomes: Option<&[Outcome]>) -> [Cell; 2] {
    let digits = Digits::Decimals(4);
    let from_items = outcomes.and_then(|outcomes| {
        let (correct, n) = (right(outcomes), outcomes.len() as u64);
        let estimate = proportion::accuracy(correct, n).ok()?;
        let Interval { low, high } = proportion::wilson(correct, n, CONFIDENCE).ok()?;
        let value = Cell::Number { value: estimate.value, stderr: estimate.stderr, digits };
        Some([value, Cell::Text(format!("{low:.4} to {high:.4}"))])
    });
    from_items.unwrap_or_else(|| match row.map(|row| row.outcome) {
        Some(Became::Measured(m)) => {
            [Cell::Number { value: m.value, stderr: m.stderr, digits }, Cell::Missing]
        }
        Some(Became::Failed(failure)) => [Cell::Failed { stage: failure.stage.clone() }, Cell::Missing],
        Some(Became::Missing) | None => [Cell::Missing, Cell::Missing],
    })
}

/// p-values of a family of comparisons, raw, by Holm and by Benjamini and Hochberg; missing ones stay missing.
pub fn adjusted(raw: &[Option<f64>]) -> Vec<[Cell; 3]> {
    let p: Vec<f64> = raw.iter().flatten().copied().collect();
    let by = |adjust: fn(&[f64]) -> Result<Vec<f64>, PairedError>| {
        adjust(&p).expect("p-values lie between 0 and 1")
    };
    let (holm, bh) = (by(multiplicity::holm), by(multiplicity::benjamini_hochberg));
    let mut place = 0;
    let cells = raw.iter().map(|raw| {
        let Some(raw) = raw else { return std::array::from_fn(|_| Cell::Missing) };
        // A z of 38 leaves nothing of p in a double; no p of a continuous statistic is 0.
        let number = |value: f64| match value > 0.0 {
            true => Cell::Number { value, stderr: None, digits: Digits::Scaled(3) },
            false => Cell::text("< 1e-300"),
        };
        place += 1;
        [number(*raw), number(holm[place - 1]), number(bh[place - 1])]
    });
    cells.collect()
}

/// The columns of a paired comparison.
pub fn paired_columns() -> [Column; 10] {
    let number = |name: &str| Column::new(name, Kind::Number);
    let count = |name: &str| Column::new(name, Kind::Count);
    [
        number("diff points"),
        number("diff 95 %"),
        number("bootstrap 95 %"),
        count("lost"),
        count("gained"),
        count("all flips"),
        number("p"),
        number("p Holm"),
        number("p BH"),
        number("MDE points"),
    ]
}

/// The cells of [`paired_columns`] for every comparison; all comparisons are one family.
pub fn paired_cells(compared: &[Compared]) -> Vec<[Cell; 10]> {
    let pairs = || compared.iter().map(|result| result.as_ref().ok().and_then(Option::as_ref));
    let raw = pairs().map(|pair| pair.map(|pair| mcnemar::exact(pair.changes.lost, pair.changes.gained)));
    let p_values = adjusted(&raw.collect::<Vec<_>>());
    let of = |(pair, [p, holm, bh]): (Option<&Pair>, [Cell; 3])| {
        let missing = || std::array::from_fn(|_| Cell::Missing);
        let Some(pair) = pair else { return missing() };
        let changes = pair.changes;
        let estimate = difference::accuracies(&changes);
        let (Ok(estimate), Ok(newcombe)) = (estimate, difference::newcombe(&changes, CONFIDENCE)) else {
            return missing();
        };
        let points = |share: f64, stderr: Option<f64>| Cell::Number {
            value: 100.0 * share,
            stderr: stderr.map(|stderr| 100.0 * stderr),
            digits: Digits::Decimals(2),
        };
        let ends =
            |ends: Interval| Cell::Text(format!("{:.2} to {:.2}", 100.0 * ends.low, 100.0 * ends.high));
        // Without flips the formula gives 0, as if every difference could be seen.
        let effect = (changes.discordant() > 0).then(|| {
            power::minimum_detectable_effect(changes.items(), changes.flips(), power::ALPHA, power::POWER)
                .ok()
        });
        [
            points(estimate.value, estimate.stderr),
            ends(newcombe),
            pair.bootstrap().map_or(Cell::Missing, ends),
            Cell::Count(changes.lost),
            Cell::Count(changes.gained),
            Cell::Count(changes.changed),
            p,
            holm,
            bh,
            effect.flatten().map_or(Cell::Missing, |effect| points(effect, None)),
        ]
    };
    pairs().zip(p_values).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_p_too_small_for_a_double_is_not_printed_as_zero() {
        let cells = adjusted(&[Some(0.0), None, Some(0.5)]);
        assert_eq!(cells[0][0], Cell::text("< 1e-300"));
        assert_eq!(cells[1], [Cell::Missing, Cell::Missing, Cell::Missing]);
        assert_eq!(cells[2][1], Cell::Number { value: 0.5, stderr: None, digits: Digits::Scaled(3) });
    }
}
