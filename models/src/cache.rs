//! Keys and values of tokens that stand before a sequence: what lets a forward pass begin behind tokens that another
//! one has already read.

use std::ops::Range;

use burn::tensor::Tensor;

/// Tokens that a buffer has room for at least.
const LEAST_ROOM: usize = 64;

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
    fn followed_by(&self, own: &KeyValues) -> KeyValues {
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

/// Keys and values of sequences that grow: every block's stand in buffers with room for more, so that a token that is added
/// costs its own size and not that of what is there. See [`Decoder::append`](crate::Decoder::append).
#[derive(Debug, Default)]
pub struct Growing {
    /// `[sequences, kv_heads, room, head_dim]`, of which the first [`Growing::tokens`] tokens are there.
    blocks: Vec<KeyValues>,
    tokens: usize,
}

impl Growing {
    /// Begins behind a past, of which the values are copied when tokens come.
    pub fn behind(past: Option<&Cache>) -> Self {
        Self {
            blocks: past.map_or_else(Vec::new, |past| past.blocks.clone()),
            tokens: past.map_or(0, Cache::tokens),
        }
    }

    /// How many tokens of each sequence are there: the position of the next one.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The block of this number, of `all`. Tokens are appended to every block, then [`Growing::grown`].
    ///
    /// # Panics
    /// If tokens are there, and of another number of blocks.
    pub(crate) fn block(&mut self, number: usize, all: usize) -> Buffers<'_> {
        let held = self.blocks.len();
        assert!(self.tokens == 0 || held == all, "a cache of {held} blocks does not fit a decoder of {all}");
        Buffers { blocks: &mut self.blocks, number, tokens: self.tokens }
    }

    /// Every block has so many tokens more.
    pub(crate) fn grown(&mut self, tokens: usize) {
        self.tokens += tokens;
    }
}

/// One block of a [`Growing`].
pub(crate) struct Buffers<'a> {
    blocks: &'a mut Vec<KeyValues>,
    number: usize,
    tokens: usize,
}

impl Buffers<'_> {
    /// Puts tokens behind what is there: keys and values of all.
    fn append(self, own: KeyValues) -> KeyValues {
        let all = self.tokens + own.keys.dims()[2];
        match self.blocks.get_mut(self.number) {
            None => self.blocks.push(own),
            Some(buffers) => {
                // Out of their place while they are written: beside a second handle, writing would be a copy.
                let KeyValues { keys, values } = std::mem::replace(buffers, own.clone());
                buffers.keys = appended(keys, self.tokens, own.keys);
                buffers.values = appended(values, self.tokens, own.values);
            }
        }
        let KeyValues { keys, values } = &self.blocks[self.number];
        KeyValues { keys: keys.clone().narrow(2, 0, all), values: values.clone().narrow(2, 0, all) }
    }
}

/// Tokens behind the first `held` of a buffer; of one with more room where they do not fit.
fn appended(buffer: Tensor<4>, held: usize, own: Tensor<4>) -> Tensor<4> {
    let [sequences, heads, new, head_dim] = own.dims();
    let places = |tokens: Range<usize>| [0..sequences, 0..heads, tokens, 0..head_dim];
    let fits = buffer.dims()[0] == sequences && held + new <= buffer.dims()[2];
    let buffer = match fits {
        true => buffer,
        false => {
            let room = (held + new).next_power_of_two().max(LEAST_ROOM);
            let wide = Tensor::zeros([sequences, heads, room, head_dim], &own.device());
            wide.slice_assign(places(0..held), expand(&buffer.narrow(2, 0, held), sequences))
        }
    };
    buffer.slice_assign(places(held..held + new), own)
}

/// What stands before the tokens of a pass in one block.
pub(crate) enum Past<'a> {
    /// Nothing.
    Nothing,
    /// Tokens that stay as they are.
    Held(&'a KeyValues),
    /// Tokens to which those of the pass are added.
    Growing(Buffers<'a>),
}

impl<'a> Past<'a> {
    /// Nothing, or what is held.
    pub(crate) fn of(held: Option<&'a KeyValues>) -> Self {
        held.map_or(Self::Nothing, Self::Held)
    }

    /// How many.
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Held(held) => held.keys.dims()[2],
            Self::Growing(buffers) => buffers.tokens,
        }
    }

    /// Those that stay as they are.
    pub(crate) fn held(&self) -> Option<&'a KeyValues> {
        match self {
            Self::Held(held) => Some(held),
            Self::Nothing | Self::Growing(_) => None,
        }
    }

    /// These tokens, and those of the pass behind them.
    pub(crate) fn followed_by(self, own: KeyValues) -> KeyValues {
        match self {
            Self::Nothing => own,
            Self::Held(held) => held.followed_by(&own),
            Self::Growing(buffers) => buffers.append(own),
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
