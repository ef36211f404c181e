//! Keys and values of tokens that stand before a sequence: what lets a forward pass begin behind tokens that another
//! one has already read.

use burn::tensor::Tensor;

/// What one block's attention keeps of the tokens it has read.
///
/// Keys are after rotary embedding, each turned by its token's position; both are as they left the tap, so whoever
/// changed them on the way will meet them changed.
#[derive(Clone, Debug)]
pub struct KeyValues {
    /// `[sequences, kv_heads, tokens, head_dim]`, after rotary embedding
    pub keys: Tensor<4>,
    /// `[sequences, kv_heads, tokens, head_dim]`
    pub values: Tensor<4>,
}

impl KeyValues {
    /// These tokens, and `own` behind them. One sequence is shared by all of `own`'s.
    ///
    /// # Panics
    /// If this holds neither one sequence nor as many as `own`.
    pub(crate) fn followed_by(&self, own: &KeyValues) -> KeyValues {
        let sequences = own.keys.dims()[0];
        KeyValues {
            keys: Tensor::cat(vec![expand(&self.keys, sequences), own.keys.clone()], 2),
            values: Tensor::cat(vec![expand(&self.values, sequences), own.values.clone()], 2),
        }
    }
}

fn expand(x: &Tensor<4>, sequences: usize) -> Tensor<4> {
    let [held, heads, tokens, head_dim] = x.dims();
    if held == sequences {
        return x.clone();
    }
    assert_eq!(held, 1, "a cache of {held} sequences cannot stand before {sequences}");
    x.clone().expand([sequences, heads, tokens, head_dim])
}

/// Keys and values of the same tokens in every block, from position 0 on. Cloning it copies no values.
#[derive(Clone, Debug)]
pub struct Cache {
    /// Layer of the first block: other than 0 in a [part](crate::parts) of a decoder.
    first: usize,
    blocks: Vec<KeyValues>,
}

impl Cache {
    /// A cache from its blocks, in order.
    ///
    /// # Panics
    /// If there is no block, or the blocks differ in sequences or tokens, or keys from values.
    pub fn new(blocks: Vec<KeyValues>) -> Self {
        let first = blocks.first().expect("a decoder has blocks").keys.dims();
        for (layer, block) in blocks.iter().enumerate() {
            for dims in [block.keys.dims(), block.values.dims()] {
                assert_eq!([dims[0], dims[2]], [first[0], first[2]], "block {layer} holds other tokens");
            }
        }
        Self { first: 0, blocks }
    }

    /// Of the blocks of a part, from layer `first` on; perhaps of none.
    pub(crate) fn part(first: usize, blocks: Vec<KeyValues>) -> Self {
        Self { first, blocks }
    }

    /// The part of a layer.
    ///
    /// # Panics
    /// If it is not held.
    pub fn block(&self, layer: usize) -> &KeyValues {
        &self.blocks[layer - self.first]
    }

    /// As [`Cache::block`], to be changed in place; the shapes must stay.
    ///
    /// # Panics
    /// As [`Cache::block`].
    pub fn block_mut(&mut self, layer: usize) -> &mut KeyValues {
        &mut self.blocks[layer - self.first]
    }

    /// How many tokens it holds of each sequence: the position of the next one.
    pub fn tokens(&self) -> usize {
        self.blocks[0].keys.dims()[2]
    }

    /// How many sequences it holds; one can stand before any number.
    pub fn sequences(&self) -> usize {
        self.blocks[0].keys.dims()[0]
    }

    /// Every block's part, in order.
    pub fn blocks(&self) -> &[KeyValues] {
        &self.blocks
    }

    /// As [`Cache::blocks`], to be changed in place; the shapes must stay.
    pub fn blocks_mut(&mut self) -> &mut [KeyValues] {
        &mut self.blocks
    }

    /// Its first `tokens` tokens only.
    ///
    /// # Panics
    /// If it holds fewer, or `tokens` is 0: nothing before a sequence is no cache.
    pub fn truncated(&self, tokens: usize) -> Self {
        assert!(
            (1..=self.tokens()).contains(&tokens),
            "1 to {} tokens can be kept, not {tokens}",
            self.tokens()
        );
        let first = |x: &Tensor<4>| x.clone().narrow(2, 0, tokens);
        let blocks = self.blocks.iter();
        Self {
            first: self.first,
            blocks: blocks
                .map(|block| KeyValues { keys: first(&block.keys), values: first(&block.values) })
                .collect(),
        }
    }
}

/// Tokens that stand before every sequence a decoder reads, and what it keeps of them.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// At least one.
    pub tokens: Vec<u32>,
    /// Of one sequence, made without a tap.
    pub cache: Cache,
    /// `[1, 1, hidden]`: the hidden state after the final norm at its last token, from which the first token behind
    /// the prefix is predicted.
    pub last: Tensor<3>,
}
