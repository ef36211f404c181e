//! Windows of token ids: a stream cut into equal, disjoint pieces under a BOS policy.

use super::BosPolicy;

/// Why a stream cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Less text than one window needs.
    #[error(
        "the text has {tokens} tokens and one window of length {length} (bos = \"{}\") needs {needed}: use a longer \
         text, or a length of at most {}",
        policy.as_str(), tokens + usize::from(*policy == BosPolicy::Every)
    )]
    TooShort {
        /// Tokens of the stream.
        tokens: usize,
        /// Tokens of text in one window.
        needed: usize,
        /// Window length, BOS included.
        length: usize,
        /// The policy, which may take one place of the window.
        policy: BosPolicy,
    },
    /// A window has to hold a context and something to predict.
    #[error("a window of length {length} predicts nothing: the length must be at least 2")]
    Length {
        /// Window length asked for.
        length: usize,
    },
    /// A limit of no windows measures nothing.
    #[error("a limit of 0 windows measures nothing: leave `limit` out, or set it to 1 or more")]
    NoWindows,
    /// `bos = "every"` with a tokenizer that has neither BOS nor EOS.
    #[error(
        "bos = \"every\" needs a token to begin each window with, and this tokenizer has neither a BOS nor an EOS \
         token: use bos = \"tokenizer\" or \"none\""
    )]
    NoBos,
    /// Ids that already begin with BOS under a policy that places it itself.
    #[error(
        "the ids already begin with the BOS token {id}, but bos = \"{}\" needs text encoded without special tokens",
        policy.as_str()
    )]
    UnexpectedBos {
        /// The token at the stream's start.
        id: u32,
        /// The policy asked for.
        policy: BosPolicy,
    },
}

/// The token that begins each window under `bos = "every"`: BOS, or EOS for tokenizers that only have that one
/// (GPT-2 and its kin were trained with it between documents).
pub fn window_start(bos_id: Option<u32>, eos_id: Option<u32>) -> Option<u32> {
    bos_id.or(eos_id)
}

