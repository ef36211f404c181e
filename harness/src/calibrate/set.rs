//! Calibration sets: samples of token ids, drawn from a text by seed.
//!
//! A set is a value: what is drawn depends on the block of the experiment, the text, the tokenizer and the seed, and on
//! nothing else, so two machines draw the same ids and [`CalibrationSet::hash`] is the set's identity.
//!
//! | sampler | how | source |
//! |---|---|---|
//! | `windows` | the text is encoded once as one stream; starts are uniform over all windows in it | GPTQ's WikiText-2 loader |
//! | `documents` | documents in random order, those with too few tokens passed over; a uniform window inside each. No document serves twice before each that is long enough has served once | GPTQ's C4 loader; arXiv:2405.14428 draws so, too |
//!
//! A generated corpus ([`Generated`]) is a text made to measure: under `windows` one stream cut into samples, under
//! `documents` a document per sample.
//!
//! Under `bos = "tokenizer"` the special tokens that the tokenizer puts in front stand at the start of the stream
//! (`windows`) or of each document (`documents`), so a sample has them only where its window begins there. What a
//! tokenizer puts behind a text is left out.

use std::collections::HashSet;

use models::tokenizer::{Tokenizer, TokenizerError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use crate::data::BosPolicy;
use crate::data::corpus::Text;
use crate::data::generated::{self, GenerateError, Generated, below, shuffle};
use crate::data::window::window_start;
use crate::experiment::{Calibration, Sampler};

/// A calibration set, drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationSet {
    /// Token ids, samples × length.
    pub samples: Vec<Vec<u32>>,
    /// blake3 of the ids, hexadecimal: the number of samples as u64, then of each its length as u64 and its ids as u32,
    /// all little-endian.
    pub hash: String,
    /// What was drawn and from what, for the record: text, seed, and how often text was used again.
    pub detail: Map<String, Value>,
}

/// Why a set cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum DrawError {
    /// A set without samples, or samples without room for a token to predict.
    #[error(
        "calibration `{calibration}` asks for {samples} samples of {length} tokens: at least 1 sample of 2 is needed"
    )]
    Empty {
        /// The set's name.
        calibration: String,
        /// Samples asked for.
        samples: usize,
        /// Tokens per sample asked for.
        length: usize,
    },
    /// The text is not there.
    #[error(
        "calibration `{calibration}`: its text was not loaded; only generated corpora are drawn without one"
    )]
    NoText {
        /// The set's name.
        calibration: String,
    },
    /// Less text than one sample.
    #[error(
        "calibration `{calibration}`: the text {text} has {tokens} tokens, and a sample of length {length} \
         (bos = \"{}\") needs {needed}: use a longer text{}", bos.as_str(), or_at_most(*tokens, *needed, *length)
    )]
    TooShort {
        /// The set's name.
        calibration: String,
        /// Label and origin of the text.
        text: String,
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of text in one sample.
        needed: usize,
        /// Tokens of one sample, BOS included.
        length: usize,
        /// The policy, which may take one place of the sample.
        bos: BosPolicy,
    },
    /// No document holds a sample.
    #[error(
        "calibration `{calibration}`: the longest of the {documents} documents of {text} has {longest} tokens, and a \
         sample of length {length} (bos = \"{}\") needs {needed}: use sampler = \"windows\" or a text with longer \
         documents{}", bos.as_str(), or_at_most(*longest, *needed, *length)
    )]
    NoDocument {
        /// The set's name.
        calibration: String,
        /// Label and origin of the text.
        text: String,
        /// Documents of the text.
        documents: usize,
        /// Tokens of the longest one.
        longest: usize,
        /// Tokens of text in one sample.
        needed: usize,
        /// Tokens of one sample, BOS included.
        length: usize,
        /// The policy, which may take one place of the sample.
        bos: BosPolicy,
    },
    /// `repeat = false`, and the text holds fewer samples than asked for.
    #[error(
        "calibration `{calibration}` says repeat = false and asks for {samples} samples of {needed} tokens of text; \
         {text} holds {held} {}: use at most {held} samples, a longer text, or leave `repeat` out",
        match sampler { Sampler::Windows => "that do not overlap", Sampler::Documents => "documents that are so long" }
    )]
    Repeats {
        /// The set's name.
        calibration: String,
        /// Label and origin of the text.
        text: String,
        /// Samples asked for.
        samples: usize,
        /// Tokens of text in one sample.
        needed: usize,
        /// Samples that the text holds.
        held: usize,
        /// How samples are drawn.
        sampler: Sampler,
    },
    /// `bos = "every"` with a tokenizer that has neither BOS nor EOS.
    #[error(
        "calibration `{calibration}`: bos = \"every\" needs a token to begin each sample with, and the model's tokenizer \
         has neither a BOS nor an EOS token: use bos = \"tokenizer\" or \"none\""
    )]
    NoBos {
        /// The set's name.
        calibration: String,
    },
    /// The tokenizer failed on the text.
    #[error("calibration `{calibration}`, text {text}: {source}")]
    Tokenizer {
        /// The set's name.
        calibration: String,
        /// Label and origin of the text.
        text: String,
        /// What it said.
        source: TokenizerError,
    },
    /// Nothing can be generated.
    #[error("calibration `{calibration}`, corpus `{}`: {source}", corpus.name())]
    Generate {
        /// The set's name.
        calibration: String,
        /// The generated corpus.
        corpus: Generated,
        /// Why not.
        source: GenerateError,
    },
}

