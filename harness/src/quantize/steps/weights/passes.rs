//! The passes of a `weights` step that reads inputs: block after block, moments first, then the block's weights.

use std::collections::HashMap;
use std::sync::Arc;

use models::{Decoder, Group, Port, Site};
use serde_json::{Map, Value, json};

use super::{Groups, HessianInputs, Sequential, Solver, Weights, change};
use crate::calibrate::moment::SecondMoment;
use crate::quantize::fake_quant::FakeQuant;
use crate::quantize::grid::Grid;
use crate::quantize::solve::blockwise::{Seen, Stream};
use crate::quantize::solve::clip::Clip;
use crate::quantize::solve::gptq::{self, Drift, Fit, Prepared, Settings};
use crate::quantize::solve::layout::Layout;
use crate::quantize::{ModelInFlight, StepError};

/// λ when the recipe does not say.
pub(super) const DAMPING: f64 = 0.01;

/// The streams of a step that reads inputs, as they go from part to part.
struct Streams {
    /// Of the present model.
    stream: Stream,
    /// Of the unrounded model, for GPTAQ.
    original: Option<Stream>,
}

impl Streams {
    /// On the part that holds the table, which is rounded too where the step says so.
    fn begin(step: &Weights, grid: Grid, model: &mut ModelInFlight) -> Result<Self, StepError> {
        let samples = model.calibrator.samples().to_vec();
        let start = model.calibrator.start();
        // The unrounded model reads the unrounded table.
        let mut whole = Stream::begin(model.decoder, &samples, start)?;
        let original = step.asymmetric_calibration.map(|_| whole.copied(model.decoder)).transpose()?;
        step.round_embeddings(model.decoder, grid)?;
        let stream = match step.inputs() {
            HessianInputs::Wq | HessianInputs::Waq if step.embeddings => {
                Stream::begin(model.decoder, &samples, start)?
            }
            _ => whole,
        };
        Ok(Self { stream, original })
    }
}

/// The passes of a step that reads inputs.
pub(super) struct Passes<'a> {
    step: &'a Weights,
    settings: Settings,
    /// The present model's stream.
    stream: Stream,
    /// The unrounded model and its stream, for GPTAQ.
    original: Option<(Stream, Decoder)>,
    layouts: HashMap<Site, Arc<Layout>>,
    groups: u64,
    sites: Map<String, Value>,
}

impl<'a> Passes<'a> {
    pub(super) fn new(step: &'a Weights, grid: Grid, model: &mut ModelInFlight) -> Result<Self, StepError> {
        step.check_table(model.decoder.architecture.hidden)?;
        for (site, group) in model.decoder.groups() {
            if step.rounds(site.port, model.tap.kept.get(&site).copied()) {
                step.check_layout(site, group, model.tap.layouts.get(&site).map(Arc::as_ref))?;
            }
        }
        if step.act_order == Some(true) && !model.tap.layouts.is_empty() {
            let text =
                "`act-order` and channels that `keep` has put in order contradict each other: leave one out";
            return Err(StepError::Statistics(text.into()));
        }
        let layouts = model.tap.layouts.clone();
        let Streams { stream, original } = match model.carried.take::<Streams>() {
            Some(streams) => streams,
            None => Streams::begin(step, grid, model)?,
        };
        let original = original.map(|original| (original, model.decoder.clone()));
        let static_groups = step.groups == Some(Groups::Static);
        let settings = Settings { fit: step.fit(grid), static_groups, block: gptq::BLOCK };
        Ok(Self { step, settings, stream, original, layouts, groups: 0, sites: Map::new() })
    }

