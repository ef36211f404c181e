//! The blocks of a decoder that are in memory: all of them, or those of a part of it.

use std::ops::{Index, IndexMut, Range};
use std::slice;

use crate::decoder::Block;

/// Blocks by their layer, which is their place in the model and not in memory.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    first: usize,
    held: Vec<Block>,
}

impl Blocks {
    /// Neighbouring blocks, of which the first is that of layer `first`.
    pub fn new(first: usize, held: Vec<Block>) -> Self {
        Self { first, held }
    }

    /// The layers whose blocks are held.
    pub fn layers(&self) -> Range<usize> {
        self.first..self.first + self.held.len()
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The block of a layer, where it is held.
    pub fn get(&self, layer: usize) -> Option<&Block> {
        self.held.get(layer.checked_sub(self.first)?)
    }

    /// Those that are held, in order.
    pub fn iter(&self) -> slice::Iter<'_, Block> {
        self.held.iter()
    }

    /// As [`Blocks::iter`], to be changed in place.
    pub fn iter_mut(&mut self) -> slice::IterMut<'_, Block> {
        self.held.iter_mut()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.held.clear();
    }
}

impl Index<usize> for Blocks {
    type Output = Block;

    fn index(&self, layer: usize) -> &Block {
        &self.held[layer - self.first]
    }
}

impl IndexMut<usize> for Blocks {
    fn index_mut(&mut self, layer: usize) -> &mut Block {
        &mut self.held[layer - self.first]
    }
}

impl<'a> IntoIterator for &'a Blocks {
    type Item = &'a Block;
    type IntoIter = slice::Iter<'a, Block>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Blocks {
    type Item = &'a mut Block;
    type IntoIter = slice::IterMut<'a, Block>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
