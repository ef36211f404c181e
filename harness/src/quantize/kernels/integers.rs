//! Integer products: activations to codes, codes by codes in i32, and what the sums are in the units of the outputs.
//!
//! The products are CubeK's, in whose matmul the tensor cores are. Codes of an activation lie `[segments, rows, width]`, those
//! of a weight `[segments, out, width]`, so that all segments are one batch.

use burn::backend::Cube;
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::{ElemType, IntKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::ops::permute;
use burn_cubecl::tensor::CubeTensor;
use models::cube_tensor::on_cube;

use super::{Codes, codes, range_of, scale_of, unit_a_value, units};
use crate::quantize::grid::{Convention, Grid, Scale};

/// How a device holds codes that it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Bytes: of tensor cores.
    I8,
    /// Whole words: no faster than floating point, but on every device. The oracle of what only some devices have.
    I32,
}

impl Storage {
    /// Bytes, where the device has matrix instructions of i8 that add up in i32.
    pub fn of(device: &Device) -> Option<Self> {
        let client = on_cube(&Tensor::<1>::zeros([1], device))?.client;
        let (i8, i32) = (ElemType::Int(IntKind::I8), ElemType::Int(IntKind::I32));
        let matmul = &client.properties().features.matmul;
        let multiplies = matmul
            .cmma
            .iter()
            .chain(&matmul.mma)
            .any(|with| (with.a_type, with.b_type, with.cd_type) == (i8, i8, i32));
        multiplies.then_some(Self::I8)
    }

    /// What a record calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::I8 => "CubeK i8·i8",
            Self::I32 => "CubeK i32·i32",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::I8 => DType::I8,
            Self::I32 => DType::I32,
        }
    }
}

/// Which values of an activation share a scale, and how its rows are cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Values of a run, which shares one scale.
    pub run: usize,
    /// Places of a segment.
    pub width: usize,
    /// The one scale of all, where it is given.
    pub given: Option<Scale>,
}

/// A weight as codes on a device: w = Δ·(c + z).
#[derive(Clone, Debug)]
pub struct Weight {
    /// `[segments, out, width]`
    codes: CubeTensor,
    /// Δ, `[segments, out]`
    deltas: CubeTensor,
    /// Σ c, `[segments, out]`
    sums: CubeTensor,
    /// z, `[segments, out]`, where any is not 0.
    zeros: Option<CubeTensor>,
    segments: usize,
    out: usize,
}

/// An activation as codes on a device: x = Δ·(a − z).
#[derive(Clone, Debug)]
pub struct Activation {
    /// `[segments, rows, width]`
    codes: CubeTensor,
    /// Δ, `[runs]`; NaN where a value of the run is.
    deltas: CubeTensor,
    /// z, `[runs]`
    zeros: CubeTensor,
    cut: Cut,
    rows: usize,
    channels: usize,
    storage: Storage,
}

impl Weight {
    /// Puts a weight onto a device; `codes` is `[segments, out, width]`, `deltas` and `zeros` `[segments, out]`.
    ///
    /// # Panics
    /// If the device is not CubeCL's.
    pub fn new(
        storage: Storage,
        [segments, out, width]: [usize; 3],
        codes: Vec<i8>,
        deltas: Vec<f32>,
        zeros: &[i32],
        device: &Device,
    ) -> Self {
        let sums = codes.chunks(width).map(|run| run.iter().map(|&c| i32::from(c)).sum()).collect();
        let whole =
            |values: Vec<i32>| integers::<2>(TensorData::new(values, [segments, out]), DType::I32, device);
        let codes = match storage {
            Storage::I8 => TensorData::new(codes, [segments, out, width]),
            Storage::I32 => {
                let codes: Vec<i32> = codes.into_iter().map(i32::from).collect();
                TensorData::new(codes, [segments, out, width])
            }
        };
        let deltas = Tensor::<2>::from_data(TensorData::new(deltas, [segments, out]), device);
        Self {
            codes: integers::<3>(codes, storage.dtype(), device),
            deltas: on_cube(&deltas).expect("a device of CubeCL"),
            sums: whole(sums),
            zeros: zeros.iter().any(|&z| z != 0).then(|| whole(zeros.to_vec())),
            segments,
            out,
        }
    }

    /// Whether some z is not 0.
    pub fn has_zeros(&self) -> bool {
        self.zeros.is_some()
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        let of = |tensor: &CubeTensor| tensor.meta.num_elements() * tensor.dtype.size();
        of(&self.codes) + of(&self.deltas) + of(&self.sums) + self.zeros.as_ref().map_or(0, of)
    }
}

fn integers<const D: usize>(data: TensorData, dtype: DType, device: &Device) -> CubeTensor {
    let tensor = Tensor::<D, burn::tensor::Int>::from_data(data, (device, dtype));
    tensor.try_into_primitive::<Cube>().expect("a device of CubeCL")
}

