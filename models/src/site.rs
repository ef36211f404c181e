//! Sites, and the tap: the one place where what a model computes can be seen or changed.
//!
//! Observing, calibrating, fake-quantizing and integer execution are implementations of [`Tap`] handed to the one
//! forward pass; the model itself knows none of them.

use std::fmt;

use burn::tensor::Tensor;

use crate::architecture::Pairs;
use crate::kernel;
use crate::linear::Group;
use crate::norm::Normalisation;

/// A named place of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Input of q, k and v; in a parallel block of gate and up too.
    AttnIn,
    /// Keys before rotary embedding.
    KPre,
    /// Queries after rotary embedding.
    Q,
    /// Keys after rotary embedding.
    K,
    /// Values.
    V,
    /// Input of o.
    OIn,
    /// Input of gate and up, of a router, or of an expert's gate and up.
    MlpIn,
    /// Input of down.
    DownIn,
    /// Input of the output head.
    HeadIn,
}

impl Port {
    /// Every port, in the order of the forward pass.
    pub const ALL: [Port; 9] = [
        Port::AttnIn,
        Port::KPre,
        Port::Q,
        Port::K,
        Port::V,
        Port::OIn,
        Port::MlpIn,
        Port::DownIn,
        Port::HeadIn,
    ];

    /// The word used in recipes, records and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Port::AttnIn => "attn_in",
            Port::KPre => "k_pre",
            Port::Q => "q",
            Port::K => "k",
            Port::V => "v",
            Port::OIn => "o_in",
            Port::MlpIn => "mlp_in",
            Port::DownIn => "down_in",
            Port::HeadIn => "head_in",
        }
    }

    /// The port with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|port| port.as_str() == name)
    }

    /// Whether linear layers read this port.
    pub fn has_linears(self) -> bool {
        matches!(self, Port::AttnIn | Port::OIn | Port::MlpIn | Port::DownIn | Port::HeadIn)
    }
}

/// A port of a block, of an expert in a block, or of the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Zero-based block; `None` for `head_in`.
    pub layer: Option<usize>,
    /// The place.
    pub port: Port,
    /// Zero-based expert, where the place is an expert's.
    pub expert: Option<usize>,
}

impl Site {
    /// A place of block `layer`.
    pub fn block(layer: usize, port: Port) -> Self {
        Self { layer: Some(layer), port, expert: None }
    }

    /// A place of an expert of block `layer`: `mlp_in`, the tokens that were sent to it, or `down_in`.
    pub fn expert(layer: usize, expert: usize, port: Port) -> Self {
        Self { layer: Some(layer), port, expert: Some(expert) }
    }

    /// Input of the output head.
    pub const HEAD: Site = Site { layer: None, port: Port::HeadIn, expert: None };
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.as_str();
        match (self.layer, self.expert) {
            (Some(layer), Some(expert)) => write!(f, "layers.{layer}.experts.{expert}.{port}"),
            (Some(layer), None) => write!(f, "layers.{layer}.{port}"),
            (None, _) => f.write_str(port),
        }
    }
}

/// The tokens of one sequence that a router has sent to one expert.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Indices of the tokens in the sequence, at least one, ascending.
    pub tokens: &'a [usize],
}

/// What happens at a site. Every method's default is what the checkpoint computes.
pub trait Tap {
    /// A forward pass begins: its first token stands at position `past`, behind so many tokens that an earlier pass (a
    /// prefix's, a cache's) has read. A tap that hands over to another one hands this over, too.
    fn begin(&mut self, past: usize) {
        let _ = past;
    }

    /// At a site that `group` reads.
    ///
    /// # Shapes
    /// `x` is `[sequences, tokens, channels]`; the result holds one `[sequences, tokens, out]` per linear of the group,
    /// in its order.
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        let _ = site;
        group.forward(x)
    }

    /// At a site that `group` reads behind a norm. By default the norm, then as [`Tap::linears`]: a tap that does both at once
    /// says so here.
    ///
    /// # Shapes
    /// `x` is `[sequences, tokens, hidden]`; the result as [`Tap::linears`] says.
    fn behind_norm(
        &mut self,
        site: Site,
        x: &Tensor<3>,
        norm: &Normalisation,
        group: &Group,
    ) -> Vec<Tensor<3>> {
        self.linears(site, norm.forward(x.clone()), group)
    }

    /// At a site of an expert, which sees some tokens of one sequence at a time; an expert without tokens is not called.
    /// By default as [`Tap::linears`], to which these tokens are a sequence.
    ///
    /// # Shapes
    /// `x` is `[1, routed tokens, channels]`; the result as [`Tap::linears`] says.
    fn routed(&mut self, site: Site, x: Tensor<3>, group: &Group, routed: &Routed) -> Vec<Tensor<3>> {
        let _ = routed;
        self.linears(site, x, group)
    }

    /// At a site without linears (`q`, `k`, `k_pre`, `v`).
    ///
    /// # Shapes
    /// `[sequences, heads, tokens, head_dim]` in and out.
    fn tensor(&mut self, site: Site, x: Tensor<4>) -> Tensor<4> {
        let _ = site;
        x
    }

    /// At `q` or `k`, in front of the rotary embedding. By default the embedding, then as [`Tap::tensor`]: a tap that does both
    /// at once says so here.
    ///
    /// # Shapes
    /// `x` and the result are `[sequences, heads, tokens, head_dim]`, the angles' cosines and sines `[tokens, head_dim / 2]`.
    fn turned(&mut self, site: Site, x: Tensor<4>, pairs: Pairs, [cos, sin]: [&Tensor<2>; 2]) -> Tensor<4> {
        self.tensor(site, kernel::rotate(x, pairs, cos, sin))
    }

    /// The residual stream after block `layer`, to be seen only: the hidden states of arXiv 2405.14428, figure 1.
    ///
    /// # Shapes
    /// `x` is `[sequences, tokens, hidden]`.
    fn residual(&mut self, layer: usize, x: &Tensor<3>) {
        let _ = (layer, x);
    }
}

/// The model as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Off;

impl Tap for Off {}
