//! The pass over a model that measures every linear group where it stands: a tap that looks at one activation at a time.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use models::hadamard::{Fallback, Hadamard};
use models::{Decoder, Group, Linear, Port, Site, Tap, token_tensor};

use crate::calibrate::observe::TOKENS_PER_BATCH;
use crate::layerwise::pair::{Matrix, Maxima, Pair, Transform};
use crate::layerwise::products::{MOST_CHANNELS, asymmetric_steps, error, estimate, product, rounded};
use crate::layerwise::{LayerError, Mode};
use crate::quantize::grid::{Convention, Grid};
use crate::record::layers::{LayerRow, LayerTables, SurfaceRow, TOKEN_BITS, TokenRow};

/// Patches that a surface has at most, along tokens and along channels.
const PATCHES: (usize, usize) = (64, 96);

/// Channels of the shown token that are kept at most: the greatest, and evenly chosen ones of the rest.
const TOKEN_CHANNELS: usize = 2048;

/// Why there are no layer-wise errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerFault {
    /// The caller's progress said so.
    #[error("interrupted")]
    Interrupted,
    /// A broken model.
    #[error("the activation at {site} is not finite: the model is broken; measure its perplexity first")]
    NotFinite {
        /// Where.
        site: String,
    },
    /// Sums of codes would not fit.
    #[error("the activation at {site} has {channels} channels, and at most {MOST_CHANNELS} can be measured")]
    Wide {
        /// Where.
        site: String,
        /// Its channels.
        channels: usize,
    },
}

/// What a pass found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// For the record.
    pub tables: LayerTables,
    /// The group that surface and token are of: the one with the largest error before any transform.
    pub shown: Option<Shown>,
    /// How every width was rotated.
    pub rotations: BTreeMap<usize, String>,
}

/// A group whose activation is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// Its block.
    pub layer: u32,
    /// Its port.
    pub port: &'static str,
    /// Its linears.
    pub module: String,
    /// Tokens of its activation, and of a patch of the surface.
    pub tokens: (usize, usize),
    /// Channels, and those of a patch.
    pub channels: (usize, usize),
    error: f64,
}

/// Measures every group of every block over `samples`, which have one length.
///
/// In honest mode `calibration` gives the activations' maxima; its samples, too, have one length. `progress` is told the
/// groups looked at and those in all; its `false` ends the pass.
///
/// # Errors
/// See [`LayerFault`].
pub fn measure(
    decoder: &mut Decoder,
    block: &LayerError,
    samples: &[Vec<u32>],
    calibration: &[Vec<u32>],
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Found, LayerFault> {
    let device = decoder.device();
    let mut rotations = Rotations::default();
    let batch = (TOKENS_PER_BATCH / calibration.first().map_or(1, Vec::len)).max(1);
    let groups = decoder.groups().iter().filter(|(site, _)| site.layer.is_some()).count();
    let total = groups * (1 + calibration.chunks(batch).count());
    let mut state = Pass { progress, done: 0, total, fault: None };

    let mut seen = SeenMaxima::default();
    for batch in calibration.chunks(batch) {
        let mut tap = MaximaTap { seen: &mut seen, rotations: &mut rotations, pass: &mut state };
        decoder.hidden(token_tensor(batch, &device), &mut tap);
        state.fault.take().map_or(Ok(()), Err)?;
    }
    if block.mode == Mode::Honest {
        // Where value heads are shared, a scale must be, too, or no model could carry it.
        let shared = seen.keys().filter_map(|site| Some((*site, decoder.sharing(*site)?)));
        let producers: BTreeMap<Site, Vec<usize>> = shared.collect();
        producers.into_iter().for_each(|(site, of)| seen.entry(site).or_default().producers = Some(of));
    }
    let mut tap = ErrorTap {
        block,
        grid: Grid::new(block.bits, Convention::AbsmaxFull),
        seen: &seen,
        rotations: &mut rotations,
        found: Found::default(),
        pass: &mut state,
    };
    decoder.hidden(token_tensor(samples, &device), &mut tap);
    let mut found = tap.found;
    state.fault.take().map_or(Ok(()), Err)?;
    found.rotations = rotations
        .by_width
        .iter()
        .map(|(width, rotation)| (*width, rotation.construction().to_string()))
        .collect();
    Ok(found)
}

/// Rotations by width.
#[derive(Default)]
struct Rotations {
    by_width: BTreeMap<usize, Hadamard>,
}

impl Rotations {
    fn of(&mut self, width: usize) -> &Hadamard {
        self.by_width.entry(width).or_insert_with(|| Hadamard::new(width, Fallback::BlockDiagonal, 0))
    }
}

/// How far a pass is, and whether it goes on. A tap cannot end a forward pass, but it can stop looking.
struct Pass<'a> {
    progress: &'a mut dyn FnMut(usize, usize) -> bool,
    done: usize,
    total: usize,
    fault: Option<LayerFault>,
}