    pub(super) fn run(mut self, model: &mut ModelInFlight) -> Result<Map<String, Value>, StepError> {
        let layers = model.decoder.architecture.layers;
        // What the calibration passes read behind: the recipe's rules, or none.
        let mut tap = match self.step.inputs() {
            HessianInputs::Waq => model.tap.clone(),
            HessianInputs::Fp | HessianInputs::Wq => FakeQuant::default(),
        };
        let has_head = self.step.rounds(Port::HeadIn, model.tap.kept.get(&Site::HEAD).copied());
        for layer in model.decoder.blocks.layers() {
            if !model.calibrator.progress(layer, layers) {
                return Err(StepError::Interrupted);
            }
            let groups = model.decoder.groups().into_iter().map(|(site, _)| site);
            let of_layer = groups.filter(|site| site.layer == Some(layer));
            let mut wanted: Vec<Site> = of_layer
                .filter(|site| self.step.rounds(site.port, model.tap.kept.get(site).copied()))
                .collect();
            // Experts one after another read beside each other.
            wanted.sort_by_key(|site| site.port);
            let is_needed = layer + 1 < layers || has_head;
            self.block(model.decoder, layer, &mut tap, &wanted, is_needed)?;
        }
        if has_head && model.decoder.has_head() {
            let moment = self.stream.head(model.decoder, &tap)?;
            let seen = Seen { moments: [(Site::HEAD, moment)].into(), ..Seen::default() };
            self.solve(Site::HEAD, &mut model.decoder.head, &seen);
        }
        let mut report = Map::new();
        report.insert("groups".into(), self.groups.into());
        report.insert("calibration-tokens".into(), self.stream.tokens.into());
        report.insert("sites".into(), self.sites.into());
        model.carried.put(Streams { stream: self.stream, original: self.original.map(|(stream, _)| stream) });
        Ok(report)
    }

    /// Rounds a block and leads the streams through it.
    fn block(
        &mut self,
        decoder: &mut Decoder,
        layer: usize,
        tap: &mut FakeQuant,
        wanted: &[Site],
        is_needed: bool,
    ) -> Result<(), StepError> {
        if self.step.inputs() == HessianInputs::Fp {
            // One pass gives the moments and the next block's inputs.
            let seen = self.stream.pass(decoder, layer, tap, wanted, is_needed)?;
            wanted.iter().for_each(|&site| self.solve_site(decoder, site, &seen));
            return Ok(());
        }
        let parts: Vec<&[Site]> = match self.step.sequential.unwrap_or_default() {
            Sequential::Layer => vec![wanted],
            // A router that is rounded decides what its experts read.
            Sequential::Group => {
                wanted.chunk_by(|a, b| (a.port, a.expert.is_some()) == (b.port, b.expert.is_some())).collect()
            }
        };
        for part in parts {
            let seen = match &mut self.original {
                None => self.stream.pass(decoder, layer, tap, part, false)?,
                Some((stream, whole)) => self.stream.compare(decoder, layer, tap, part, (stream, whole))?,
            };
            part.iter().for_each(|&site| self.solve_site(decoder, site, &seen));
        }
        if is_needed {
            self.stream.pass(decoder, layer, tap, &[], true)?;
            if let Some((stream, whole)) = &mut self.original {
                stream.pass(whole, layer, &mut FakeQuant::default(), &[], true)?;
            }
        }
        Ok(())
    }

    fn solve_site(&mut self, decoder: &mut Decoder, site: Site, seen: &Seen) {
        let groups = decoder.groups_mut().into_iter();
        let Some((_, group)) = groups.into_iter().find(|(at, _)| *at == site) else { return };
        self.solve(site, group, seen);
    }

    /// Rounds the linears of a group by what they read, and notes what happened.
    fn solve(&mut self, site: Site, group: &mut Group, seen: &Seen) {
        self.groups += 1;
        let Some(moment) = seen.moments.get(&site) else {
            self.sites.insert(site.to_string(), self.round_unseen(site, group).into());
            return;
        };
        let mut note = match self.step.solver {
            Solver::Rtn => self.round_nearest(site, group, moment),
            Solver::Gptq => self.round_gptq(site, group, moment, seen.drifts.get(&site)),
        };
        if (moment.tokens as usize) < moment.channels {
            note.insert("fewer-tokens-than-channels".into(), moment.tokens.into());
        }
        self.sites.insert(site.to_string(), note.into());
    }

