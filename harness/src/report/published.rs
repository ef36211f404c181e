//! Published numbers: what a paper reports, each value with how it came to be known here.
//!
//! The files are part of the program, so that a report needs no path; a report prints them beside its own numbers when
//! the experiment's `reference` names the paper. `docs/published.md` describes the format.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The files of `results/published/`, by the paper's name in a `reference`.
const FILES: &[(&str, &str)] = &[("2405.14428", include_str!("../../../results/published/2405.14428.toml"))];

/// How a number came to be known here, from the most to the least certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provenance {
    /// Read in the authors' released code or files.
    Read,
    /// Read in a third party's notes about the paper.
    ReadInNotes,
    /// Recalled, and in agreement with a number that was read or with arithmetic on its row.
    RecalledChecked,
    /// Recalled, unverified.
    Recalled,
}

impl Provenance {
    /// The words in tables.
    pub fn words(self) -> &'static str {
        match self {
            Provenance::Read => "read",
            Provenance::ReadInNotes => "read in notes",
            Provenance::RecalledChecked => "recalled, checked",
            Provenance::Recalled => "recalled",
        }
    }

    /// What the words mean.
    pub fn meaning(self) -> &'static str {
        match self {
            Provenance::Read => "in the authors' released files",
            Provenance::ReadInNotes => "in a third party's notes about the paper",
            Provenance::RecalledChecked => {
                "agrees with a number that was read, or with arithmetic on its row"
            }
            Provenance::Recalled => "unverified",
        }
    }
}

/// The published numbers of one paper.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Published {
    /// `arXiv:…`.
    pub paper: String,
    /// Its title.
    pub title: String,
    /// How it measured.
    pub setting: Setting,
    /// What the sources of the rows are, by their short names.
    pub source: BTreeMap<String, String>,
    /// Perplexity and accuracy.
    pub result: Vec<Measured>,
    /// Partial quantization.
    pub partial: Vec<Partial>,
    /// Thresholds of QFeM.
    pub threshold: Vec<Threshold>,
    /// Excepted groups.
    pub list: Vec<List>,
    /// Searched prefixes.
    pub prefix: Vec<Prefix>,
}

/// How a paper measured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Sizes of the models.
    pub models: String,
    /// The text of the perplexity.
    pub text: String,
    /// How it was measured.
    pub protocol: String,
    /// What calibrated.
    pub calibration: String,
    /// The grid of the weights.
    pub weights: String,
    /// The grid of the activations.
    pub activations: String,
}

/// Where a row comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Origin {
    /// Of every number of the row that `provenance_of` does not name.
    pub provenance: Provenance,
    /// Of single numbers, by key.
    #[serde(default)]
    pub provenance_of: BTreeMap<String, Provenance>,
    /// Short name of a source.
    pub source: String,
}

impl Origin {
    /// How the number under `key` came to be known.
    pub fn of(&self, key: &str) -> Provenance {
        self.provenance_of.get(key).copied().unwrap_or(self.provenance)
    }
}

/// What was added to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Cure {
    /// Nothing.
    #[serde(rename = "none")]
    None,
    /// QFeM.
    #[serde(rename = "QFeM")]
    Qfem,
    /// QFeP.
    #[serde(rename = "QFeP")]
    Qfep,
    /// QFeM and QFeP.
    #[serde(rename = "both")]
    Both,
}

/// The host of the published models as they came, in 16 bits.
pub const ORIGINAL: &str = "original";