impl Pass<'_> {
    /// The activation `[sequences, tokens, channels]` as a matrix, unless the pass is over.
    fn look(&mut self, site: Site, x: &Tensor<3>) -> Option<Matrix> {
        if self.fault.is_some() || site.layer.is_none() {
            return None;
        }
        if !(self.progress)(self.done, self.total) {
            self.fault = Some(LayerFault::Interrupted);
            return None;
        }
        self.done += 1;
        let channels = x.dims()[2];
        let data = x.clone().try_into_data().expect("the device answers");
        let values = data.as_slice::<f32>().expect("activations are f32");
        if channels > MOST_CHANNELS {
            self.fault = Some(LayerFault::Wide { site: site.to_string(), channels });
            return None;
        }
        if values.iter().any(|x| !x.is_finite()) {
            self.fault = Some(LayerFault::NotFinite { site: site.to_string() });
            return None;
        }
        Some(Matrix::new(values.iter().map(|&x| f64::from(x)).collect(), channels))
    }
}

/// The greatest magnitudes of calibration samples at one site.
#[derive(Clone, Debug, Default)]
struct SiteMaxima {
    plain: Vec<f64>,
    rotated: Vec<f64>,
    producers: Option<Vec<usize>>,
}

type SeenMaxima = BTreeMap<Site, SiteMaxima>;

struct MaximaTap<'a, 'p> {
    seen: &'a mut SeenMaxima,
    rotations: &'a mut Rotations,
    pass: &'a mut Pass<'p>,
}

impl Tap for MaximaTap<'_, '_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if let Some(x) = self.pass.look(site, &x) {
            let seen = self.seen.entry(site).or_default();
            let rotated = x.rotated(self.rotations.of(x.columns)).channel_maxima();
            for (most, found) in [(&mut seen.plain, x.channel_maxima()), (&mut seen.rotated, rotated)] {
                most.resize(found.len(), 0.0);
                most.iter_mut().zip(found).for_each(|(most, x)| *most = most.max(x));
            }
        }
        group.forward(x)
    }
}

struct ErrorTap<'a, 'p> {
    block: &'a LayerError,
    grid: Grid,
    seen: &'a SeenMaxima,
    rotations: &'a mut Rotations,
    found: Found,
    pass: &'a mut Pass<'p>,
}

impl Tap for ErrorTap<'_, '_> {
    fn linears(&mut self, site: Site, x: Tensor<3>, group: &Group) -> Vec<Tensor<3>> {
        if let Some(x) = self.pass.look(site, &x) {
            self.measure(site, x, group);
        }
        group.forward(x)
    }
}

impl ErrorTap<'_, '_> {
    fn measure(&mut self, site: Site, x: Matrix, group: &Group) {
        let linears = counted(self.block.mode, site.port, group);
        let names = linears.iter().map(|linear| linear.name.rsplit('.').next().unwrap_or(&linear.name));
        let module = names.collect::<Vec<_>>().join(", ");
        let layer = site.layer.expect("a pass looks at blocks only") as u32;
        let pair = Pair { w: weights(&linears, x.columns), x };
        let rotation = self.rotations.of(pair.x.columns);
        let maxima = match self.seen.get(&site) {
            Some(seen) if self.block.mode == Mode::Honest => Maxima::Seen {
                plain: &seen.plain,
                rotated: &seen.rotated,
                producers: seen.producers.as_deref(),
            },
            _ => Maxima::Own,
        };
        let products = product(&pair);
        let output_energy = products.iter().map(|y| y * y).sum();
        let mut shown = false;
        for transform in Transform::ALL {
            let moved = pair.transformed(transform, self.block.alpha, maxima, rotation);
            let (x, w) = (rounded(&moved.x, self.grid), rounded(&moved.w, self.grid));
            let error = error(&products, &x, &w);
            if transform == Transform::None && self.found.shown.as_ref().is_none_or(|s| error > s.error) {
                shown = true;
                self.found.tables.surface.clear();
                self.found.tables.token.clear();
                let (tokens, channels) = (moved.x.rows(), moved.x.columns);
                self.found.shown = Some(Shown {
                    layer,
                    port: site.port.as_str(),
                    module: module.clone(),
                    tokens: (tokens, tokens.div_ceil(PATCHES.0)),
                    channels: (channels, channels.div_ceil(PATCHES.1)),
                    error,
                });
            }
            if shown {
                self.found.tables.surface.extend(surface(transform, &moved.x));
                self.found.tables.token.extend(greatest_token(transform, &moved.x));
            }
            let bits = self.block.bits;
            let (of_x, of_w) = (moved.x.shape(), moved.w.shape());
            self.found.tables.rows.push(LayerRow {
                layer,
                port: site.port.as_str().to_owned(),
                module: module.clone(),
                transform: transform.as_str().to_owned(),
                tokens: moved.x.rows() as u32,
                channels: moved.x.columns as u32,
                outputs: moved.w.rows() as u32,
                error,
                estimate: estimate(&moved, &x.steps, &w.steps),
                estimate_released: estimate(
                    &moved,
                    &asymmetric_steps(&moved.x, bits),
                    &asymmetric_steps(&moved.w, bits),
                ),
                output_energy,
                x_difficulty: of_x.difficulty,
                x_scale_free: of_x.scale_free,
                x_kurtosis: of_x.kurtosis,
                x_largest: of_x.largest,
                x_norm: of_x.norm,
                w_difficulty: of_w.difficulty,
                w_scale_free: of_w.scale_free,
                w_kurtosis: of_w.kurtosis,
                w_largest: of_w.largest,
                w_norm: of_w.norm,
                token_ratio: moved.x.token_ratio(),
            });
        }
    }
}