/// Cuts a token stream into windows of exactly `length` ids, in order; the tail that fills no window is dropped.
///
/// | policy | `ids` must be | a window is |
/// |---|---|---|
/// | `tokenizer` | encoded with special tokens | the next `length` ids; only the first window can begin with BOS |
/// | `none` | encoded without special tokens | the next `length` ids |
/// | `every` | encoded without special tokens | BOS, then the next `length − 1` ids |
///
/// `bos_id` is what [`window_start`] returned; `limit` keeps the first windows only.
///
/// # Errors
///
/// See [`WindowError`].
pub fn windows(
    ids: &[u32],
    bos_id: Option<u32>,
    policy: BosPolicy,
    length: usize,
    limit: Option<usize>,
) -> Result<Vec<Vec<u32>>, WindowError> {
    if length < 2 {
        return Err(WindowError::Length { length });
    }
    if limit == Some(0) {
        return Err(WindowError::NoWindows);
    }
    let start = match policy {
        BosPolicy::Every => Some(bos_id.ok_or(WindowError::NoBos)?),
        BosPolicy::Tokenizer | BosPolicy::None => None,
    };
    // A doubled BOS shifts every number a little and nothing else would notice.
    if let (BosPolicy::Every | BosPolicy::None, Some(bos), Some(first)) = (policy, bos_id, ids.first())
        && bos == *first
    {
        return Err(WindowError::UnexpectedBos { id: bos, policy });
    }
    let needed = length - usize::from(start.is_some());
    if ids.len() < needed {
        return Err(WindowError::TooShort { tokens: ids.len(), needed, length, policy });
    }
    Ok(ids
        .chunks_exact(needed)
        .take(limit.unwrap_or(usize::MAX))
        .map(|text| start.into_iter().chain(text.iter().copied()).collect())
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOS: u32 = 1;

    fn text() -> impl Strategy<Value = Vec<u32>> {
        // 2.. : text without special tokens.
        proptest::collection::vec(2u32..500, 1..300)
    }

    proptest! {
        #[test]
        fn windows_partition_the_stream(ids in text(), length in 2usize..40, limit in proptest::option::of(1usize..9)) {
            for policy in [BosPolicy::Every, BosPolicy::Tokenizer, BosPolicy::None] {
                let extra = usize::from(policy == BosPolicy::Every);
                let step = length - extra;
                match windows(&ids, Some(BOS), policy, length, limit) {
                    Err(error) => {
                        prop_assert!(ids.len() < step);
                        let tokens = ids.len();
                        prop_assert_eq!(error, WindowError::TooShort { tokens, needed: step, length, policy });
                    }
                    Ok(cut) => {
                        // Count, length, then content by index arithmetic instead of chunks.
                        let whole = ids.len() / step;
                        prop_assert_eq!(cut.len(), limit.map_or(whole, |limit| limit.min(whole)));
                        for (w, window) in cut.iter().enumerate() {
                            prop_assert_eq!(window.len(), length);
                            for (i, id) in window.iter().enumerate() {
                                let bos_here = policy == BosPolicy::Every && i == 0;
                                let expected = if bos_here { BOS } else { ids[w * step + i - extra] };
                                prop_assert_eq!(*id, expected);
                            }
                        }
                    }
                }
            }
        }

        #[test]
        fn more_windows_only_append(ids in text(), length in 2usize..20, limit in 1usize..9) {
            let cut = |limit| windows(&ids, Some(BOS), BosPolicy::Every, length, limit);
            if let (Ok(few), Ok(all)) = (cut(Some(limit)), cut(None)) {
                prop_assert!(all.starts_with(&few));
            }
        }
    }

    #[test]
    fn bos_of_the_tokenizer_stands_only_at_the_stream_s_start() {
        let ids = [BOS, 10, 11, 12, 13, 14, 15];
        let cut = windows(&ids, Some(BOS), BosPolicy::Tokenizer, 3, None).unwrap();
        assert_eq!(cut, [vec![BOS, 10, 11], vec![12, 13, 14]]);
        let cut = windows(&ids[1..], Some(BOS), BosPolicy::Every, 3, None).unwrap();
        assert_eq!(cut, [vec![BOS, 10, 11], vec![BOS, 12, 13], vec![BOS, 14, 15]]);
    }

    #[test]
    fn a_doubled_bos_is_refused() {
        for policy in [BosPolicy::Every, BosPolicy::None] {
            let error = windows(&[BOS, 10, 11], Some(BOS), policy, 2, None).unwrap_err();
            assert_eq!(error, WindowError::UnexpectedBos { id: BOS, policy });
        }
    }

    #[test]
    fn eos_stands_in_where_there_is_no_bos() {
        assert_eq!(window_start(None, Some(7)), Some(7));
        assert_eq!(window_start(Some(3), Some(7)), Some(3));
        let cut = windows(&[10, 11], window_start(None, Some(7)), BosPolicy::Every, 2, None).unwrap();
        assert_eq!(cut, [vec![7, 10], vec![7, 11]]);
        let none = windows(&[10, 11], window_start(None, None), BosPolicy::Every, 2, None);
        assert_eq!(none, Err(WindowError::NoBos));
    }

    #[test]
    fn short_texts_say_how_much_there_is_and_what_would_fit() {
        let message =
            |policy, length| windows(&[10, 11, 12], Some(BOS), policy, length, None).unwrap_err().to_string();
        let every = message(BosPolicy::Every, 512);
        assert!(every.contains("has 3 tokens") && every.contains("needs 511"), "{every}");
        assert!(every.ends_with("at most 4"), "{every}");
        assert!(windows(&[10, 11, 12], Some(BOS), BosPolicy::Every, 4, None).is_ok());
        assert!(message(BosPolicy::None, 4).ends_with("at most 3"));
        assert_eq!(
            windows(&[10, 11], None, BosPolicy::None, 1, None),
            Err(WindowError::Length { length: 1 })
        );
        assert_eq!(windows(&[10, 11], None, BosPolicy::None, 2, Some(0)), Err(WindowError::NoWindows));
    }
}
