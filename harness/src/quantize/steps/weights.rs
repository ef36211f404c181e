//! `weights`: round the weights of linear layers to a grid.
//!
//! # Equation
//! Ŵ = Δ·(clamp(round(W/Δ) + z) − z), one (Δ, z) per tensor, per output channel or per group of input channels.
//!
//! | solver | how codes are chosen |
//! |---|---|
//! | `rtn` | each weight to its nearest grid value |
//! | `gptq` | channel by channel, each one's error carried to the channels that follow, so that tr(ΔW·H·ΔWᵀ) is small |
//!
//! GPTQ, with H = XᵀX + λ·mean(diag XᵀX)·1 over all tokens of the calibration set and H⁻¹ = Uᵀ·U: q_i = round(w_i),
//! e = (w_i − q_i)/U_ii, w_j ← w_j − e·U_ij for j > i. Channels whose input is always zero get weight 0 and do not count in
//! the mean. Where H + λ is not positive definite, λ rises over 0.01, 0.1 and 1, then a floor is added to the diagonal; what
//! happened is recorded. A linear for which rounding to nearest has the smaller loss is rounded to nearest, and recorded.
//!
//! Inputs come block after block. `hessian-inputs` says from which model: `fp`, the one that the transforms have made;
//! `wq`, the same with the blocks before this one rounded; `waq`, that with its activations rounded as the recipe says.
//! `sequential` says whether the linears of a block are rounded after one pass through it (`layer`), or each group after a
//! pass in which the block's earlier groups are rounded (`group`). An expert has a moment of its own, over the tokens that
//! reach it; where none does it is rounded to nearest, and recorded.
//!
//! Where a `keep` step has put channels in an order of their own (`quantscope explain channels`), groups are of neighbours in
//! that order, and GPTQ goes through it; the channels that are kept apart come last and give no error to each other.
//!
//! `clip` is a factor on the range, or a search: `mse` for the least Σ|ŵ − w|^2.4 over factors 1, 0.99, …, 0.21; `output`
//! for the least error of what the group adds to the output, over ranges clamped to ±M·(1 − i/20), i = 0…9, which leaves q
//! and k as they are.
//!
//! # Parameters
//! `bits` 2–8, or 16 for none · `granularity` tensor, channel or group(n) · `ragged` lets the last group be short ·
//! `symmetric` · `convention` of the grid · `solver` · `clip` · `sites` whose linears are rounded · `embeddings` also the
//! embedding table, a scale per row · of `gptq`: `damping` λ · `act-order` channels with the largest input first · `groups`
//! dynamic (a group's scale from its weights when its turn comes) or static · `sequential` · `asymmetric-calibration` α of
//! GPTAQ: w_j ← w_j + w_i·P_ij, P = α·triu((X − X̃)ᵀX̃·Uᵀ, 1)·U, which aims at what the unrounded model computes from its
//! own input X · of `gptq` and of clip = "output": `hessian-inputs`.
//!
//! # Reference
//! own: round to nearest; the grids' sources stand in [`crate::quantize::grid`]. GPTQ, arXiv:2210.17323, equations 2–4 and
//! algorithm 1; dead channels, activation order, static groups and the search `mse` are its released code's, and QuaRot's
//! (arXiv:2404.00456). In that code groups narrower than its block of 128 take their scale from weights that lack the
//! block's own updates; here, as the paper says, from the most current ones. The search `output` is AWQ's
//! (arXiv:2306.00978, code), over all calibration tokens. GPTAQ: arXiv:2504.02692. The ladder of dampings and the comparison
//! with rounding to nearest are ours.

use burn::tensor::{Tensor, TensorData};
use models::architecture::Architecture;
use models::{Decoder, Group, Linear, Port, Site};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::quantize::effective_bits::{Outliers, Tally};
use crate::quantize::fake_quant::Kept;
use crate::quantize::grid::{Convention, Granularity, Grid};
use crate::quantize::solve::clip::Clip;
use crate::quantize::solve::gptq::{self, Fit};
use crate::quantize::solve::layout::Layout;
use crate::quantize::steps::{Stage, keep};
use crate::quantize::{
    GroupInFlight, Method, ModelFacts, ModelInFlight, StepError, acts_at, admissible, each_group, rounding,
};

mod passes;

use passes::{DAMPING, Passes};

