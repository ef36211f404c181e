//! Orthogonal transforms of any order: Hadamard matrices where a construction gives one, else something orthogonal.
//!
//! A Hadamard matrix of order n has entries ±1 and H·Hᵀ = n·I. Here it is F ⊗ S: Sylvester's S of a power of two, and a
//! factor F of [Paley's](paley). Every constructed H is symmetric, so the transform x ↦ x·H/√n is its own inverse, and
//! costs n·(log₂ s + m) additions for F of order m and S of order s.
//!
//! With random signs the matrix is diag(±1)·H/√n: signs before the mixing, where they decide what is added to what. That
//! matrix and a random orthogonal one are not symmetric: their inverses are the transposed forms.
//!
//! | n | construction |
//! |---|---|
//! | 2^k | Sylvester |
//! | m·2^k, m − 1 a prime power (≡ 3 mod 4) | Paley I × Sylvester |
//! | m·2^k, m/2 − 1 a prime power ≡ 1 mod 4 | Paley II × Sylvester |
//! | else | [`Fallback`] |
//!
//! The smallest m is taken. Orders and factors found: methods of arXiv 2404.00456 use fixed tables; these are other
//! Hadamard matrices, as flat, and not equal bit by bit.

use std::fmt;
use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cube")]
mod cube;
mod device;
mod fast;
mod field;
mod orthogonal;
mod paley;

pub use device::OnDevice;
pub use orthogonal::orthonormalise;

use fast::{Plan, Product, Real};
use paley::Paley;

/// What stands in for a Hadamard matrix of an order for which there is no construction here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Sylvester's matrix of the largest power of two that divides the order, on every block of so many channels. For
    /// an odd order that is the identity.
    #[default]
    BlockDiagonal,
    /// A random orthogonal matrix: mixes all channels, at the cost of a dense product.
    RandomOrthogonal,
}

/// How a transform was made; goes to records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Construction {
    /// H₂ ⊗ … ⊗ H₂.
    Sylvester {
        /// Its order, a power of two.
        order: usize,
    },
    /// Paley's first construction over the field of prime^power elements, ⊗ Sylvester.
    #[serde(rename = "paley-1")]
    Paley1 {
        /// p
        prime: usize,
        /// k
        power: usize,
        /// Order of Paley's factor: p^k + 1.
        factor: usize,
        /// Order of Sylvester's.
        sylvester: usize,
    },
    /// Paley's second construction over the field of prime^power elements, ⊗ Sylvester.
    #[serde(rename = "paley-2")]
    Paley2 {
        /// p
        prime: usize,
        /// k
        power: usize,
        /// Order of Paley's factor: 2(p^k + 1).
        factor: usize,
        /// Order of Sylvester's.
        sylvester: usize,
    },
    /// Sylvester's matrix on every block of so many channels: no Hadamard matrix of the whole order is known here.
    BlockDiagonal {
        /// Channels of a block.
        block: usize,
    },
    /// A random orthogonal matrix.
    RandomOrthogonal,
    /// A matrix that the caller gave.
    Given,
}

impl Construction {
    /// Whether it is a Hadamard matrix of the whole order.
    pub fn is_hadamard(&self) -> bool {
        matches!(self, Self::Sylvester { .. } | Self::Paley1 { .. } | Self::Paley2 { .. })
    }

    /// Whether it leaves every channel where it is: one block per channel.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::BlockDiagonal { block: 1 } | Self::Sylvester { order: 1 })
    }
}

impl fmt::Display for Construction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |prime: &usize, power: &usize| match power {
            1 => format!("GF({prime})"),
            _ => format!("GF({prime}^{power})"),
        };
        match self {
            Self::Sylvester { order } => write!(f, "Sylvester {order}"),
            Self::Paley1 { prime, power, factor, sylvester } => {
                write!(f, "Paley I {factor} over {} x Sylvester {sylvester}", field(prime, power))
            }
            Self::Paley2 { prime, power, factor, sylvester } => {
                write!(f, "Paley II {factor} over {} x Sylvester {sylvester}", field(prime, power))
            }
            Self::BlockDiagonal { block } => write!(f, "blocks of Sylvester {block}"),
            Self::RandomOrthogonal => write!(f, "random orthogonal"),
            Self::Given => write!(f, "given"),
        }
    }
}

/// The largest factor that is searched: its product costs as many additions a value as it has rows, and its matrix is
/// held in memory.
pub const LARGEST_FACTOR: usize = 4096;

