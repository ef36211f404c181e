//! Whether a cell's model is executed with all its weights in memory or part by part: what either takes, and which is
//! chosen.

use models::Part;
use models::architecture::Architecture;

use crate::evaluate::decode::Mode;
use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::passage::Passage;
use crate::experiment::Evaluation;
use crate::hidden;
use crate::plan::Cell;
use crate::quantize::effective_bits;
use crate::quantize::parts::Application;
use crate::record::execution::Residence;
use crate::run::originals;

/// What is asked of the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ask {
    /// Resident where that fits into memory, else streamed.
    #[default]
    Auto,
    /// All weights in memory, whatever there is of it.
    Resident,
    /// One part at a time, whether or not all would fit.
    Streamed,
}

/// The words of [`Ask`].
const WORDS: [(&str, Ask); 3] =
    [("auto", Ask::Auto), ("resident", Ask::Resident), ("streamed", Ask::Streamed)];

impl std::str::FromStr for Ask {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = WORDS.into_iter().find(|(word, _)| *word == text);
        known.map(|(_, ask)| ask).ok_or_else(|| {
            let hint = crate::names::hint(text, WORDS.map(|(word, _)| word));
            format!("`{text}` is no execution{hint}: auto, resident or streamed")
        })
    }
}

/// How cells are to be executed, and what memory there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// What is asked.
    pub ask: Ask,
    /// Bytes that a cell may take; `None` where nobody knows.
    pub memory: Option<u64>,
}

/// Bytes that the machine has free now; `None` where it does not tell.
pub fn free() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some(system.available_memory()).filter(|&bytes| bytes > 0)
}

/// Why a cell cannot be executed part by part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Whole {
    /// A step.
    #[error("step {step} needs the whole model at once ({why})")]
    Step {
        /// `<place>.<step>`, with its method.
        step: String,
        /// Why.
        why: &'static str,
    },
    /// An evaluation.
    #[error("{metric} {why}")]
    Evaluation {
        /// The full metric id.
        metric: String,
        /// Why.
        why: &'static str,
    },
}

/// Whether a cell can be executed part by part.
///
/// # Errors
/// The first thing that needs the whole model.
pub fn streamable(cell: &Cell, architecture: &Architecture) -> Result<(), Whole> {
    if let Some((step, why)) = Application::needs_whole_model(&cell.recipe.steps) {
        return Err(Whole::Step { step, why });
    }
    for evaluation in &cell.evaluations {
        let why = match evaluation {
            Evaluation::Task(_) => "scores answers behind shared contexts, which only the whole model does",
            Evaluation::LayerError(_) => "compares layers of the whole model",
            Evaluation::Speed(_) => "times the whole model",
            Evaluation::Perplexity(p) if p.mode == Mode::Decode => {
                "decodes token by token, for each of which every block would be read again"
            }
            Evaluation::Perplexity(p)
                if p.against_original
                    && cell.recipe.is_original()
                    && !Passage::knows_its_noise(architecture) =>
            {
                "has a noise floor, whose draws cannot be put in order where a router chooses experts"
            }
            Evaluation::Perplexity(_) => continue,
        };
        return Err(Whole::Evaluation { metric: evaluation.id(), why });
    }
    Ok(())
}

/// The program itself, texts and tokenizers: what sweeps of toys take, 128 MiB and a little more.
const PROGRAM: u64 = 128 << 20;

/// Bytes at the peak of a cell with all weights in memory: they in f32, the largest tensor once more while it is read, packed or
/// rounded, and the workspace of a forward pass over sequences of `length` tokens.
pub fn resident(a: &Architecture, evaluations: &[Evaluation], length: usize) -> u64 {
    let largest = (a.vocabulary.max(a.mlp.intermediate) * a.hidden) as u64;
    PROGRAM
        + 4 * (a.parameters() + largest)
        + DecoderModel::workspace_bytes(a, length)
        + originals::memory(evaluations, a)
}