/// The step's keys in a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Weights {
    /// 2 to 8, or 16 for no rounding.
    pub bits: u8,
    /// Who shares a scale. Default: `channel`.
    #[serde(default = "channel")]
    pub granularity: Granularity,
    /// Whether the last group may be short. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ragged: bool,
    /// Without a zero point. Default: true.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// Default: `absmax` where symmetric, `zero-in-range` where not.
    #[serde(default)]
    pub convention: Option<Convention>,
    /// Default: `rtn`, round to nearest.
    #[serde(default)]
    pub solver: Solver,
    /// Factor on the range, 0 < clip ≤ 1, or a search. Default: 1.
    #[serde(default = "unclipped")]
    pub clip: Clip,
    /// Sites whose linears are rounded. Default: every site but `head_in`.
    #[serde(default)]
    pub sites: Option<Vec<String>>,
    /// Round the embedding table too. Default: false.
    #[serde(default)]
    pub embeddings: bool,
    /// λ of GPTQ. Default: 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Of GPTQ: channels with the largest input first. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act_order: Option<bool>,
    /// Of GPTQ with groups: when their scales are chosen. Default: `dynamic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Groups>,
    /// Which model's activations errors are weighed by. Default: `wq` with GPTQ, else `fp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hessian_inputs: Option<HessianInputs>,
    /// Of GPTQ: how much of a block is rounded between two passes. Default: `layer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequential: Option<Sequential>,
    /// α of GPTAQ, 0 < α ≤ 1. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asymmetric_calibration: Option<f64>,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Round to nearest.
    #[default]
    Rtn,
    /// GPTQ.
    Gptq,
}

/// When the scale of a group is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Groups {
    /// When its first channel's turn comes, from the weights as they are then.
    #[default]
    Dynamic,
    /// Before anything is rounded, of neighbouring channels whatever the order.
    Static,
}

/// Which model's activations errors are weighed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HessianInputs {
    /// The unrounded model's.
    Fp,
    /// With the weights of earlier blocks rounded.
    Wq,
    /// With these and activations rounded.
    Waq,
}

/// How much of a block is rounded between two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sequential {
    /// All of it.
    #[default]
    Layer,
    /// The linears that read one site.
    Group,
}

impl Weights {
    /// The same step with every default written out.
    pub fn resolved(mut self) -> Self {
        self.convention = Some(self.convention.unwrap_or(admissible::default_convention(self.symmetric)));
        self.sites = Some(admissible::resolve_linear_sites(self.sites.as_deref()));
        if self.solver == Solver::Gptq {
            self.damping = Some(self.damping.unwrap_or(DAMPING));
            self.act_order = Some(self.act_order.unwrap_or_default());
            if matches!(self.granularity, Granularity::Group(_)) {
                self.groups = Some(self.groups.unwrap_or_default());
            }
            if self.inputs() != HessianInputs::Fp {
                self.sequential = Some(self.sequential.unwrap_or_default());
            }
        }
        if self.reads_inputs() {
            self.hessian_inputs = Some(self.inputs());
        }
        self
    }

    /// The grid, or `None` at 16 bits.
    pub fn grid(&self) -> Option<Grid> {
        admissible::grid(self.bits, self.symmetric, self.convention)
    }

    /// Whether what is rounded depends on what the linears read.
    fn reads_inputs(&self) -> bool {
        self.solver == Solver::Gptq || self.clip == Clip::Output
    }

    fn inputs(&self) -> HessianInputs {
        let default = if self.solver == Solver::Gptq { HessianInputs::Wq } else { HessianInputs::Fp };
        self.hessian_inputs.unwrap_or(default)
    }

