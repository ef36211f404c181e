//! The feed-forward part of a block: gated, plain, beside attention, or of experts.

use burn::tensor::activation::softmax;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use crate::architecture::Activation;
use crate::decoder::{one, two};
use crate::kernel;
use crate::linear::{Group, Linear};
use crate::norm::Normalisation;
use crate::site::{Port, Routed, Site, Tap};

/// A feed-forward part, with the norm that it reads the stream through.
#[derive(Clone, Debug)]
pub enum Mlp {
    /// down(act(gate(x)) · up(x))
    Gated {
        /// Before gate and up.
        norm: Normalisation,
        /// gate and up.
        gate_up: Group,
        /// down.
        down: Group,
        /// Of the gate.
        activation: Activation,
    },
    /// The same beside attention, whose norm it shares: gate and up stand behind q, k and v in one group.
    Parallel {
        /// down.
        down: Group,
        /// Of the gate.
        activation: Activation,
    },
    /// down(act(up(x)))
    Plain {
        /// Before up.
        norm: Normalisation,
        /// up.
        up: Group,
        /// down.
        down: Group,
        /// Between the two.
        activation: Activation,
    },
    /// Experts, of which a router chooses some for every token.
    Experts {
        /// Before router and experts.
        norm: Normalisation,
        /// One linear, with a row for each expert.
        router: Group,
        /// In order.
        experts: Vec<Expert>,
        /// How many a token goes to.
        chosen: usize,
        /// Of every gate.
        activation: Activation,
    },
}

/// One of several feed-forward parts.
#[derive(Clone, Debug)]
pub struct Expert {
    /// gate and up.
    pub gate_up: Group,
    /// down.
    pub down: Group,
}

impl Mlp {
    /// What is added to the stream `x`. `beside` is what gate and up give in a parallel block, and empty in others.
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Tensor<3>,
        beside: Vec<Tensor<3>>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let (mlp_in, down_in) = (Site::block(layer, Port::MlpIn), Site::block(layer, Port::DownIn));
        match self {
            Mlp::Gated { norm, gate_up, down, activation } => {
                let [gate, up] = two(tap.behind_norm(mlp_in, x, norm, gate_up));
                one(tap.linears(down_in, kernel::gated(*activation, gate, up), down))
            }
            Mlp::Parallel { down, activation } => {
                let [gate, up] = two(beside);
                one(tap.linears(down_in, kernel::gated(*activation, gate, up), down))
            }
            Mlp::Plain { norm, up, down, activation } => {
                let up = one(tap.behind_norm(mlp_in, x, norm, up));
                one(tap.linears(down_in, kernel::activate(*activation, up), down))
            }
            Mlp::Experts { norm, router, experts, chosen, activation } => {
                let x = norm.forward(x.clone());
                let scores = one(tap.linears(mlp_in, x.clone(), router));
                route(layer, x, scores, (experts, *chosen, *activation), tap)
            }
        }
    }

    /// The norm before the feed-forward part; a parallel block has none of its own.
    pub fn norm(&self) -> Option<&Normalisation> {
        match self {
            Mlp::Gated { norm, .. } | Mlp::Plain { norm, .. } | Mlp::Experts { norm, .. } => Some(norm),
            Mlp::Parallel { .. } => None,
        }
    }

    /// As [`Mlp::norm`], to be changed in place.
    pub fn norm_mut(&mut self) -> Option<&mut Normalisation> {
        match self {
            Mlp::Gated { norm, .. } | Mlp::Plain { norm, .. } | Mlp::Experts { norm, .. } => Some(norm),
            Mlp::Parallel { .. } => None,
        }
    }

    /// Every group with its port and expert, in the order of the forward pass.
    pub(crate) fn groups(&self) -> Vec<(Port, Option<usize>, &Group)> {
        match self {
            Mlp::Gated { gate_up: read, down, .. } | Mlp::Plain { up: read, down, .. } => {
                vec![(Port::MlpIn, None, read), (Port::DownIn, None, down)]
            }
            Mlp::Parallel { down, .. } => vec![(Port::DownIn, None, down)],
            Mlp::Experts { router, experts, .. } => {
                let of = experts.iter().enumerate().flat_map(|(e, expert)| {
                    [(Port::MlpIn, Some(e), &expert.gate_up), (Port::DownIn, Some(e), &expert.down)]
                });
                [(Port::MlpIn, None, router)].into_iter().chain(of).collect()
            }
        }
    }

    /// As [`Mlp::groups`], to be changed in place.
    pub(crate) fn groups_mut(&mut self) -> Vec<(Port, Option<usize>, &mut Group)> {
        match self {
            Mlp::Gated { gate_up: read, down, .. } | Mlp::Plain { up: read, down, .. } => {
                vec![(Port::MlpIn, None, read), (Port::DownIn, None, down)]
            }
            Mlp::Parallel { down, .. } => vec![(Port::DownIn, None, down)],
            Mlp::Experts { router, experts, .. } => {
                let of = experts.iter_mut().enumerate().flat_map(|(e, expert)| {
                    let Expert { gate_up, down } = expert;
                    [(Port::MlpIn, Some(e), gate_up), (Port::DownIn, Some(e), down)]
                });
                [(Port::MlpIn, None, router)].into_iter().chain(of).collect()
            }
        }
    }

    /// What follows on the outputs of the group at `mlp_in`, before down: the gated unit or the activation. A router's
    /// outputs stay.
    pub(crate) fn between(&self, expert: Option<usize>, mut outputs: Vec<Tensor<3>>) -> Tensor<3> {
        match self {
            Mlp::Gated { activation, .. } | Mlp::Parallel { activation, .. } => {
                let [gate, up] = two(outputs);
                kernel::gated(*activation, gate, up)
            }
            Mlp::Plain { activation, .. } => kernel::activate(*activation, one(outputs)),
            Mlp::Experts { activation, .. } if expert.is_some() => {
                let [gate, up] = two(outputs);
                kernel::gated(*activation, gate, up)
            }
            Mlp::Experts { .. } => outputs.swap_remove(0),
        }
    }

    /// The linear whose output channels become the channels of `down_in`, where scaling the one by a positive number
    /// scales the other by it: up beside a gate, and up before ReLU.
    pub(crate) fn homogeneous_up(&self, expert: Option<usize>) -> Option<&Linear> {
        match (self, expert) {
            (Mlp::Gated { gate_up, .. }, None) => Some(&gate_up.linears[1]),
            (Mlp::Plain { up, activation, .. }, None) if activation.is_homogeneous() => Some(&up.linears[0]),
            (Mlp::Experts { experts, .. }, Some(e)) => {
                experts.get(e).map(|expert| &expert.gate_up.linears[1])
            }
            _ => None,
        }
    }

    /// As [`Mlp::homogeneous_up`], to be changed in place.
    pub(crate) fn homogeneous_up_mut(&mut self, expert: Option<usize>) -> Option<&mut Linear> {
        match (self, expert) {
            (Mlp::Gated { gate_up, .. }, None) => Some(&mut gate_up.linears[1]),
            (Mlp::Plain { up, activation, .. }, None) if activation.is_homogeneous() => {
                Some(&mut up.linears[0])
            }
            (Mlp::Experts { experts, .. }, Some(e)) => {
                experts.get_mut(e).map(|expert| &mut expert.gate_up.linears[1])
            }
            _ => None,
        }
    }
}

