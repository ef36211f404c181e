//! Statistics in the form in which a store keeps them: names instead of sites, rows instead of maps.

use crate::record::statistics::{
    ChannelRow, HistogramRow, RESIDUAL, SequenceRow, SiteSummary, StatisticsRows, TokenScaleRow, TopToken,
    TopTokenRow,
};

use super::statistics::{SiteStatistics, Statistics, TOP_TOKENS, TokenScale};

/// Bins per octave in a store: 2^2.
const STORED_BITS: u32 = 2;

/// Where a statistic stands, in words.
struct Place {
    site: String,
    layer: Option<u32>,
    port: &'static str,
}

/// Summaries of all sites and the rows of all tables, in the order of the forward pass. `text` gives the text of a token.
pub fn recorded(statistics: &Statistics, text: &dyn Fn(u32) -> String) -> (Vec<SiteSummary>, StatisticsRows) {
    let (mut summaries, mut rows) = (Vec::new(), StatisticsRows::default());
    for (place, site) in places(statistics) {
        summaries.push(summary(&place, site, text));
        channels(&place, site, &mut rows.channels);
        for (&sample, sequence) in &site.sequences {
            let sample = sample as u32;
            rows.sequences.push(SequenceRow {
                site: place.site.clone(),
                layer: place.layer,
                port: place.port.into(),
                sample,
                max: sequence.max,
                median: sequence.median,
                ratio: sequence.ratio(),
            });
            for (rank, top) in sequence.top.iter().take(TOP_TOKENS).enumerate() {
                let TokenScale { scale, position, token } = *top;
                rows.top_tokens.push(TopTokenRow {
                    site: place.site.clone(),
                    layer: place.layer,
                    port: place.port.into(),
                    sample,
                    rank: rank as u32,
                    position,
                    token,
                    text: text(token),
                    scale,
                });
            }
        }
        for (sample, scales) in &site.token_scales {
            let tokens = statistics.kept.get(sample).map_or(&[][..], Vec::as_slice);
            for (i, (&scale, &token)) in scales.iter().zip(tokens).enumerate() {
                rows.token_scales.push(TokenScaleRow {
                    site: place.site.clone(),
                    layer: place.layer,
                    port: place.port.into(),
                    sample: *sample as u32,
                    position: (statistics.first_position + i) as u32,
                    token,
                    text: text(token),
                    scale,
                });
            }
        }
        if let Some(histogram) = &site.histogram {
            rows.histograms.extend(histogram.coarsened(STORED_BITS).bins().into_iter().map(|bin| {
                HistogramRow {
                    site: place.site.clone(),
                    layer: place.layer,
                    port: place.port.into(),
                    lower: bin.lower,
                    upper: bin.upper,
                    count: bin.count,
                }
            }));
        }
    }
    (summaries, rows)
}

/// Block by block, the residual stream behind its block, and what belongs to no block last.
fn places(statistics: &Statistics) -> Vec<(Place, &SiteStatistics)> {
    let blocks = statistics.sites.iter().map(|(site, statistics)| {
        let layer = site.layer.map(|layer| layer as u32);
        (Place { site: site.to_string(), layer, port: site.port.as_str() }, statistics)
    });
    let residual = statistics.residual.iter().map(|(&layer, statistics)| {
        let site = format!("layers.{layer}.{RESIDUAL}");
        (Place { site, layer: Some(layer as u32), port: RESIDUAL }, statistics)
    });
    let mut places: Vec<_> = blocks.chain(residual).collect();
    // Stable: within a block, ports stay in the order of the forward pass.
    places.sort_by_key(|(place, _)| place.layer.unwrap_or(u32::MAX));
    places
}

fn summary(place: &Place, site: &SiteStatistics, text: &dyn Fn(u32) -> String) -> SiteSummary {
    let top = site.top(TOP_TOKENS).into_iter().map(|peak| TopToken {
        sample: peak.sample as u32,
        position: peak.at.position,
        token: peak.at.token,
        text: text(peak.at.token),
        scale: f64::from(peak.at.scale),
    });
    SiteSummary {
        site: place.site.clone(),
        layer: place.layer,
        port: place.port.into(),
        channels: site.channels() as u32,
        absmax: f64::from(site.absmax()),
        ratio: site.ratio().ok(),
        ratio_pooled: site.ratio_pooled(),
        zero_medians: site.zero_medians() as u64,
        median: f64::from(site.median().unwrap_or(0.0)),
        top: top.collect(),
    }
}

fn channels(place: &Place, site: &SiteStatistics, rows: &mut Vec<ChannelRow>) {
    let means = site.mean_magnitude();
    for (channel, (&absmax, mean)) in site.absmax_by_channel().iter().zip(means).enumerate() {
        rows.push(ChannelRow {
            site: place.site.clone(),
            layer: place.layer,
            port: place.port.into(),
            channel: channel as u32,
            min: site.min[channel],
            max: site.max[channel],
            absmax,
            mean_abs: mean as f32,
        });
    }
}