/// An orthogonal matrix R of order n that multiplies rows of n values fast: x ↦ x·R, and x ↦ x·Rᵀ.
#[derive(Clone)]
pub struct Hadamard {
    order: usize,
    inner: usize,
    construction: Construction,
    matrix: Matrix,
    signs: Option<Arc<Vec<i8>>>,
    wide: Arc<Plan<f64>>,
    narrow: Arc<Plan<f32>>,
}

/// R without its signs.
#[derive(Clone)]
enum Matrix {
    /// On every block of m · s channels, F ⊗ S: F's order and entries, S's order.
    Kronecker(usize, Arc<Vec<i8>>, usize),
    Dense(Arc<Vec<f64>>),
}

impl Hadamard {
    /// The transform of this order. Where no construction gives a Hadamard matrix, `fallback` stands in, and
    /// [`Hadamard::construction`] says so; `seed` decides a random one.
    ///
    /// # Panics
    /// If the order is 0.
    pub fn new(order: usize, fallback: Fallback, seed: u64) -> Self {
        assert!(order > 0, "there is no matrix of order 0");
        let twos = order.trailing_zeros();
        let odd = order >> twos;
        if odd == 1 {
            let one = Matrix::Kronecker(1, Arc::new(vec![1]), order);
            return Self::of(order, Construction::Sylvester { order }, one);
        }
        let factors = (0..=twos).map(|k| odd << k).take_while(|m| *m <= LARGEST_FACTOR);
        if let Some((m, paley)) = factors.filter_map(|m| Some((m, Paley::of_order(m)?))).next() {
            let (factor, sylvester) = (m, order / m);
            let construction = match paley {
                Paley::One { prime, power } => Construction::Paley1 { prime, power, factor, sylvester },
                Paley::Two { prime, power } => Construction::Paley2 { prime, power, factor, sylvester },
            };
            let matrix = Matrix::Kronecker(factor, Arc::new(paley.matrix()), sylvester);
            return Self::of(order, construction, matrix);
        }
        match fallback {
            Fallback::BlockDiagonal => {
                let block = 1 << twos;
                let matrix = Matrix::Kronecker(1, Arc::new(vec![1]), block);
                Self::of(order, Construction::BlockDiagonal { block }, matrix)
            }
            Fallback::RandomOrthogonal => Self::random(order, seed),
        }
    }

    /// A random orthogonal matrix of this order, drawn uniformly by `seed` (QR of a Gaussian matrix, signs fixed). Takes
    /// time with the cube of the order.
    pub fn random(order: usize, seed: u64) -> Self {
        let matrix = orthogonal::random_orthogonal(order, &mut ChaCha8Rng::seed_from_u64(seed));
        Self::of(order, Construction::RandomOrthogonal, Matrix::Dense(Arc::new(matrix)))
    }

    /// The transform by a matrix of the caller's, which must be orthogonal.
    ///
    /// # Shapes
    /// `[order, order]`, row by row.
    ///
    /// # Panics
    /// If there are not `order`² entries.
    pub fn given(order: usize, matrix: Vec<f64>) -> Self {
        assert_eq!(matrix.len(), order * order, "a matrix of order {order} has {order}² entries");
        Self::of(order, Construction::Given, Matrix::Dense(Arc::new(matrix)))
    }

    /// diag(±1)·R, the signs drawn by `seed`.
    #[must_use]
    pub fn with_random_signs(mut self, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let signs = (0..self.order).map(|_| if random.next_u32() >> 31 == 0 { 1 } else { -1 });
        self.signs = Some(Arc::new(signs.collect()));
        self.planned()
    }

    /// R ⊗ I: every entry of R acts on `inner` neighbouring values, such as the channels of a head.
    #[must_use]
    pub fn over(mut self, inner: usize) -> Self {
        self.inner = inner;
        self.planned()
    }

    fn of(order: usize, construction: Construction, matrix: Matrix) -> Self {
        let wide = Arc::new(plan(order, 1, &matrix, None));
        let narrow = Arc::new(plan(order, 1, &matrix, None));
        Self { order, inner: 1, construction, matrix, signs: None, wide, narrow }
    }

    fn planned(mut self) -> Self {
        let signs = self.signs.as_ref().map(|signs| signs.as_slice());
        self.wide = Arc::new(plan(self.order, self.inner, &self.matrix, signs));
        self.narrow = Arc::new(plan(self.order, self.inner, &self.matrix, signs));
        self
    }

    /// n
    pub fn order(&self) -> usize {
        self.order
    }