/// Every token through the experts that `scores` choose for it, one sequence and one expert at a time, so that what a tap
/// does to a sequence never depends on the others of its batch.
fn route(
    layer: usize,
    x: Tensor<3>,
    scores: Tensor<3>,
    (experts, chosen, activation): (&[Expert], usize, Activation),
    tap: &mut dyn Tap,
) -> Tensor<3> {
    let [sequences, tokens, hidden] = x.dims();
    let (device, count) = (x.device(), experts.len());
    let held = scores.to_data().try_to_vec::<f32>().expect("scores are f32 and can be read");
    let mut mask = vec![0.0f32; held.len()];
    for (scores, mask) in held.chunks(count).zip(mask.chunks_mut(count)) {
        for expert in highest(scores, chosen) {
            mask[expert] = 1.0;
        }
    }
    let went = |sequence: usize, expert: usize| -> Vec<usize> {
        let sent = |token: &usize| mask[(sequence * tokens + token) * count + expert] > 0.0;
        (0..tokens).filter(sent).collect()
    };
    let chosen = Tensor::<3>::from_data(TensorData::new(mask.clone(), [sequences, tokens, count]), &device);
    let shares = softmax(scores, 2) * chosen;
    let shares = shares.clone() / shares.sum_dim(2);

    let mut outputs = Vec::with_capacity(sequences);
    for sequence in 0..sequences {
        let rows = x.clone().narrow(0, sequence, 1).reshape([tokens, hidden]);
        let shares = shares.clone().narrow(0, sequence, 1).reshape([tokens, count]);
        let mut sum = Tensor::<2>::zeros([tokens, hidden], &device);
        for (e, expert) in experts.iter().enumerate() {
            let sent = went(sequence, e);
            if sent.is_empty() {
                continue;
            }
            let n = sent.len();
            let routed = Routed { sequence, tokens: &sent };
            let indices: Vec<i64> = sent.iter().map(|&token| token as i64).collect();
            let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [n]), &device);
            let read = rows.clone().select(0, indices.clone()).reshape([1, n, hidden]);
            let outputs = tap.routed(Site::expert(layer, e, Port::MlpIn), read, &expert.gate_up, &routed);
            let [gate, up] = two(outputs);
            let between = kernel::gated(activation, gate, up);
            let down = tap.routed(Site::expert(layer, e, Port::DownIn), between, &expert.down, &routed);
            let share = shares.clone().narrow(1, e, 1).select(0, indices.clone());
            let part = one(down).reshape([n, hidden]) * share;
            sum = sum.select_assign(0, indices, part, IndexingUpdateOp::Add);
        }
        outputs.push(sum.reshape([1, tokens, hidden]));
    }
    Tensor::cat(outputs, 0)
}

/// The indices of the `count` highest, of equals the first.
fn highest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_scores_are_chosen_and_of_equals_the_first() {
        assert_eq!(highest(&[0.5, 2.0, -1.0, 2.0], 2), [1, 3]);
        assert_eq!(highest(&[1.0, 1.0, 1.0], 2), [0, 1]);
        assert_eq!(highest(&[1.0, 3.0], 2), [1, 0]);
    }
}