    fn check_solver(&self) -> Result<(), String> {
        let of_gptq = [
            ("damping", self.damping.is_some()),
            ("act-order", self.act_order.is_some()),
            ("groups", self.groups.is_some()),
            ("sequential", self.sequential.is_some()),
            ("asymmetric-calibration", self.asymmetric_calibration.is_some()),
        ];
        if self.solver != Solver::Gptq
            && let Some((key, _)) = of_gptq.into_iter().find(|(_, given)| *given)
        {
            return Err(format!("`{key}` belongs to solver = \"gptq\""));
        }
        if !self.reads_inputs() && self.hessian_inputs.is_some() {
            return Err("`hessian-inputs` belongs to solver = \"gptq\" or clip = \"output\"".into());
        }
        let grouped = matches!(self.granularity, Granularity::Group(_));
        if let Some(d) = self.damping.filter(|d| !(0.0..=1.0).contains(d)) {
            return Err(format!("`damping` must be between 0 and 1, not {d}"));
        }
        if self.groups.is_some() && !grouped {
            return Err(format!("`groups` needs granularity = \"group(n)\", not {}", self.granularity));
        }
        if self.ragged && !grouped {
            return Err(format!("`ragged` needs granularity = \"group(n)\", not {}", self.granularity));
        }
        if self.sequential.is_some() && self.inputs() == HessianInputs::Fp {
            return Err(
                "`sequential` means nothing with hessian-inputs = \"fp\": no rounded weight is read".into()
            );
        }
        if let Some(alpha) = self.asymmetric_calibration {
            if !(alpha > 0.0 && alpha <= 1.0) {
                return Err(format!("`asymmetric-calibration` must be above 0 and at most 1, not {alpha}"));
            }
            if self.inputs() == HessianInputs::Fp {
                return Err("`asymmetric-calibration` compares rounded inputs with the original's: \
                     hessian-inputs = \"wq\" or \"waq\""
                    .into());
            }
        }
        match self.clip {
            Clip::Factor(clip) => admissible::clip(clip),
            Clip::Output if self.granularity == Granularity::Tensor => {
                Err("`clip` output needs a scale per channel or group".into())
            }
            Clip::Mse | Clip::Output => Ok(()),
        }
    }
}

impl Method for Weights {
    fn stage(&self) -> Stage {
        Stage::Quantize
    }

    fn check(&self) -> Result<(), String> {
        admissible::bits(self.bits)?;
        admissible::granularity(self.granularity, "tensor, channel or group(n)", |g| {
            g != Granularity::Token
        })?;
        admissible::convention(self.convention, self.symmetric)?;
        admissible::format(self.convention, self.bits, self.granularity)?;
        self.check_solver()?;
        admissible::linear_sites(self.sites.as_deref())
    }

    fn claims(&self) -> Vec<String> {
        let sites = admissible::resolve_linear_sites(self.sites.as_deref());
        let weights = sites.iter().map(|site| format!("the weights that read `{site}`"));
        weights.chain(self.embeddings.then(|| "the embedding table".to_string())).collect()
    }

    fn tries_on_a_copy(&self) -> bool {
        self.asymmetric_calibration.is_some()
    }

    fn needs_calibration(&self) -> bool {
        self.bits != 16 && self.reads_inputs()
    }

    fn rounds_weights(&self) -> bool {
        true
    }

    fn needs_whole_model(&self) -> Option<&'static str> {
        None
    }

    fn check_model(&self, facts: &ModelFacts) -> Result<(), StepError> {
        if self.bits == 16 {
            return Ok(());
        }
        self.check_sites(facts.architecture)?;
        self.check_table(facts.architecture.hidden)?;
        if keep::may_except(facts.earlier, &[Kept::ActivationAndWeights]) {
            return Ok(());
        }
        let groups = facts.architecture.first_groups().into_iter();
        groups.filter(|(site, _)| self.rounds(site.port, None)).try_for_each(|(site, shapes)| {
            self.check_group(site, keep::left(facts.earlier, site, shapes[0][1]))
        })
    }

    fn store(&self, tally: &mut Tally) {
        let Some(grid) = self.grid() else { return };
        if self.embeddings {
            tally.embedding.set(grid, self.granularity, Outliers::default());
        }
        let acts = |port| acts_at(self.sites.as_deref(), port);
        for group in tally.groups.iter_mut().filter(|group| acts(group.site.port)) {
            if group.kept != Some(Kept::ActivationAndWeights) {
                let outliers = group.outliers.unwrap_or_default();
                group.linears.iter_mut().for_each(|linear| linear.set(grid, self.granularity, outliers));
            }
        }
    }

    fn act(&self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let Some(grid) = self.grid() else { return each_group(model, |flight| self.apply(flight)) };
        self.check_sites(&model.decoder.architecture)?;
        if !self.reads_inputs() {
            self.round_embeddings(model.decoder, grid)?;
            return each_group(model, |flight| self.apply(flight));
        }
        Passes::new(self, grid, model)?.run(model)
    }

    fn apply(&self, flight: &mut GroupInFlight) -> Result<bool, StepError> {
        let Some(grid) = self.grid() else { return Ok(false) };
        if flight.rounded || !self.rounds(flight.site.port, flight.kept) {
            return Ok(false);
        }
        let fit = self.fit(grid);
        let layout = flight.layout.as_deref();
        self.check_layout(flight.site, flight.group, layout)?;
        for linear in &mut flight.group.linears {
            let [_, channels] = linear.weight.dims();
            change(linear, |values| match fit.clip {
                // In place: the plain case needs no copies.
                Clip::Factor(clip) if layout.is_none() => {
                    rounding::round_rows(values, channels, grid, self.granularity, clip);
                }
                _ => values.copy_from_slice(&gptq::nearest(values, channels, &fit, None, layout)),
            });
        }
        Ok(true)
    }
}

