//! What training makes small: how far a block's output is from what it should be.

use burn::tensor::Tensor;

/// How tokens count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The mean squared error: a token counts with the square of its size.
    #[default]
    Mse,
    /// The mean over tokens of ‖y − target‖²/‖target‖²: every token counts alike, spikes among them.
    Relative,
}

/// Smallest mean square of a token that is divided by.
const LEAST: f64 = 1e-12;

impl Loss {
    /// The loss of a block's output, one number.
    ///
    /// # Shapes
    /// `y` and `target` are `[sequences, tokens, hidden]`; `target` may be outside of autodiff.
    pub fn of(self, y: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        let squares = (y - target.clone()).square();
        match self {
            Loss::Mse => squares.mean(),
            Loss::Relative => (squares.mean_dim(2) / target.square().mean_dim(2).clamp_min(LEAST)).mean(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn a_large_token_counts_by_its_size_or_like_any_other() {
        let tensor = |values: [f32; 4]| {
            Tensor::<3>::from_data(TensorData::new(values.to_vec(), [1, 2, 2]), &Device::flex())
        };
        let (y, target) = (tensor([110.0, 0.0, 1.0, 1.5]), tensor([100.0, 0.0, 1.0, 1.0]));
        let loss = |kind: Loss| kind.of(y.clone(), target.clone()).into_scalar::<f32>();
        assert!((loss(Loss::Mse) - (100.0 + 0.25) / 4.0).abs() < 1e-5);
        assert!((loss(Loss::Relative) - (0.01 + 0.25 / 2.0) / 2.0).abs() < 1e-6);
    }
}