/// The second half of a cure, where a shorter sample would fit; a sample has at least 2 tokens.
fn or_at_most(tokens: usize, needed: usize, length: usize) -> String {
    let fits = tokens + (length - needed);
    if fits < 2 { String::new() } else { format!(", or a length of at most {fits}") }
}

/// The random stream of a purpose: ChaCha8, its key blake3's key derivation from the seed (u64, little-endian) in the
/// context `quantscope PURPOSE`. Streams of different purposes are independent under one seed, and stay as they are
/// between versions.
pub fn stream(purpose: &str, seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(blake3::derive_key(&format!("quantscope {purpose}"), &seed.to_le_bytes()))
}

/// Draws a set. `text` is what `calibration.corpus` names; a generated corpus has none.
///
/// # Errors
/// Where the text, its documents or the tokenizer cannot give what is asked for; see [`DrawError`].
pub fn draw(
    calibration: &Calibration,
    text: Option<&Text>,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<CalibrationSet, DrawError> {
    let &Calibration { samples, length, bos, .. } = calibration;
    let name = || calibration.name.clone();
    if samples == 0 || length < 2 {
        return Err(DrawError::Empty { calibration: name(), samples, length });
    }
    let start = match bos {
        BosPolicy::Every => {
            let start = window_start(tokenizer.bos(), tokenizer.eos());
            Some(start.ok_or_else(|| DrawError::NoBos { calibration: name() })?)
        }
        BosPolicy::Tokenizer | BosPolicy::None => None,
    };
    let draft = Draft {
        calibration,
        tokenizer,
        needed: length - usize::from(start.is_some()),
        rng: stream("calibration", seed),
    };
    let Drawn { pieces, unique, mut detail } = match (calibration.corpus.generated(), text) {
        (Some(corpus), _) => draft.generate(corpus).map_err(|source| DrawError::Generate {
            calibration: name(),
            corpus,
            source,
        })?,
        (None, None) => return Err(DrawError::NoText { calibration: name() }),
        (None, Some(text)) => match calibration.sampler {
            Sampler::Windows => draft.windows(text)?,
            Sampler::Documents => draft.documents(text)?,
        },
    };

    let tokens: usize = pieces.iter().map(Vec::len).sum();
    let distinct: HashSet<u32> = pieces.iter().flatten().copied().collect();
    let samples: Vec<Vec<u32>> =
        pieces.into_iter().map(|piece| start.into_iter().chain(piece).collect()).collect();
    let hash = hash(&samples);
    detail.insert("token-hash".into(), hash.clone().into());
    detail.insert("samples".into(), samples.len().into());
    detail.insert("length".into(), length.into());
    detail.insert("sampler".into(), json!(calibration.sampler));
    detail.insert("bos".into(), json!(bos));
    detail.insert("seed".into(), seed.into());
    if !calibration.repeat {
        detail.insert("repeat".into(), false.into());
    }
    if calibration.allow_overlap {
        detail.insert("allow-overlap".into(), true.into());
    }
    // Without the BOS of `every`, which is no text.
    detail.insert("tokens".into(), tokens.into());
    detail.insert("unique-tokens".into(), unique.into());
    detail.insert("repetition".into(), (tokens as f64 / unique as f64).into());
    detail.insert("distinct-ids".into(), distinct.len().into());
    Ok(CalibrationSet { samples, hash, detail })
}

fn hash(samples: &[Vec<u32>]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(samples.len() as u64).to_le_bytes());
    for sample in samples {
        hasher.update(&(sample.len() as u64).to_le_bytes());
        for id in sample {
            hasher.update(&id.to_le_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Pieces of text, each of the tokens that one sample needs, in the order of samples.
struct Drawn {
    pieces: Vec<Vec<u32>>,
    /// Tokens of the text that stand in at least one piece.
    unique: usize,
    /// What is known of the text.
    detail: Map<String, Value>,
}

/// What every sampler draws with.
struct Draft<'a> {
    calibration: &'a Calibration,
    tokenizer: &'a Tokenizer,
    /// Tokens of text in one sample.
    needed: usize,
    rng: ChaCha8Rng,
}

impl Draft<'_> {
    /// Token ids of a text as the BOS policy wants them.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.opening()?;
        ids.append(&mut self.tokenizer.encode(text)?);
        Ok(ids)
    }

    /// What the tokenizer puts in front of a text by itself.
    fn opening(&self) -> Result<Vec<u32>, TokenizerError> {
        if self.calibration.bos != BosPolicy::Tokenizer {
            return Ok(Vec::new());
        }
        // A template does not look at the text, so any text shows what it adds.
        let (plain, mut special) = (self.tokenizer.encode("a")?, self.tokenizer.encode_special("a")?);
        let before = special.windows(plain.len().max(1)).position(|ids| ids == plain).unwrap_or(0);
        special.truncate(before);
        Ok(special)
    }

    fn generate(mut self, corpus: Generated) -> Result<Drawn, GenerateError> {
        let Self { calibration, tokenizer, needed, .. } = self;
        let (streams, pieces_each) = match calibration.sampler {
            Sampler::Windows => (1, calibration.samples),
            Sampler::Documents => (calibration.samples, 1),
        };
        let mut pieces = Vec::with_capacity(calibration.samples);
        for _ in 0..streams {
            let mut ids = self.opening()?;
            let more = (pieces_each * needed).saturating_sub(ids.len());
            ids.append(&mut corpus.tokens(more, tokenizer, &mut self.rng)?);
            pieces.extend(ids.chunks_exact(needed).take(pieces_each).map(<[u32]>::to_vec));
        }
        let mut detail = Map::new();
        detail.insert("text".into(), corpus.name().into());
        detail.insert("text-origin".into(), "generated".into());
        if corpus == Generated::Nonsense {
            detail.insert("characters".into(), generated::alphabet(tokenizer)?.len().into());
        }
        Ok(Drawn { unique: pieces.len() * needed, pieces, detail })
    }

    fn windows(mut self, text: &Text) -> Result<Drawn, DrawError> {
        let &Calibration { samples, length, bos, sampler, .. } = self.calibration;
        let needed = self.needed;
        let ids = self.encode(&text.text).map_err(|source| self.tokenizer_error(text, source))?;
        if ids.len() < needed {
            let (calibration, text) = (self.calibration.name.clone(), place(text));
            let tokens = ids.len();
            return Err(DrawError::TooShort { calibration, text, tokens, needed, length, bos });
        }
        let starts: Vec<usize> = if self.calibration.repeat {
            (0..samples).map(|_| below(&mut self.rng, ids.len() - needed + 1)).collect()
        } else {
            let held = ids.len() / needed;
            if held < samples {
                let (calibration, text) = (self.calibration.name.clone(), place(text));
                return Err(DrawError::Repeats { calibration, text, samples, needed, held, sampler });
            }
            // Random gaps between windows that lie side by side, then the order of samples.
            let slack = ids.len() - samples * needed;
            let mut gaps: Vec<usize> = (0..samples).map(|_| below(&mut self.rng, slack + 1)).collect();
            gaps.sort_unstable();
            let mut starts: Vec<usize> =
                gaps.into_iter().enumerate().map(|(i, gap)| gap + i * needed).collect();
            shuffle(&mut self.rng, &mut starts);
            starts
        };
        let mut detail = about(text);
        detail.insert("stream-tokens".into(), ids.len().into());
        let unique = unique(starts.iter().map(|start| (0, *start)).collect(), needed);
        let pieces = starts.into_iter().map(|start| ids[start..start + needed].to_vec()).collect();
        Ok(Drawn { pieces, unique, detail })
    }

    fn documents(mut self, text: &Text) -> Result<Drawn, DrawError> {
        let &Calibration { samples, length, bos, sampler, .. } = self.calibration;
        let needed = self.needed;
        let mut order: Vec<usize> = (0..text.documents.len()).collect();
        shuffle(&mut self.rng, &mut order);
        // Encoding is the work here, so it ends with the last document that is wanted.
        let (mut long, mut longest) = (Vec::new(), 0);
        for document in order {
            let ids = self
                .encode(&text.text[text.documents[document].clone()])
                .map_err(|source| self.tokenizer_error(text, source))?;
            longest = longest.max(ids.len());
            if ids.len() >= needed {
                long.push(ids);
            }
            if long.len() == samples {
                break;
            }
        }
        let held = long.len();
        if held == 0 {
            let (calibration, documents) = (self.calibration.name.clone(), text.documents.len());
            let text = place(text);
            return Err(DrawError::NoDocument { calibration, text, documents, longest, needed, length, bos });
        }
        if held < samples && !self.calibration.repeat {
            let (calibration, text) = (self.calibration.name.clone(), place(text));
            return Err(DrawError::Repeats { calibration, text, samples, needed, held, sampler });
        }
        let (mut pieces, mut places) = (Vec::with_capacity(samples), Vec::with_capacity(samples));
        let mut round: Vec<usize> = (0..held).collect();
        while pieces.len() < samples {
            for &document in round.iter().take(samples - pieces.len()) {
                let ids: &Vec<u32> = &long[document];
                let start = below(&mut self.rng, ids.len() - needed + 1);
                pieces.push(ids[start..start + needed].to_vec());
                places.push((document, start));
            }
            shuffle(&mut self.rng, &mut round);
        }
        let mut detail = about(text);
        detail.insert("documents".into(), text.documents.len().into());
        detail.insert("documents-used".into(), held.into());
        Ok(Drawn { pieces, unique: unique(places, needed), detail })
    }

    fn tokenizer_error(&self, text: &Text, source: TokenizerError) -> DrawError {
        DrawError::Tokenizer { calibration: self.calibration.name.clone(), text: place(text), source }
    }
}

/// Tokens in the union of windows of `needed` tokens, each given by its document and start.
fn unique(mut places: Vec<(usize, usize)>, needed: usize) -> usize {
    places.sort_unstable();
    let mut last = None;
    let mut sum = 0;
    for (document, start) in places {
        sum += match last {
            Some((same, before)) if same == document => needed.min(start - before),
            _ => needed,
        };
        last = Some((document, start));
    }
    sum
}

/// Label and origin, as a fault names a text.
fn place(text: &Text) -> String {
    format!("{} [{}]", text.label(), text.origin)
}

fn about(text: &Text) -> Map<String, Value> {
    let mut detail = Map::new();
    detail.insert("text".into(), text.label().into());
    detail.insert("text-origin".into(), text.origin.clone().into());
    detail.insert("text-hash".into(), text.hash.clone().into());
    detail
}
