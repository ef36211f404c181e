//! Linear layers, and the groups of them that read one activation.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::product::Packed;
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
    /// W once more, as the host's products read it.
    packed: Option<Arc<Packed>>,
}

impl Linear {
    /// # Shapes
    /// `weight` is `[out, in]`, `bias` `[out]`.
    pub fn new(name: String, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self { name, weight, bias, packed: None }
    }

    /// The same layer with a copy of its weight in the order in which the host's products read it, which they otherwise make
    /// again for every activation. Outputs of several rows are exactly the same. Later changes of `weight` are not seen. Elsewhere than on the
    /// host, the layer as it is.
    pub fn packed(&self) -> Self {
        let packed = kernel::on_host(&self.weight.device()).then(|| Arc::new(Packed::of(&self.weight)));
        Self { packed, ..self.clone() }
    }

    /// # Shapes
    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        if let Some(packed) = self.packed.as_ref().filter(|_| kernel::on_host(&x.device())) {
            return packed.times(x, self.bias.as_ref());
        }
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
    /// The same linears with packed weights: see [`Linear::packed`].
    pub fn packed(&self) -> Self {
        Self { linears: self.linears.iter().map(Linear::packed).collect() }
    }

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
