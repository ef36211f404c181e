//! Low-rank branches: a small product beside a rounded linear, which gives back some of what rounding took.
//!
//! A branch reads the activation before it is rounded and is never rounded itself: x·Aᵀ·Bᵀ in floating point. What it
//! costs is [`LowRank::parameters`], to be counted with the bits of the model.

use burn::tensor::Tensor;

/// The branch of one linear.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A, `[rank, in]`
    pub down: Tensor<2>,
    /// B, `[out, rank]`; every factor on the branch is in it.
    pub up: Tensor<2>,
}

impl LowRank {
    /// Channels between the two factors.
    pub fn rank(&self) -> usize {
        self.down.dims()[0]
    }

    /// Values that the branch holds.
    pub fn parameters(&self) -> usize {
        let ([rank, input], [out, _]) = (self.down.dims(), self.up.dims());
        rank * (input + out)
    }

    /// What is added to the linear's output.
    ///
    /// # Shapes
    /// `[sequences, tokens, in]` to `[sequences, tokens, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [sequences, tokens, channels] = x.dims();
        let rows = x.reshape([sequences * tokens, channels]);
        let y = rows.matmul(self.down.clone().transpose()).matmul(self.up.clone().transpose());
        let out = y.dims()[1];
        y.reshape([sequences, tokens, out])
    }
}
