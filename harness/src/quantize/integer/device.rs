//! A group of linears as integers on a device of CubeCL: [`kernels::integers`](crate::quantize::kernels::integers) for what
//! [`super::product`] is on the host.

use burn::tensor::{Device, Tensor};
use models::{Group, Linear};

use crate::quantize::fake_quant::{ActivationRule, ScaleSource};
use crate::quantize::grid::Granularity;
use crate::quantize::integer::segments::Segment;
use crate::quantize::integer::weights::Row;
use crate::quantize::kernels::integers::{Cut, Storage, Weight, encode};

/// A group of linears on a device.
#[derive(Clone, Debug)]
pub struct DeviceGroup {
    rule: ActivationRule,
    /// Places of a segment.
    width: usize,
    storage: Storage,
    linears: Vec<DeviceLinear>,
}

#[derive(Clone, Debug)]
struct DeviceLinear {
    weight: Weight,
    bias: Option<Tensor<1>>,
}

impl DeviceGroup {
    /// Of the rows of every linear.
    ///
    /// # Errors
    /// Why the kernels cannot cut rows so.
    pub fn new(
        storage: Storage,
        rule: &ActivationRule,
        segments: &[Segment],
        group: &Group,
        rows: Vec<Vec<Row>>,
    ) -> Result<Self, &'static str> {
        let Some(width) = segments.first().map(|segment| segment.to - segment.from) else {
            return Err("no channels");
        };
        if segments.iter().any(|segment| segment.to - segment.from != width) {
            return Err("groups of unlike widths, on a device");
        }
        let of = |(linear, rows): (&Linear, Vec<Row>)| {
            let device = linear.weight.device();
            DeviceLinear {
                weight: on_device(storage, segments, width, &rows, &device),
                bias: linear.bias.clone(),
            }
        };
        let linears = group.linears.iter().zip(rows).map(of).collect();
        Ok(Self { rule: *rule, width, storage, linears })
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> u64 {
        self.linears.iter().map(|linear| linear.weight.bytes() as u64).sum()
    }

    /// The outputs of every linear.
    ///
    /// # Shapes
    /// `x` is `[sequences, tokens, channels]`.
    pub fn forward(&self, x: &Tensor<3>) -> Vec<Tensor<3>> {
        let [sequences, tokens, channels] = x.dims();
        let run = match self.rule.granularity {
            Granularity::Tensor => tokens * channels,
            Granularity::Group(of) => of.min(channels),
            Granularity::Token | Granularity::Channel => channels,
        };
        let given = match self.rule.scale {
            ScaleSource::Static(scale) => Some(scale),
            ScaleSource::Dynamic => None,
        };
        let cut = Cut { run, width: self.width, given };
        let codes = encode(x, self.rule.grid, self.rule.clip, cut, self.storage)
            .expect("whole codes in f32 on the device that the weights are on");
        let each = self.linears.iter().map(|linear| {
            let y = codes.times(&linear.weight, linear.bias.as_ref());
            let out = y.dims()[1];
            y.reshape([sequences, tokens, out])
        });
        each.collect()
    }
}

/// `[segments, out, width]`, of rows.
fn on_device(storage: Storage, segments: &[Segment], width: usize, rows: &[Row], device: &Device) -> Weight {
    let mut codes = Vec::with_capacity(segments.len() * rows.len() * width);
    let mut deltas = Vec::with_capacity(segments.len() * rows.len());
    let mut zeros = Vec::with_capacity(segments.len() * rows.len());
    for (number, segment) in segments.iter().enumerate() {
        for row in rows {
            codes.extend_from_slice(&row.codes[segment.at..][..width]);
            deltas.push(row.deltas[number]);
            zeros.push(row.zeros[number]);
        }
    }
    Weight::new(storage, [segments.len(), rows.len(), width], codes, deltas, &zeros, device)
}
