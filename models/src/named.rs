//! From named tensors to what a decoder is made of: tables, blocks, norms, the head.

use burn::tensor::Tensor;

use crate::architecture::{Architecture, AttentionBias, Bias, MlpForm, Positions, PostNorms, QkNorm, Table};
use crate::attention::{HeadNorm, QkNorms};
use crate::checkpoint::CheckpointError;
use crate::decoder::{Block, Weights};
use crate::families::WeightNames;
use crate::linear::{Group, Linear};
use crate::mlp::{Expert, Mlp};
use crate::norm::Normalisation;

/// The embedding table, `[vocabulary, hidden]`, and that of learned positions, `[context + offset, hidden]`.
pub(crate) fn tables(
    a: &Architecture,
    names: &WeightNames,
    weights: &mut Weights,
) -> Result<(Tensor<2>, Option<Tensor<2>>), CheckpointError> {
    let h = a.hidden;
    let embedding = weights(names.embedding, &[a.vocabulary, h])?.reshape([a.vocabulary, h]);
    let positions = match a.positions {
        Positions::Rotary(_) => None,
        Positions::Learned(Table { offset }) => {
            let rows = a.context + offset;
            Some(weights(names.positions, &[rows, h])?.reshape([rows, h]))
        }
    };
    Ok((embedding, positions))
}

/// The output head, of the table where it is tied.
pub(crate) fn head(
    a: &Architecture,
    names: &WeightNames,
    tied: Option<Tensor<2>>,
    weights: &mut Weights,
) -> Result<Group, CheckpointError> {
    let shape = [a.vocabulary, a.hidden];
    let weight = match tied {
        Some(table) => table,
        None => weights(&format!("{}.weight", names.head), &shape)?.reshape(shape),
    };
    Ok(Group { linears: vec![Linear::new(names.head.into(), weight, None)] })
}

/// Block `layer` of a checkpoint.
pub(crate) fn block(
    a: &Architecture,
    names: &WeightNames,
    layer: usize,
    weights: &mut Weights,
) -> Result<Block, CheckpointError> {
    let (h, f, d) = (a.hidden, a.mlp.intermediate, a.attention.head_dim);
    let (q, kv) = (a.attention.heads * d, a.attention.kv_heads * d);
    let qkv_bias = a.attention.bias != AttentionBias::Absent;
    let o_bias = a.attention.bias == AttentionBias::All;
    let mlp_bias = a.mlp.bias == Bias::Present;
    let named = |part: &str| names.block(layer, part);
    let mut linear = |name: String, out: usize, input: usize, bias: bool| {
        let weight = weights(&format!("{name}.weight"), &[out, input])?.reshape([out, input]);
        let bias = if bias { Some(weights(&format!("{name}.bias"), &[out])?) } else { None };
        Ok::<_, CheckpointError>(Linear::new(name, weight, bias))
    };
    let mut qkv = Group {
        linears: vec![
            linear(named(names.q), q, h, qkv_bias)?,
            linear(named(names.k), kv, h, qkv_bias)?,
            linear(named(names.v), kv, h, qkv_bias)?,
        ],
    };
    let o = Group { linears: vec![linear(named(names.o), h, q, o_bias)?] };
    let mut gated = |[gate, up, down]: [String; 3]| {
        let gate_up = Group { linears: vec![linear(gate, f, h, mlp_bias)?, linear(up, f, h, mlp_bias)?] };
        let down = Group { linears: vec![linear(down, h, f, mlp_bias)?] };
        Ok::<_, CheckpointError>(Expert { gate_up, down })
    };
    let whole = || [names.gate, names.up, names.down].map(named);
    let mlp = match a.mlp.form {
        MlpForm::Gated(activation) => {
            let Expert { gate_up, down } = gated(whole())?;
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Gated { norm, gate_up, down, activation }
        }
        MlpForm::Parallel(activation) => {
            let Expert { gate_up, down } = gated(whole())?;
            qkv.linears.extend(gate_up.linears);
            Mlp::Parallel { down, activation }
        }
        MlpForm::Plain(activation) => {
            let up = Group { linears: vec![linear(named(names.up), f, h, mlp_bias)?] };
            let down = Group { linears: vec![linear(named(names.down), h, f, mlp_bias)?] };
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Plain { norm, up, down, activation }
        }
        MlpForm::Experts { count, chosen, activation } => {
            let experts = (0..count).map(|expert| gated(names.expert(layer, expert)));
            let experts = experts.collect::<Result<Vec<_>, _>>()?;
            let router = Group { linears: vec![linear(named(names.router), count, h, false)?] };
            let norm = normalisation(a, &named(names.mlp_norm), weights)?;
            Mlp::Experts { norm, router, experts, chosen, activation }
        }
    };
    let attn_norm = normalisation(a, &named(names.attn_norm), weights)?;
    let post_norms = match a.post_norms {
        PostNorms::Absent => None,
        PostNorms::Present => Some([
            normalisation(a, &named(names.attn_post_norm), weights)?,
            normalisation(a, &named(names.mlp_post_norm), weights)?,
        ]),
    };
    let mut head_norm = |name: &str, heads: usize| {
        let name = format!("{}.weight", named(name));
        Ok::<_, CheckpointError>(match a.attention.qk_norm {
            QkNorm::Absent => None,
            QkNorm::Shared => Some(HeadNorm::Shared(Normalisation {
                kind: a.norm,
                weight: weights(&name, &[d])?,
                bias: None,
            })),
            QkNorm::PerHead => {
                let weight = weights(&name, &[heads, d])?;
                let ones = Tensor::ones([d], &weight.device());
                let plain = Normalisation { kind: a.norm, weight: ones, bias: None };
                Some(HeadNorm::PerHead { plain, weight })
            }
        })
    };
    let norms = (head_norm(names.q_norm, a.attention.heads)?, head_norm(names.k_norm, a.attention.kv_heads)?);
    let qk_norms = match norms {
        (Some(q), Some(k)) => Some(QkNorms { q, k }),
        _ => None,
    };
    Ok(Block { attn_norm, qkv, qk_norms, o, mlp, post_norms })
}

/// The norm called `name`, of the architecture's kind.
pub(crate) fn normalisation(
    architecture: &Architecture,
    name: &str,
    weights: &mut Weights,
) -> Result<Normalisation, CheckpointError> {
    let channels = [architecture.hidden];
    let weight = weights(&format!("{name}.weight"), &channels)?;
    let bias = match architecture.norm.has_bias() {
        true => Some(weights(&format!("{name}.bias"), &channels)?),
        false => None,
    };
    Ok(Normalisation { kind: architecture.norm, weight, bias })
}
