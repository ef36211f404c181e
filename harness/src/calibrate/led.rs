//! Statistics of a calibration set that is led through a model part by part: what [`observe`](super::observe) collects of a
//! whole one, of all batches in one part before any is in the next.

use std::ops::Range;
use std::rc::Rc;

use models::{Decoder, Off, Site, token_tensor};

use super::observe::{CollectError, Observer, Options, batches};
use super::statistics::Statistics;
use crate::hidden::Hidden;

/// A calibration set on its way.
#[derive(Default)]
pub struct Led {
    hidden: Hidden,
    /// Of the parts so far.
    whole: Statistics,
    /// The part that it was led through last, and what was seen there.
    last: Option<(Place, Rc<Statistics>)>,
}

/// A part, by what it holds.
type Place = (bool, Range<usize>, bool);

impl Led {
    /// Leads the set through a part of the model as it is now, once, and gives what was seen in that part. Samples, dropped
    /// tokens and progress are as for [`collect`](super::observe::collect), and the same on every part.
    ///
    /// # Errors
    /// As [`collect`](super::observe::collect), and [`CollectError::States`].
    pub fn through(
        &mut self,
        decoder: &mut Decoder,
        samples: &[Vec<u32>],
        drop_first: bool,
        options: &Options,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Rc<Statistics>, CollectError> {
        let place = (decoder.has_table(), decoder.blocks.layers(), decoder.has_head());
        if let Some((last, seen)) = &self.last
            && *last == place
        {
            return Ok(seen.clone());
        }
        if decoder.has_table() {
            (self.hidden, self.whole) = Default::default();
        }
        let skipped = usize::from(drop_first);
        let device = decoder.device();
        let mut tap = Off;
        let mut observer = Observer::new(&mut tap, options, skipped);
        for (batch, range) in batches(samples, skipped)?.into_iter().enumerate() {
            let fed: Vec<&[u32]> = samples[range.clone()].iter().map(|s| &s[skipped..]).collect();
            observer.begin(&range.clone().collect::<Vec<_>>(), &fed);
            if decoder.has_table() {
                self.hidden.push(decoder.embed(token_tensor(&fed, &device))).map_err(states)?;
            }
            for layer in decoder.blocks.layers() {
                let x = self.hidden.get(batch, &device).map_err(states)?;
                let x = decoder.through_block(layer, x, &mut observer);
                self.hidden.put(batch, x).map_err(states)?;
            }
            if decoder.has_head() {
                let x = self.hidden.get(batch, &device).map_err(states)?;
                observer.observe(Site::HEAD, decoder.final_norm.forward(x));
            }
            observer.fault()?;
            if !progress(range.end, samples.len()) {
                return Err(CollectError::Interrupted);
            }
        }
        let seen = observer.finish()?;
        self.whole.sites.extend(seen.sites.iter().map(|(site, seen)| (*site, seen.clone())));
        self.whole.residual.extend(seen.residual.iter().map(|(layer, seen)| (*layer, seen.clone())));
        (self.whole.samples, self.whole.tokens) = (seen.samples, seen.tokens);
        (self.whole.first_position, self.whole.kept) = (seen.first_position, seen.kept.clone());
        let seen = Rc::new(seen);
        self.last = Some((place, seen.clone()));
        Ok(seen)
    }

    /// What was seen in all parts, once the set is behind the last one; it is given only once.
    pub fn take_whole(&mut self) -> Option<Statistics> {
        let (_, _, has_head) = &self.last.as_ref()?.0;
        (*has_head && self.whole.samples > 0).then(|| std::mem::take(&mut self.whole))
    }
}

fn states(error: std::io::Error) -> CollectError {
    CollectError::States(error.to_string())
}