/// The same of a cell: with the blocks' weights once more where a step tries something out on a copy, or else with a byte for
/// each where codes do not take the weights' place.
fn resident_cell(a: &Architecture, cell: &Cell) -> u64 {
    let steps = &cell.recipe.steps;
    let rounds = || effective_bits::planned(steps, a).activations < 16.0;
    let beside = match steps.iter().any(|step| step.method().tries_on_a_copy()) {
        true => 4,
        false => u64::from(reads_weights(&cell.evaluations) && rounds()),
    };
    resident(a, &cell.evaluations, cell.longest()) + beside * of_blocks(a)
}

/// Whether evaluations read the weights themselves, beside executing the model.
pub fn reads_weights(evaluations: &[Evaluation]) -> bool {
    evaluations.iter().any(|evaluation| matches!(evaluation, Evaluation::LayerError(_)))
}

/// Parameters of all blocks.
fn of_blocks(a: &Architecture) -> u64 {
    a.layers as u64 * Part::Block(0).parameters(a)
}

/// Bytes at the peak of a cell part by part: the largest part, once more where a recipe changes it, its largest tensor while
/// it is read, the workspace, and the hidden states as far as they stay in memory.
pub fn streamed(a: &Architecture, evaluations: &[Evaluation], length: usize) -> u64 {
    let tokens: Option<u64> = evaluations.iter().map(tokens).sum();
    let states = tokens.map_or(hidden::IN_MEMORY, |n| (4 * n * a.hidden as u64).min(hidden::IN_MEMORY));
    let part = Part::all(a.layers).map(|part| part.parameters(a)).max().unwrap_or_default();
    let tensor = (a.vocabulary.max(a.mlp.intermediate) * a.hidden) as u64;
    let kept = originals::memory(evaluations, a);
    PROGRAM + 4 * (2 * part + tensor) + 2 * states + DecoderModel::workspace_bytes(a, length) + kept
}

/// Tokens that an evaluation passes through a model, where its block says so.
fn tokens(evaluation: &Evaluation) -> Option<u64> {
    match evaluation {
        Evaluation::Perplexity(p) => p.limit.map(|n| (n * p.length) as u64),
        Evaluation::LayerError(block) => Some((block.samples * block.length) as u64),
        Evaluation::Task(_) | Evaluation::Speed(_) => None,
    }
}

/// What is executed of a cell and how, of a model whose files are here.
///
/// # Errors
/// Where streaming is asked for and the cell needs the whole model.
pub fn choose(cell: &Cell, a: &Architecture, choice: Choice) -> Result<Residence, Whole> {
    match choice.ask {
        Ask::Resident => Ok(Residence::Resident),
        Ask::Streamed => streamable(cell, a).map(|()| Residence::Streamed),
        Ask::Auto => {
            let fits = |memory| resident_cell(a, cell) <= memory;
            Ok(match choice.memory.is_none_or(fits) || streamable(cell, a).is_err() {
                true => Residence::Resident,
                false => Residence::Streamed,
            })
        }
    }
}

/// Bytes at the peak of a cell.
pub fn memory(residence: Residence, a: &Architecture, cell: &Cell) -> u64 {
    match residence {
        Residence::Resident => resident_cell(a, cell),
        Residence::Streamed => streamed(a, &cell.evaluations, cell.longest()),
    }
}

/// Bytes at the peak of the greatest of several cells, each executed as is chosen for it.
pub fn peak<'a>(cells: impl Iterator<Item = &'a Cell>, a: &Architecture, choice: Choice) -> u64 {
    cells.map(|cell| memory(choose(cell, a, choice).unwrap_or_default(), a, cell)).max().unwrap_or_default()
}

/// What is worth a warning: a cell that does not fit, and cannot be executed otherwise.
pub fn warning(cell: &Cell, a: &Architecture, choice: Choice) -> Option<String> {
    let takes = resident_cell(a, cell);
    let why = streamable(cell, a).err()?;
    let limit = choice.memory.filter(|&limit| choice.ask == Ask::Auto && takes > limit)?;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    Some(format!(
        "{} · {}: takes about {:.1} GiB where there are {:.1} GiB, and cannot be executed part by part: {why}",
        cell.model.label,
        cell.recipe.name,
        gib(takes),
        gib(limit),
    ))
}

