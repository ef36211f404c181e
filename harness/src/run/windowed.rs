//! A perplexity evaluation of one cell, compared with the original where that is asked.

use models::{Decoder, Site, Tap};

use crate::evaluate::decoder_model::DecoderModel;
use crate::evaluate::metrics::perplexity::{self, Perplexity};
use crate::evaluate::noise::RoundingNoise;
use crate::evaluate::passage::Passage;
use crate::evaluate::windows::Window;
use crate::evaluate::{EvaluateError, Measured, Progress, against};
use crate::plan::Cell;
use crate::quantize::integer::IntegerTap;
use crate::record::execution::{Executed, Underway};
use crate::run::originals::Originals;

/// What the parts of a model have made of an evaluation's windows, where it is executed part by part.
#[derive(Default)]
pub(super) struct Streams {
    /// Of the cell's model.
    pub(super) plain: Passage,
    /// Of the original with rounding noise, where its noise floor is measured.
    pub(super) noise: Option<Passage>,
    /// Seconds that this took.
    pub(super) seconds: f64,
    /// How far the windows are from the original's behind each block.
    pub(super) errors: Vec<f64>,
    /// How rounded groups were multiplied.
    pub(super) executed: Executed,
}

/// A perplexity evaluation of one cell, ready for its model.
pub(super) struct Windowed<'a> {
    pub(super) cell: &'a Cell,
    pub(super) perplexity: &'a Perplexity,
    pub(super) windows: &'a [Window],
    /// By [`Evaluation::planned_of`](crate::experiment::Evaluation::planned_of).
    pub(super) wanted: &'a [bool],
    pub(super) start: Option<u32>,
    /// Significant bits of the checkpoint's own precision.
    pub(super) noise: u32,
}

impl Windowed<'_> {
    pub(super) fn measure(
        &self,
        (decoder, tap): (&mut Decoder, &mut IntegerTap),
        streams: Option<&mut Streams>,
        originals: &mut Originals,
        underway: &mut Underway,
        progress: &mut Progress,
    ) -> Result<Vec<Option<Measured>>, EvaluateError> {
        let mut values = vec![None; self.wanted.len()];
        let (mut plain, with_noise) = match streams {
            Some(Streams { plain, noise, .. }) => (Some(plain), noise.as_mut()),
            None => (None, None),
        };
        let (protocol, id) = (self.perplexity.protocol, self.perplexity.id());
        let compares = self.wanted[1..].contains(&true);
        let original = self.cell.recipe.is_original();
        let few = !tap.fake().rules.contains_key(&Site::HEAD);
        if self.wanted[0] && (original || !compares) {
            let mut model = DecoderModel::new(decoder, tap, self.start).mode(self.perplexity.mode);
            model = model.behind(plain.as_deref_mut()).few_rows_at_once(few);
            let measured = perplexity::measure_windows(&mut model, protocol, self.windows, progress);
            underway.add_forward(model.forward.as_secs_f64(), model.tokens);
            values[0] = Some(measured?);
        }
        if !compares {
            return Ok(values);
        }
        let drawn = with_noise.as_ref().and_then(|passage| passage.noise());
        let mut noise = drawn.unwrap_or_else(|| RoundingNoise::new(self.noise));
        let tap: &mut dyn Tap = match original {
            true => {
                let label = &self.cell.model.label;
                let read = (self.windows, self.start);
                originals.keep((label, &id), read, (decoder, plain.as_deref_mut()), progress)?;
                &mut noise
            }
            false => tap,
        };
        let kept = originals.get(&id).expect("the original was run before");
        let mut model = DecoderModel::new(decoder, tap, self.start).mode(self.perplexity.mode);
        model = model.behind(if original { with_noise } else { plain }).few_rows_at_once(few && !original);
        let compared = against::compare(&mut model, self.windows, kept, progress);
        underway.add_forward(model.forward.as_secs_f64(), model.tokens);
        let compared = compared?;
        if !original {
            values[0] = Some(perplexity::measured(protocol, self.windows, &compared.scores)?);
        }
        for (value, mut measured) in values[1..].iter_mut().zip(against::measured(self.windows, &compared)?) {
            if original {
                measured.detail.insert("noise-bits".into(), self.noise.into());
            }
            *value = Some(measured);
        }
        Ok(values)
    }
}
