//! Tokenizers from `tokenizer.json`.
//!
//! Whether a text begins with BOS is decided by the post-processor in `tokenizer.json`, as the reference does when it is
//! asked for special tokens; `bos = "tokenizer"` follows it.

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

/// A tokenizer and its special tokens.
pub struct Tokenizer {
    inner: Inner,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    hash: String,
    /// Rows of the embedding table.
    vocabulary: Option<usize>,
}

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// `tokenizer.json` cannot be read.
    #[error("not a tokenizer this program can read: {0}")]
    Unreadable(String),
    /// `tokenizer_config.json` is no JSON.
    #[error("tokenizer_config.json beside it is not valid JSON: {0}")]
    Config(serde_json::Error),
    /// The tokenizer has ids that the embedding table has not.
    #[error("has token ids up to {highest}, but config.json says `vocab_size` = {vocabulary}")]
    Vocabulary {
        /// Highest id.
        highest: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// Encoding failed.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// Decoding failed.
    #[error("cannot decode the tokens: {0}")]
    Decode(String),
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the names of BOS and EOS from `tokenizer_config.json`, else their ids from `config`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn new(
        tokenizer: &[u8],
        tokenizer_config: Option<&[u8]>,
        config: &Value,
    ) -> Result<Self, TokenizerError> {
        let mut inner =
            Inner::from_bytes(tokenizer).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
        inner.with_truncation(None).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
        inner.with_padding(None);
        let named: Value = match tokenizer_config {
            Some(bytes) => serde_json::from_slice(bytes).map_err(TokenizerError::Config)?,
            None => Value::Null,
        };
        let special = |name: &str| {
            let token = &named[format!("{name}_token")];
            let token = token.as_str().or_else(|| token["content"].as_str());
            // Some configs list several ends of sequence; the first is the one the vocabulary was trained with.
            let id = &config[format!("{name}_token_id")];
            let id = id.as_u64().or_else(|| id[0].as_u64()).map(|id| id as u32);
            token.and_then(|token| inner.token_to_id(token)).or(id)
        };
        let (bos, eos) = (special("bos"), special("eos"));
        let probe = inner.encode_fast("a", true).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let adds_bos = bos.is_some() && probe.get_ids().first().copied() == bos;
        let mut hasher = blake3::Hasher::new();
        hasher.update(tokenizer);
        hasher.update(format!("\0bos={bos:?} eos={eos:?} adds_bos={adds_bos}").as_bytes());
        let hash = hasher.finalize().to_hex().to_string();
        Ok(Self { inner, bos, eos, adds_bos, hash, vocabulary: None })
    }

    /// Checks that every id that stands for text has a row in an embedding table of `vocabulary` rows.
    ///
    /// Added tokens may have none, as the image token of Gemma 3's tokenizer has none in its text models; a text that
    /// spells one out is refused when it is encoded.
    pub(crate) fn fits(&mut self, vocabulary: usize) -> Result<(), TokenizerError> {
        let highest = self.inner.get_vocab(false).into_values().max().unwrap_or(0);
        if highest as usize >= vocabulary {
            return Err(TokenizerError::Vocabulary { highest, vocabulary });
        }
        self.vocabulary = Some(vocabulary);
        Ok(())
    }

    /// Token ids of a text, without any special token added.
    ///
    /// # Errors
    /// If the tokenizer fails on it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    /// Token ids of a text with the special tokens that the tokenizer adds by itself.
    ///
    /// # Errors
    /// If the tokenizer fails on it.
    pub fn encode_special(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, special).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let ids = encoding.get_ids();
        if let (Some(vocabulary), Some(&highest)) = (self.vocabulary, ids.iter().max())
            && highest as usize >= vocabulary
        {
            return Err(TokenizerError::Vocabulary { highest, vocabulary });
        }
        Ok(ids.to_vec())
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// If the tokenizer fails on them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, false).map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// The id of a vocabulary entry by its own spelling, such as `<s>` or `▁the`.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// Ids that stand for text, in ascending order: the vocabulary without special and added tokens.
    pub fn ordinary(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let special = |id: &u32| added.contains_key(id) || Some(*id) == self.bos || Some(*id) == self.eos;
        let mut ids: Vec<u32> = self.inner.get_vocab(false).into_values().collect();
        ids.retain(|id| !special(id));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether [`Tokenizer::encode_special`] begins with BOS.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// blake3 of `tokenizer.json` and what else decides token ids.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}