/// Products of one thread, floating-point operations a second: measured on an AVX-512 processor of 2023, for estimates.
const OPERATIONS: f64 = 5e10;

/// Bytes of weights that are read, converted and hashed a second, for estimates.
const READING: f64 = 5e8;

/// Seconds that the evaluations of `cells` take on this machine's processor, resident and streamed: products, and reading the
/// checkpoint once a cell, or once for all of them. Calibration is not in it. `None` where it is not said how long a text is.
pub fn seconds(a: &Architecture, cells: &[&Cell], stored: u64, threads: usize) -> Option<[f64; 2]> {
    let passes = cells.iter().flat_map(|cell| &cell.evaluations);
    let tokens = passes.map(tokens).sum::<Option<u64>>()? as f64;
    // Looking up a row of the table is no product; a tied one is multiplied as the head.
    let multiplied = of_blocks(a) + Part::Head.parameters(a);
    let products = 2.0 * multiplied as f64 * tokens / (OPERATIONS * threads as f64);
    let read = stored as f64 / READING;
    Some([products + cells.len() as f64 * read, products + read])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::experiment::Experiment;
    use crate::plan::Plan;
    use models::Checkpoint;

    fn cells() -> Vec<Cell> {
        let text = include_str!("../../tests/fixtures/small.toml");
        Plan::new(&Experiment::parse(text, Path::new("small.toml")).unwrap()).cells
    }

    /// Llama-2-7B, as its `config.json` has it.
    fn seven_billion() -> Architecture {
        let config = include_str!("../../../models/tests/configs/Llama-2-7b-hf.json");
        let config = models::families::Config(serde_json::from_str(config).unwrap());
        (config.family().unwrap().read)(&config).unwrap()
    }

    #[test]
    fn memory_decides_and_either_can_be_asked_for() {
        let checkpoint = Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap();
        let a = checkpoint.architecture();
        let cell = &cells()[0];
        let need = resident(a, &cell.evaluations, cell.longest());
        let with = |ask, memory| choose(cell, a, Choice { ask, memory });
        assert_eq!(with(Ask::Auto, Some(need)), Ok(Residence::Resident));
        assert_eq!(with(Ask::Auto, Some(need - 1)), Ok(Residence::Streamed));
        assert_eq!(with(Ask::Auto, None), Ok(Residence::Resident));
        assert_eq!(with(Ask::Resident, Some(1)), Ok(Residence::Resident));
        assert_eq!(with(Ask::Streamed, Some(u64::MAX)), Ok(Residence::Streamed));
    }

    #[test]
    fn a_model_of_seven_billion_takes_26_gib_or_less_than_4() {
        let a = seven_billion();
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let cell = &cells()[0];
        let (all, part) = (resident(&a, &cell.evaluations, 512), streamed(&a, &[], 512));
        assert!((25.0..27.0).contains(&gib(all)), "{}", gib(all));
        // Two blocks of 202 M values, and a tensor.
        assert!((1.7..4.0).contains(&gib(part)), "{}", gib(part));
    }

    #[test]
    fn parts_hold_every_parameter_once() {
        let a = seven_billion();
        let sum: u64 = Part::all(a.layers).map(|part| part.parameters(&a)).sum();
        // The final norm belongs to no part, and 4096 values are little of a block.
        assert!(a.parameters().abs_diff(sum) <= 4096, "{sum}");
        let a = Checkpoint::builtin("builtin/tiny-llama").unwrap().unwrap().architecture().clone();
        assert_eq!(a.head, models::architecture::Head::Tied);
        let blocks: u64 = (0..a.layers).map(|layer| Part::Block(layer).parameters(&a)).sum();
        let table = (a.vocabulary * a.hidden) as u64;
        assert!(a.parameters().abs_diff(blocks + table) <= a.hidden as u64);
    }
}