impl Weights {
    /// Whether it rounds what reads a port.
    pub(crate) fn rounds(&self, port: Port, kept: Option<Kept>) -> bool {
        acts_at(self.sites.as_deref(), port) && kept != Some(Kept::ActivationAndWeights)
    }

    fn fit(&self, grid: Grid) -> Fit {
        Fit { grid, granularity: self.granularity, clip: self.clip }
    }

    /// Refuses a model that has none of its sites, unless the embedding table is left.
    fn check_sites(&self, architecture: &Architecture) -> Result<(), StepError> {
        match self.embeddings {
            true => Ok(()),
            false => admissible::sites_of_model(self.sites.as_deref(), architecture),
        }
    }

    /// Refuses an embedding table of so many channels whose rows it cannot round.
    fn check_table(&self, channels: usize) -> Result<(), StepError> {
        match self.embeddings {
            true => gptq::check_width("embeddings", self.granularity, self.ragged, channels),
            false => Ok(()),
        }
    }

    /// Refuses a group that it cannot round, of whose channels it makes groups of so many, where that is known.
    fn check_group(&self, site: Site, channels: Option<usize>) -> Result<(), StepError> {
        if site.expert.is_some() && self.asymmetric_calibration.is_some() {
            return Err(StepError::Experts);
        }
        let check = |channels| gptq::check_width(&site.to_string(), self.granularity, self.ragged, channels);
        channels.map_or(Ok(()), check)
    }

    /// As [`Weights::check_group`], of a group in whose channels an order is known.
    fn check_layout(&self, site: Site, group: &Group, layout: Option<&Layout>) -> Result<(), StepError> {
        let channels = group.linears.first().map(|linear| linear.weight.dims()[1]);
        self.check_group(site, layout.map(Layout::rest).or(channels))
    }

    /// Rounds the embedding table, where the recipe says so and this part has it.
    pub(crate) fn round_embeddings(&self, decoder: &mut Decoder, grid: Grid) -> Result<(), StepError> {
        if self.embeddings && decoder.has_table() {
            // A tied head keeps the table in floating point: it holds its own reference, and rounding copies.
            let [_, channels] = decoder.embedding.dims();
            self.check_table(channels)?;
            // A search by output error has nothing to go by here: a row of the table is not summed over.
            let clip = if self.clip == Clip::Output { Clip::Factor(1.0) } else { self.clip };
            let fit = Fit { clip, ..self.fit(grid) };
            let table = values(&decoder.embedding);
            let rounded = gptq::nearest(&table, channels, &fit, None, None);
            decoder.embedding = like(rounded, &decoder.embedding);
        }
        Ok(())
    }
}

/// Changes a linear's weight on the host, in place where nothing else refers to it.
fn change(linear: &mut Linear, change: impl FnOnce(&mut [f32])) {
    let device = linear.weight.device();
    let weight = std::mem::replace(&mut linear.weight, Tensor::zeros([1, 1], &device));
    linear.weight = models::kernel::change_in_place(weight, change);
}

fn values(weight: &Tensor<2>) -> Vec<f32> {
    weight.to_data().try_to_vec().expect("weights are f32 and can be read")
}

fn like(values: Vec<f32>, weight: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, weight.dims()), &weight.device())
}

fn channel() -> Granularity {
    Granularity::Channel
}
fn yes() -> bool {
    true
}
fn is_false(value: &bool) -> bool {
    !value
}
fn unclipped() -> Clip {
    Clip::Factor(1.0)
}