/// Perplexity and zero-shot accuracy (per cent) of a model under a recipe.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Measured {
    /// The model.
    pub model: String,
    /// [`ORIGINAL`], `W8A8`, `SmoothQuant` or `OS+`.
    pub host: String,
    /// What was added.
    pub cure: Cure,
    /// Perplexity.
    pub perplexity: f64,
    /// Accuracy.
    pub piqa: Option<f64>,
    /// Accuracy.
    pub lambada: Option<f64>,
    /// Accuracy.
    pub hellaswag: Option<f64>,
    /// Accuracy.
    pub winogrande: Option<f64>,
    /// Mean of the four.
    pub average: Option<f64>,
    /// Where the row comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Perplexity with only a few groups quantized, and the error of their outputs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Partial {
    /// The model.
    pub model: String,
    /// How many groups are quantized.
    pub groups: u64,
    /// Perplexity of the model as it came.
    pub original: f64,
    /// Perplexity with the groups of the largest ratios quantized.
    pub top: f64,
    /// Perplexity with those of middle ratios.
    pub middle: f64,
    /// Perplexity with those of the smallest ratios.
    pub bottom: f64,
    /// Mean squared error of the outputs.
    pub top_error: f64,
    /// As `top_error`.
    pub middle_error: f64,
    /// As `top_error`.
    pub bottom_error: f64,
    /// Where the row comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// A threshold of QFeM and what it selects.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Threshold {
    /// The model.
    pub model: String,
    /// The smallest excepted ratio.
    pub alpha: f64,
    /// The threshold as the paper prints it.
    pub printed: f64,
    /// How many groups are excepted, |M_unq|.
    pub excepted: u64,
    /// How many there are, |M|.
    pub groups: u64,
    /// The largest ratio.
    pub largest: Option<f64>,
    /// The group that has it.
    pub largest_at: Option<String>,
    /// Excepted groups by the linear layer whose input it is.
    #[serde(default)]
    pub composition: BTreeMap<String, u64>,
    /// Where the row comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// The groups that a released list excepts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct List {
    /// The model.
    pub model: String,
    /// Largest ratio first, rounded.
    pub groups: Vec<ListedGroup>,
    /// Where the row comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// An excepted group.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedGroup {
    /// `layers.1.down`, counted from 0.
    pub site: String,
    /// Its ratio.
    pub ratio: f64,
}

/// A searched prefix.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Prefix {
    /// The model.
    pub model: String,
    /// Its tokens as texts.
    pub tokens: Vec<String>,
    /// Where the row comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Reads a file of published numbers.
///
/// # Errors
/// Where it is not in the format; the message names line and key.
pub fn parse(text: &str) -> Result<Published, toml::de::Error> {
    toml::from_str(text)
}

/// The published numbers of the papers that a `reference` names, in the order of this program's files.
pub fn named_by(reference: &str) -> Vec<Published> {
    let named = FILES.iter().filter(|(paper, _)| reference.contains(paper));
    named.map(|(_, text)| parse(text).expect("the files of this program are read in a test")).collect()
}

/// The published numbers of every paper.
pub fn all() -> Vec<Published> {
    FILES.iter().map(|(_, text)| parse(text).expect("the files of this program are read in a test")).collect()
}