/// Rounds an activation to codes; `None` where the device, the numbers or the grid are not a kernel's.
///
/// # Shapes
/// `x` is `[sequences, tokens, channels]`.
pub fn encode(x: &Tensor<3>, grid: Grid, clip: f32, cut: Cut, storage: Storage) -> Option<Activation> {
    let [sequences, tokens, channels] = x.dims();
    let (rows, with, on) = (sequences * tokens, codes(grid, clip)?, x.device());
    let x = on_cube(x)?;
    let (client, device) = (x.client.clone(), x.device.clone());
    let runs = if cut.given.is_some() { 1 } else { rows * channels / cut.run };
    let room = |dims: &[usize], dtype| {
        empty_device_contiguous_dtype(client.clone(), device.clone(), dims.into(), dtype)
    };
    // Codes of 8 bits from 0 to 255 are moved into bytes, and z with them.
    let moved = if grid.codes().1 > 127.0 { 128.0f32 } else { 0.0 };
    let (deltas, zeros) = match cut.given {
        None => (room(&[runs], DType::F32), room(&[runs], DType::I32)),
        Some(scale) => {
            let delta = Tensor::<1>::from_data([scale.delta], &on);
            let zero = TensorData::from([(scale.zero - moved) as i32]);
            (on_cube(&delta)?, integers::<1>(zero, DType::I32, &on))
        }
    };
    let made = Activation {
        codes: room(&[channels / cut.width, rows, cut.width], storage.dtype()),
        deltas,
        zeros,
        cut,
        rows,
        channels,
        storage,
    };
    let outputs = [&made.codes, &made.deltas, &made.zeros].map(|tensor| tensor.clone().into_buffer_arg());
    let place = PlaceLaunch::new(channels, cut.width, rows * cut.width);
    let [codes, deltas, zeros] = outputs;
    if let Some(scale) = cut.given {
        let launch = match storage {
            Storage::I8 => encode_values::launch::<i8>,
            Storage::I32 => encode_values::launch::<i32>,
        };
        let (cubes, units) = unit_a_value(rows * channels);
        launch(
            &client,
            cubes,
            units,
            x.into_buffer_arg(),
            codes,
            deltas,
            with,
            place,
            moved,
            scale.delta,
            scale.zero,
        );
    } else {
        let (launch, units) = (
            match storage {
                Storage::I8 => encode_runs::launch::<i8>,
                Storage::I32 => encode_runs::launch::<i32>,
            },
            units(cut.run),
        );
        launch(
            &client,
            CubeCount::new_1d(runs as u32),
            CubeDim::new_1d(units as u32),
            x.into_buffer_arg(),
            codes,
            deltas,
            zeros,
            with,
            place,
            moved,
            cut.run,
            units,
            grid.convention(),
        );
    }
    Some(made)
}

impl Activation {
    /// Σ (a − z)·(c + z') over each segment, times Δ·Δ', summed over segments; and the bias, `[out]`.
    ///
    /// # Shapes
    /// `[rows, out]`
    ///
    /// # Panics
    /// If the weight is cut otherwise.
    pub fn times(&self, weight: &Weight, bias: Option<&Tensor<1>>) -> Tensor<2> {
        let products = self.products(weight);
        let client = products.client.clone();
        let (rows, out) = (self.rows, weight.out);
        let y = empty_device_contiguous_dtype(
            client.clone(),
            products.device.clone(),
            [rows, out].into(),
            DType::F32,
        );
        // A buffer that is not asked for stands in for one that is not there.
        let sums = weight.zeros.as_ref().map_or_else(|| self.zeros.clone(), |_| self.sums(weight.segments));
        let zeros = weight.zeros.as_ref().unwrap_or(&weight.sums).clone();
        let added = bias.and_then(on_cube);
        let of_a_run = match self.cut.given {
            Some(_) => rows * weight.segments,
            None => self.cut.run / self.cut.width,
        };
        let of_runs = RunsLaunch::new(of_a_run, weight.segments);
        let (cubes, units) = unit_a_value(rows * out);
        outputs::launch(
            &client,
            cubes,
            units,
            products.into_buffer_arg(),
            self.deltas.clone().into_buffer_arg(),
            self.zeros.clone().into_buffer_arg(),
            sums.into_buffer_arg(),
            weight.deltas.clone().into_buffer_arg(),
            weight.sums.clone().into_buffer_arg(),
            zeros.into_buffer_arg(),
            added.clone().unwrap_or_else(|| weight.deltas.clone()).into_buffer_arg(),
            y.clone().into_buffer_arg(),
            of_runs,
            rows,
            out,
            self.cut.width as i32,
            weight.has_zeros(),
            added.is_some(),
        );
        Tensor::from_primitive::<Cube>(y)
    }

    /// Σ a·c by segment, `[segments, rows, out]`, exact.
    fn products(&self, weight: &Weight) -> CubeTensor {
        assert_eq!(weight.segments, self.channels / self.cut.width, "rows are cut alike");
        let weight = permute(weight.codes.clone(), &[0, 2, 1]);
        matmul(self.codes.clone(), weight, None, MatmulStrategy::default(), DType::I32)
            .expect("CubeK has a kernel for every type that the device has")
    }