    /// Values that it transforms together: n, or n times the neighbours of [`Hadamard::over`].
    pub fn width(&self) -> usize {
        self.order * self.inner
    }

    /// How it was made.
    pub fn construction(&self) -> &Construction {
        &self.construction
    }

    /// Whether signs were drawn.
    pub fn has_random_signs(&self) -> bool {
        self.signs.is_some()
    }

    /// The factor that is not Sylvester's, symmetric, its entries 1 and −1: `[1]` where there is none but Sylvester's,
    /// nothing for a matrix that is no product of such.
    ///
    /// # Shapes
    /// `[m, m]`, row by row.
    pub fn factor(&self) -> &[i8] {
        match &self.matrix {
            Matrix::Kronecker(_, factor, _) => factor,
            Matrix::Dense(_) => &[],
        }
    }

    /// x ← x·R for every run of [`Hadamard::width`] values.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub fn apply(&self, rows: &mut [f64]) {
        fast::apply(rows, &self.wide, false);
    }

    /// x ← x·Rᵀ, which undoes [`Hadamard::apply`].
    ///
    /// # Panics
    /// As [`Hadamard::apply`].
    pub fn apply_transposed(&self, rows: &mut [f64]) {
        fast::apply(rows, &self.wide, true);
    }

    /// As [`Hadamard::apply`], in f32.
    ///
    /// # Panics
    /// As [`Hadamard::apply`].
    pub fn apply_f32(&self, rows: &mut [f32]) {
        fast::apply(rows, &self.narrow, false);
    }

    /// As [`Hadamard::apply_transposed`], in f32.
    ///
    /// # Panics
    /// As [`Hadamard::apply`].
    pub fn apply_transposed_f32(&self, rows: &mut [f32]) {
        fast::apply(rows, &self.narrow, true);
    }

    /// R itself, from its definition and not by the fast transform; without the neighbours of [`Hadamard::over`].
    ///
    /// # Shapes
    /// `[n, n]`, row by row.
    pub fn dense(&self) -> Vec<f64> {
        let n = self.order;
        let mut dense = match &self.matrix {
            Matrix::Dense(matrix) => matrix.as_ref().clone(),
            Matrix::Kronecker(m, factor, s) => {
                let block = m * s;
                let scale = 1.0 / (block as f64).sqrt();
                let entry = |i: usize, j: usize| {
                    if i / block != j / block {
                        return 0.0;
                    }
                    let (i, j) = (i % block, j % block);
                    let sylvester =
                        if ((i % s) & (j % s)).count_ones().is_multiple_of(2) { scale } else { -scale };
                    f64::from(factor[i / s * m + j / s]) * sylvester
                };
                (0..n * n).map(|at| entry(at / n, at % n)).collect()
            }
        };
        if let Some(signs) = &self.signs {
            for (row, &sign) in dense.chunks_exact_mut(n).zip(signs.iter()) {
                row.iter_mut().for_each(|x| *x *= f64::from(sign));
            }
        }
        dense
    }
}

impl fmt::Debug for Hadamard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signs = self.signs.as_ref().map(|signs| signs.as_slice());
        let mut shown = f.debug_struct("Hadamard");
        shown.field("construction", &self.construction).field("inner", &self.inner).field("signs", &signs);
        if let Matrix::Dense(matrix) = &self.matrix {
            shown.field("first_row", &&matrix[..self.order]);
        }
        shown.finish()
    }
}

fn plan<T: Real>(order: usize, inner: usize, matrix: &Matrix, signs: Option<&[i8]>) -> Plan<T> {
    let integers = |values: &[i8]| values.iter().map(|&v| T::of(f64::from(v))).collect::<Vec<T>>();
    let product = match matrix {
        Matrix::Kronecker(m, factor, sylvester) => Product::Kronecker {
            m: *m,
            factor: integers(factor),
            sylvester: *sylvester,
            inner,
            scale: T::of(1.0 / ((m * sylvester) as f64).sqrt()),
        },
        Matrix::Dense(matrix) => {
            let entry = |at: usize| T::of(matrix[at % order * order + at / order]);
            Product::Dense {
                matrix: matrix.iter().map(|&v| T::of(v)).collect(),
                transposed: (0..order * order).map(entry).collect(),
                order,
                inner,
            }
        }
    };
    let spread = |signs: &[i8]| signs.iter().flat_map(|&s| vec![T::of(f64::from(s)); inner]).collect();
    Plan { width: order * inner, signs: signs.map(spread), product }
}