impl Published {
    /// The row of a model under a recipe.
    pub fn result(&self, model: &str, host: &str, cure: Cure) -> Option<&Measured> {
        self.result.iter().find(|row| row.model == model && row.host == host && row.cure == cure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper() -> Published {
        parse(FILES[0].1).unwrap()
    }

    #[test]
    fn every_file_of_the_folder_is_part_of_the_program_and_is_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/published");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
            .collect();
        found.sort();
        assert_eq!(found, FILES.iter().map(|(paper, _)| *paper).collect::<Vec<_>>());
        for (name, text) in FILES {
            let published = parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(published.paper.ends_with(name));
        }
        assert_eq!(all().len(), FILES.len());
        assert_eq!(named_by("own; after arXiv:2405.14428").len(), 1);
        assert!(named_by("own").is_empty());
    }

    #[test]
    fn every_row_names_a_source_and_every_provenance_a_number_of_its_row() {
        let paper = paper();
        let origins: Vec<(&str, &Origin)> = paper
            .result
            .iter()
            .map(|row| ("result", &row.origin))
            .chain(paper.partial.iter().map(|row| ("partial", &row.origin)))
            .chain(paper.threshold.iter().map(|row| ("threshold", &row.origin)))
            .chain(paper.list.iter().map(|row| ("list", &row.origin)))
            .chain(paper.prefix.iter().map(|row| ("prefix", &row.origin)))
            .collect();
        let mut used = Vec::new();
        for (kind, origin) in &origins {
            assert!(paper.source.contains_key(&origin.source), "{kind}: {}", origin.source);
            used.push(origin.source.as_str());
            let keys: &[&str] = match *kind {
                "result" => &["perplexity", "piqa", "lambada", "hellaswag", "winogrande", "average"],
                "partial" => &["original", "top", "middle", "bottom"],
                "threshold" => &["printed"],
                _ => &[],
            };
            assert!(
                origin.provenance_of.keys().all(|key| keys.contains(&key.as_str())),
                "{kind}: {origin:?}"
            );
        }
        assert!(paper.source.keys().all(|source| used.contains(&source.as_str())));
    }

    // Golden numbers of the specification: sizes and thresholds of the eight released lists.
    #[test]
    fn thresholds_are_those_of_the_eight_released_lists() {
        let paper = paper();
        let sizes: Vec<(&str, u64, u64)> = paper
            .threshold
            .iter()
            .filter(|row| row.origin.provenance == Provenance::Read)
            .map(|row| (row.model.as_str(), row.excepted, row.groups))
            .collect();
        assert_eq!(
            sizes,
            [
                ("Llama-2-7B", 17, 128),
                ("Llama-2-13B", 6, 160),
                ("Llama-2-70B", 25, 320),
                ("Mistral-7B", 3, 128),
                ("Mixtral-8x7B", 191, 608),
                ("SOLAR-10.7B", 11, 192),
                ("Gemma-7B", 5, 112),
                ("Llama-3-70B", 3, 320),
            ]
        );
        for row in paper.threshold.iter().filter(|row| row.largest.is_some()) {
            assert_eq!(row.composition.values().sum::<u64>(), row.excepted, "{}", row.model);
            assert!(row.largest >= Some(row.alpha), "{}", row.model);
            // The paper prints α truncated, so that r > printed selects the list, but for Mistral, whose α is exact.
            let gap = row.alpha - row.printed;
            assert!((0.0..0.01).contains(&gap), "{}: {gap}", row.model);
            assert_eq!(gap == 0.0, row.model == "Mistral-7B", "{}", row.model);
        }
    }

    #[test]
    fn a_threshold_selects_its_list() {
        let paper = paper();
        assert_eq!(paper.list.len(), 1);
        for list in &paper.list {
            let row = paper.threshold.iter().find(|row| row.model == list.model).unwrap();
            assert_eq!(list.groups.len() as u64, row.excepted);
            assert_eq!(list.groups[0].ratio, row.largest.unwrap());
            assert_eq!(Some(&list.groups[0].site), row.largest_at.as_ref());
            assert!(list.groups.windows(2).all(|pair| pair[0].ratio >= pair[1].ratio));
            // Ratios are rounded to two decimals here.
            assert!(list.groups.iter().all(|group| group.ratio >= row.alpha - 0.005), "{}", list.model);
            let mut composition: BTreeMap<String, u64> = BTreeMap::new();
            for group in &list.groups {
                *composition.entry(group.site.rsplit('.').next().unwrap().to_owned()).or_default() += 1;
            }
            assert_eq!(composition, row.composition);
        }
        let seven = &paper.list[0];
        assert_eq!((seven.model.as_str(), seven.groups.len()), ("Llama-2-7B", 17));
        assert!(seven.groups.iter().all(|group| group.ratio >= 6.675));
        // The same rule that the step uses.
        let ratios: Vec<f64> = seven.groups.iter().map(|group| group.ratio).chain([6.67, 1.0]).collect();
        assert_eq!(ratios.iter().take_while(|ratio| **ratio >= 6.675).count(), 17);
    }

    #[test]
    fn averages_are_the_means_of_their_rows() {
        let mut checked = 0;
        for row in paper().result {
            if let (Some(a), Some(b), Some(c), Some(d), Some(average)) =
                (row.piqa, row.lambada, row.hellaswag, row.winogrande, row.average)
            {
                let mean = (a + b + c + d) / 4.0;
                assert!((mean - average).abs() < 0.0101, "{} {} {:?}: {mean}", row.model, row.host, row.cure);
                checked += 1;
            }
        }
        assert_eq!(checked, 15);
    }

    #[test]
    fn the_largest_ratios_cause_the_loss_of_partial_quantization() {
        let paper = paper();
        assert_eq!(paper.partial.len(), 4);
        for row in paper.partial {
            assert!(row.top > 1.5 * row.original, "{}", row.model);
            assert!(row.middle < 1.01 * row.original && row.bottom < 1.01 * row.original, "{}", row.model);
        }
    }
}