/// The linears of a group that count: all of them, or the one that the released code captures, k, o, gate or down.
fn counted(mode: Mode, port: Port, group: &Group) -> Vec<&Linear> {
    match (mode, port) {
        (Mode::Released, Port::AttnIn) if group.linears.len() > 1 => vec![&group.linears[1]],
        (Mode::Released, _) => group.linears.iter().take(1).collect(),
        (Mode::Honest, _) => group.linears.iter().collect(),
    }
}

/// Weights of several linears, one below the other.
fn weights(linears: &[&Linear], columns: usize) -> Matrix {
    let mut values = Vec::new();
    for linear in linears {
        let data = linear.weight.clone().try_into_data().expect("weights can be read from their device");
        values.extend(data.as_slice::<f32>().expect("weights are f32").iter().map(|&w| f64::from(w)));
    }
    Matrix::new(values, columns)
}

/// The greatest magnitude of every patch.
fn surface(transform: Transform, x: &Matrix) -> Vec<SurfaceRow> {
    let (tokens, channels) = (x.rows().div_ceil(PATCHES.0), x.columns.div_ceil(PATCHES.1));
    let mut rows = Vec::new();
    for token in (0..x.rows()).step_by(tokens) {
        let patch: Vec<&[f64]> = (token..(token + tokens).min(x.rows())).map(|t| x.row(t)).collect();
        for channel in (0..x.columns).step_by(channels) {
            let end = (channel + channels).min(x.columns);
            let values = patch.iter().flat_map(|row| &row[channel..end]);
            let magnitude = values.fold(0.0f64, |most, x| most.max(x.abs())) as f32;
            let transform = transform.as_str().to_owned();
            rows.push(SurfaceRow { transform, token: token as u32, channel: channel as u32, magnitude });
        }
    }
    rows
}

/// The token with the greatest value, and what grids make of it.
fn greatest_token(transform: Transform, x: &Matrix) -> Vec<TokenRow> {
    let maxima = x.row_maxima();
    let token = (0..x.rows()).max_by(|&a, &b| maxima[a].total_cmp(&maxima[b]).then(b.cmp(&a)));
    let Some(token) = token else { return Vec::new() };
    let row: Vec<f32> = x.row(token).iter().map(|&x| x as f32).collect();
    let most = maxima[token] as f32;
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()).then(a.cmp(&b)));
    let every = order.len().div_ceil(TOKEN_CHANNELS);
    let kept = order.iter().enumerate().filter(|(rank, _)| *rank < 64 || rank % every == 0);
    kept.map(|(rank, &channel)| TokenRow {
        transform: transform.as_str().to_owned(),
        token: token as u32,
        rank: rank as u32,
        channel: channel as u32,
        magnitude: row[channel].abs(),
        rounded: TOKEN_BITS.map(|bits| {
            let grid = Grid::new(bits, Convention::AbsmaxFull);
            grid.round(row[channel], grid.fit(-most, most, 1.0)).abs()
        }),
    })
    .collect()
}
