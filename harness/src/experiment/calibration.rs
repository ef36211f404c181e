//! `[calibration.NAME]` blocks: read, and checked against each other and against what is measured.

use super::parse::{self, Checked};
use super::source::{Block, Fault};
use super::{Calibration, Evaluation, Experiment, evaluation, wire};
use crate::data::CorpusRef;
use crate::data::generated::Generated;
use crate::names;

/// Reads a block.
pub(super) fn read(name: &str, block: &Block<'_>) -> Checked<Calibration> {
    let wire::Calibration { corpus, samples, length, sampler, bos, repeat, allow_overlap, seeds, reference } =
        block.read()?;
    if samples == 0 {
        return Err(block.fault_of_key("`samples` must be at least 1".into()));
    }
    if length < 2 {
        return Err(block.fault_of_key(format!("`length` must be at least 2, not {length}")));
    }
    let corpus = match corpus.0.generated() {
        Some(_) => corpus.0,
        None => evaluation::known_corpus(block, corpus, &Generated::ALL)?,
    };
    let seeds = seeds.map(|listed| parse::seeds(block, Some(listed), "those of [sweep]")).transpose()?;
    let reference = reference.map(toml::Spanned::into_inner);
    let name = name.to_string();
    Ok(Calibration { name, corpus, samples, length, sampler, bos, repeat, allow_overlap, seeds, reference })
}

/// The block of a set, for a fault.
fn fault(top: &Block<'_>, name: &str, message: String) -> Box<Fault> {
    let block = top.named_tables("calibration").ok().and_then(|blocks| {
        blocks.into_iter().find(|(known, _, _)| known == name).map(|(_, place, block)| (place, block))
    });
    match block {
        Some((place, block)) => block.fault(place, message),
        None => top.fault(0..0, message),
    }
}

/// A set's scores are divided by those of its reference: it has to be swept, and to be its own reference.
pub(super) fn check_references(top: &Block<'_>, swept: &[Calibration]) -> Checked<()> {
    for set in swept {
        let Some(reference) = &set.reference else { continue };
        let Some(found) = swept.iter().find(|other| other.name == *reference) else {
            let near = names::hint(reference, swept.iter().map(|other| other.name.as_str()));
            let message = format!("`reference` names the set `{reference}`, which is not swept{near}");
            return Err(fault(top, &set.name, message));
        };
        if found.reference.as_ref().is_some_and(|further| *further != found.name) {
            let message = format!(
                "`reference` names `{reference}`, which has itself another reference: name that one, or none there"
            );
            return Err(fault(top, &set.name, message));
        }
    }
    Ok(())
}

/// Refuses a set that is made of items which are measured.
pub(super) fn check_halves(top: &Block<'_>, experiment: &Experiment) -> Checked<()> {
    for set in experiment.calibrations.iter().filter(|set| !set.allow_overlap) {
        let CorpusRef::Task { task, half, items } = &set.corpus else { continue };
        for evaluation in &experiment.evaluations {
            let Evaluation::Task(measured) = evaluation else { continue };
            // Another file is another split, as far as one can tell before it is read.
            if measured.name != task || measured.items != *items {
                continue;
            }
            let apart = matches!((half, measured.protocol.half), (Some(a), Some(b)) if *a != b);
            if !apart {
                let message = format!(
                    "the set `{}` is made of items of `{task}` that `{}` measures: give the corpus one half and the \
                     [[evaluate]] block the other, name another file with `items`, or say allow-overlap = true",
                    set.name,
                    evaluation.id()
                );
                return Err(fault(top, &set.name, message));
            }
        }
    }
    Ok(())
}