    /// Of an expert that no token reached there is nothing to go by.
    fn round_unseen(&self, site: Site, group: &mut Group) -> Map<String, Value> {
        let layout = self.layouts.get(&site).map(Arc::as_ref);
        let clip = match self.settings.fit.clip {
            Clip::Output => Clip::Factor(1.0),
            clip => clip,
        };
        let fit = Fit { clip, ..self.settings.fit };
        for linear in &mut group.linears {
            let [_, channels] = linear.weight.dims();
            change(linear, |values| {
                let rounded = gptq::nearest(values, channels, &fit, None, layout);
                values.copy_from_slice(&rounded);
            });
        }
        let nearest: Vec<&str> = group.linears.iter().map(|linear| linear.name.as_str()).collect();
        Map::from_iter([
            ("fewer-tokens-than-channels".to_string(), 0.into()),
            ("rounded-to-nearest".to_string(), json!(nearest)),
        ])
    }

    fn round_nearest(&self, site: Site, group: &mut Group, moment: &SecondMoment) -> Map<String, Value> {
        let layout = self.layouts.get(&site).map(Arc::as_ref);
        let (mut losses, mut plain) = (0.0, 0.0);
        for (place, linear) in group.linears.iter_mut().enumerate() {
            let fit = self.fit_of(site, place);
            let unclipped = Fit { clip: Clip::Factor(1.0), ..fit };
            change(linear, |values| {
                let rounded = gptq::nearest(values, moment.channels, &fit, Some(&moment.sums), layout);
                let without = gptq::nearest(values, moment.channels, &unclipped, None, layout);
                losses += gptq::loss(moment, values, &rounded);
                plain += gptq::loss(moment, values, &without);
                values.copy_from_slice(&rounded);
            });
        }
        Map::from_iter([("loss".to_string(), json!(losses)), ("unclipped-loss".to_string(), json!(plain))])
    }

    fn round_gptq(
        &self,
        site: Site,
        group: &mut Group,
        moment: &SecondMoment,
        cross: Option<&Vec<f64>>,
    ) -> Map<String, Value> {
        let step = self.step;
        let asked = step.damping.unwrap_or(DAMPING);
        let drift = cross.zip(step.asymmetric_calibration).map(|(cross, alpha)| Drift { cross, alpha });
        let layout = self.layouts.get(&site).map(Arc::as_ref);
        let prepared = Prepared::new(moment, asked, step.act_order.unwrap_or_default(), drift, layout);
        let (mut loss, mut nearest_loss, mut nearest) = (0.0, 0.0, Vec::new());
        for (place, linear) in group.linears.iter_mut().enumerate() {
            let name = linear.name.clone();
            let settings = Settings { fit: self.fit_of(site, place), ..self.settings };
            change(linear, |values| {
                let rounded = gptq::round(values, &prepared, &settings, layout);
                loss += rounded.loss;
                nearest_loss += rounded.nearest_loss;
                if rounded.is_nearest {
                    nearest.push(name);
                }
                values.copy_from_slice(&rounded.weight);
            });
        }
        let mut note = Map::new();
        note.insert("loss".into(), json!(loss));
        note.insert("nearest-loss".into(), json!(nearest_loss));
        if prepared.damping != asked {
            note.insert("damping".into(), json!(prepared.damping));
        }
        if let Some(floor) = prepared.floor {
            note.insert("diagonal-floor".into(), json!(floor));
        }
        if !prepared.dead.is_empty() {
            note.insert("dead-channels".into(), prepared.dead.len().into());
        }
        if !nearest.is_empty() {
            note.insert("rounded-to-nearest".into(), json!(nearest));
        }
        note
    }

    /// AWQ's search leaves q and k alone: their errors go through a softmax, which the loss does not know.
    fn fit_of(&self, site: Site, place: usize) -> Fit {
        let fit = self.settings.fit;
        let skipped = fit.clip == Clip::Output && site.port == Port::AttnIn && place < 2;
        if skipped { Fit { clip: Clip::Factor(1.0), ..fit } } else { fit }
    }
}
