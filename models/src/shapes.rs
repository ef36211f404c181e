//! The groups of linear layers that an architecture has, before a weight is read.

use crate::architecture::{Architecture, MlpForm};
use crate::site::{Port, Site};

impl Architecture {
    /// Whether its feed-forward parts are experts, which read some of the tokens.
    pub fn has_experts(&self) -> bool {
        matches!(self.mlp.form, MlpForm::Experts { .. })
    }

    /// Every group of linears with its site and the shapes `[out, in]` of its weights, in the order of the forward pass: what
    /// [`Decoder::groups`](crate::Decoder::groups) gives once the weights are there.
    pub fn groups(&self) -> Vec<(Site, Vec<[usize; 2]>)> {
        let experts = self.experts();
        let blocks = (0..self.layers).flat_map(|layer| self.groups_of_block(layer, experts));
        blocks.chain([self.head_group()]).collect()
    }

    /// As [`Architecture::groups`], of the first block, its first expert and the head: the others are like them, however many a
    /// `config.json` says there are.
    pub fn first_groups(&self) -> Vec<(Site, Vec<[usize; 2]>)> {
        let experts = self.experts().min(1);
        let blocks = (0..self.layers.min(1)).flat_map(|layer| self.groups_of_block(layer, experts));
        blocks.chain([self.head_group()]).collect()
    }

    /// How many experts a block has.
    pub(crate) fn experts(&self) -> usize {
        match self.mlp.form {
            MlpForm::Experts { count, .. } => count,
            _ => 0,
        }
    }

    fn head_group(&self) -> (Site, Vec<[usize; 2]>) {
        (Site::HEAD, vec![[self.vocabulary, self.hidden]])
    }

    fn groups_of_block(&self, layer: usize, experts: usize) -> Vec<(Site, Vec<[usize; 2]>)> {
        let (h, f, a) = (self.hidden, self.mlp.intermediate, &self.attention);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let at = |port| Site::block(layer, port);
        let mut attn_in = vec![[q, h], [kv, h], [kv, h]];
        let mlp = match self.mlp.form {
            MlpForm::Gated(_) => {
                vec![(at(Port::MlpIn), vec![[f, h], [f, h]]), (at(Port::DownIn), vec![[h, f]])]
            }
            MlpForm::Parallel(_) => {
                attn_in.extend([[f, h], [f, h]]);
                vec![(at(Port::DownIn), vec![[h, f]])]
            }
            MlpForm::Plain(_) => vec![(at(Port::MlpIn), vec![[f, h]]), (at(Port::DownIn), vec![[h, f]])],
            MlpForm::Experts { count, .. } => {
                let of = |e| {
                    let at = |port| Site::expert(layer, e, port);
                    [(at(Port::MlpIn), vec![[f, h], [f, h]]), (at(Port::DownIn), vec![[h, f]])]
                };
                [(at(Port::MlpIn), vec![[count, h]])].into_iter().chain((0..experts).flat_map(of)).collect()
            }
        };
        [(at(Port::AttnIn), attn_in), (at(Port::OIn), vec![[h, q]])].into_iter().chain(mlp).collect()
    }
}