    /// Σ a of every segment and row, `[segments, rows]`.
    fn sums(&self, segments: usize) -> CubeTensor {
        let client = self.codes.client.clone();
        let shape = [segments, self.rows].into();
        let sums =
            empty_device_contiguous_dtype(client.clone(), self.codes.device.clone(), shape, DType::I32);
        let launch = match self.storage {
            Storage::I8 => sum_rows::launch::<i8>,
            Storage::I32 => sum_rows::launch::<i32>,
        };
        let (cubes, units) = unit_a_value(segments * self.rows);
        launch(
            &client,
            cubes,
            units,
            self.codes.clone().into_buffer_arg(),
            sums.clone().into_buffer_arg(),
            self.cut.width,
        );
        sums
    }
}

/// Where the code of a value goes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Place {
    /// Channels of a row.
    channels: usize,
    /// Places of a segment.
    width: usize,
    /// Codes of a segment, all rows.
    segment: usize,
}

#[cube]
fn place_of(at: usize, place: &Place) -> usize {
    let row = at / place.channels;
    let channel = at % place.channels;
    channel / place.width * place.segment + row * place.width + channel % place.width
}

/// The code of a value, moved into the storage's range.
#[cube]
fn code_of(x: f32, delta: f32, zero: f32, moved: f32, codes: &Codes) -> f32 {
    clamp((x / delta).round() + zero, codes.least, codes.most) - moved
}

/// One cube a run.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn encode_runs<I: Int>(
    x: &[f32],
    out: &mut [I],
    deltas: &mut [f32],
    zeros: &mut [i32],
    codes: &Codes,
    place: &Place,
    moved: f32,
    #[comptime] run: usize,
    #[comptime] units: usize,
    #[comptime] convention: Convention,
) {
    let from = CUBE_POS * run;
    let unit = UNIT_POS as usize;
    let (low, high, broken) = range_of(x, from, run, units);
    let mut lows = Shared::new_slice(units);
    let mut highs = Shared::new_slice(units);
    let (delta, zero) = scale_of(low, high, &mut lows, &mut highs, codes, units, convention);
    let mut i = unit;
    while i < run {
        out[place_of(from + i, place)] = I::cast_from(code_of(x[from + i], delta, zero, moved, codes));
        i += units;
    }
    // The ends have been read.
    sync_cube();
    lows[unit] = broken;
    sync_cube();
    if unit == 0 {
        let mut any = f32::new(0.0);
        let mut i = comptime!(0usize).runtime();
        while i < units {
            any += lows[i];
            i += 1;
        }
        deltas[CUBE_POS] = delta + any;
        zeros[CUBE_POS] = i32::cast_from(zero - moved);
    }
}

/// One unit a value.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn encode_values<I: Int>(
    x: &[f32],
    out: &mut [I],
    deltas: &mut [f32],
    codes: &Codes,
    place: &Place,
    moved: f32,
    delta: f32,
    zero: f32,
) {
    let at = ABSOLUTE_POS;
    if at < x.len() {
        if x[at].is_nan() {
            deltas[0] = x[at];
        }
        out[place_of(at, place)] = I::cast_from(code_of(x[at], delta, zero, moved, codes));
    }
}

/// One unit a row of a segment.
#[cube(launch)]
fn sum_rows<I: Int>(codes: &[I], sums: &mut [i32], width: usize) {
    let at = ABSOLUTE_POS;
    if at < sums.len() {
        let mut sum = i32::new(0);
        let mut i = comptime!(0usize).runtime();
        while i < width {
            sum += i32::cast_from(codes[at * width + i]);
            i += 1;
        }
        sums[at] = sum;
    }
}

/// Which run a segment of a row is in.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Runs {
    /// Segments that share a scale, row behind row.
    segments_to_a_run: usize,
    /// Segments of a row.
    segments: usize,
}

/// One unit an output.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a launch has no structure around its buffers")]
fn outputs(
    products: &[i32],
    deltas: &[f32],
    zeros: &[i32],
    sums: &[i32],
    weight_deltas: &[f32],
    weight_sums: &[i32],
    weight_zeros: &[i32],
    bias: &[f32],
    y: &mut [f32],
    runs: &Runs,
    rows: usize,
    out: usize,
    width: i32,
    #[comptime] with_zeros: bool,
    #[comptime] with_bias: bool,
) {
    let at = ABSOLUTE_POS;
    if at < y.len() {
        let row = at / out;
        let column = at % out;
        let mut value = f32::new(0.0);
        let mut segment = comptime!(0usize).runtime();
        while segment < runs.segments {
            let run = (row * runs.segments + segment) / runs.segments_to_a_run;
            let of_weight = segment * out + column;
            let mut sum = products[(segment * rows + row) * out + column];
            sum -= zeros[run] * weight_sums[of_weight];
            if with_zeros {
                sum += weight_zeros[of_weight] * (sums[segment * rows + row] - zeros[run] * width);
            }
            value += f32::cast_from(sum) * (weight_deltas[of_weight] * deltas[run]);
            segment += 1;
        }
        if with_bias {
            value += bias[column];
        }
        y[at] = value;
    }
}
