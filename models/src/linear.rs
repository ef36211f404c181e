//! Linear layers, and the groups of them that read one activation.

use burn::tensor::Tensor;

use crate::{kernel, product};

/// y = x·Wᵀ + b
#[derive(Clone, Debug)]
pub struct Linear {
    /// Name in the checkpoint, without `.weight`.
    pub name: String,
    /// `[out, in]`
    pub weight: Tensor<2>,
    /// `[out]`
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    /// # Shapes
    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        if kernel::on_host(&x.device()) && kernel::on_host(&self.weight.device()) {
            return product::times_transposed(x, &self.weight, self.bias.as_ref());
        }
        let y = product::linear(x, self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

/// The linear layers that read one site.
#[derive(Clone, Debug)]
pub struct Group {
    /// In the order of the site's consumers: q, k, v; gate, up.
    pub linears: Vec<Linear>,
}

impl Group {
    /// # Shapes
    /// `[sequences, tokens, in]` to one `[sequences, tokens, out]` per linear.
    pub fn forward(&self, x: Tensor<3>) -> Vec<Tensor<3>> {
        let [sequences, tokens, channels] = x.dims();
        let rows = x.reshape([sequences * tokens, channels]);
        self.linears
            .iter()
            .map(|linear| {
                let y = linear.forward(rows.clone());
                let out = y.dims()[1];
                y.reshape([sequences, tokens, out])
            })
            .collect()
    }
}
