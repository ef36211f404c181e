//! f32 products of linear layers at the widths of a small model, on the host: this project's, Burn's, `rten-gemm`'s with the
//! weight packed once, `faer`'s and OpenBLAS's, by turns in one run.
//!
//!     cargo run --release --manifest-path scripts/compare_products/Cargo.toml [-- ROWS [ROUNDS]]
//!
//! y = x·Wᵀ with x `[ROWS, in]` and W `[out, in]` as a checkpoint has it; 512 rows, medians of 9 rounds, unless said
//! otherwise. Prints GFLOP/s (2·rows·in·out by the median time; the slowest and the fastest round behind it). Outputs are
//! compared before anything is timed. OpenBLAS is `libopenblas.so.0` (Debian's libopenblas0-pthread), or what the
//! environment's OPENBLAS names; without it the column is missing and a line says so. Threads: RAYON_NUM_THREADS, else all.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use libloading::Library;
use models::Linear;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;

/// `[in, out]` of SmolLM2-135M: q and o, k and v, gate and up, down; then a head of 49152 words.
const SHAPES: [[usize; 2]; 5] = [[576, 576], [576, 192], [576, 1536], [1536, 576], [576, 49152]];

/// Row order; transposed; not transposed. <https://www.netlib.org/blas/blast-forum/cblas.tgz>
const CBLAS: [i32; 3] = [101, 112, 111];

type Sgemm = unsafe extern "C" fn(
    i32,
    i32,
    i32,
    i32,
    i32,
    i32,
    f32,
    *const f32,
    i32,
    *const f32,
    i32,
    f32,
    *mut f32,
    i32,
);

/// The operands of one shape, as each contender wants them.
struct Product<'a> {
    rows: usize,
    width: usize,
    out: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    on_burn: Tensor<2>,
    linear: Linear,
    for_rten: NdTensor<f32, 2>,
    rten: &'a GemmExecutor<f32, f32, f32>,
    packed: PackedBMatrix<f32>,
    openblas: Option<&'a Sgemm>,
    y: Vec<f32>,
}

/// Name, and what leaves its output in `y`; `false` where it cannot run.
type Contender = (&'static str, fn(&mut Product) -> bool);

const CONTENDERS: [Contender; 5] = [
    ("this project", |product| {
        product.y = read(product.linear.forward(product.on_burn.clone()));
        true
    }),
    ("Burn (flex)", |product| {
        product.y = read(product.on_burn.clone().matmul(product.linear.weight.clone().transpose()));
        true
    }),
    ("rten-gemm, packed", |product| {
        let inputs = (GemmInputA::Unpacked(product.for_rten.view()), GemmInputB::Packed(&product.packed));
        product.rten.gemm(&mut product.y, inputs.0, inputs.1, GemmOptions::default()).is_ok()
    }),
    ("faer", |product| {
        let (rows, width, out) = (product.rows, product.width, product.out);
        let x = MatRef::from_row_major_slice(&product.x, rows, width);
        let weight = MatRef::from_row_major_slice(&product.weight, out, width);
        let y = MatMut::from_row_major_slice_mut(&mut product.y, rows, out);
        matmul(y, Accum::Replace, x, weight.transpose(), 1.0, Par::rayon(0));
        true
    }),
    ("OpenBLAS", |product| {
        let Some(sgemm) = product.openblas else { return false };
        let [row_order, transposed, plain] = CBLAS;
        let [rows, width, out] = [product.rows, product.width, product.out].map(|n| n as i32);
        let (x, weight, y) = (product.x.as_ptr(), product.weight.as_ptr(), product.y.as_mut_ptr());
        // SAFETY: x is rows × width, weight out × width and y rows × out values, all in rows.
        unsafe {
            sgemm(row_order, plain, transposed, rows, out, width, 1.0, x, width, weight, width, 0.0, y, out);
        }
        true
    }),
];

fn read(y: Tensor<2>) -> Vec<f32> {
    y.into_data().try_to_vec().expect("f32 in host memory")
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise| arguments.next().map_or(Ok(otherwise), |text| text.parse::<usize>());
    let (rows, rounds) = (number(512)?, number(9)?.max(1));
    let library = std::env::var("OPENBLAS").unwrap_or_else(|_| "libopenblas.so.0".into());
    // SAFETY: opening a linear algebra library runs its initialisers, which ask for nothing.
    let opened = unsafe { Library::new(&library) };
    if let Err(error) = &opened {
        println!("OpenBLAS is left out: {error}\n");
    }
    let opened = opened.ok();
    let threads = rayon::current_num_threads();
    // SAFETY: the types are those of cblas.h and openblas_config.h, with 32-bit integers.
    let sgemm = opened.as_ref().map(|library| unsafe { library.get::<Sgemm>(b"cblas_sgemm") }).transpose()?;
    if let Some(library) = &opened {
        // SAFETY: as above.
        unsafe { library.get::<unsafe extern "C" fn(i32)>(b"openblas_set_num_threads")?(threads as i32) };
    }
    let rten = GemmExecutor::<f32, f32, f32>::new();
    let contenders: Vec<Contender> =
        CONTENDERS.into_iter().filter(|(name, _)| *name != "OpenBLAS" || sgemm.is_some()).collect();
    println!("{threads} threads, {rows} rows, medians of {rounds} rounds (slowest to fastest), GFLOP/s\n");
    println!("| in → out | {} |", contenders.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" | "));
    println!("|:--|{}", "--:|".repeat(contenders.len()));
    let device = Device::flex();
    for [width, out] in SHAPES {
        let on_burn = Tensor::<2>::random([rows, width], Distribution::Normal(0.0, 1.0), &device);
        let weight = Tensor::<2>::random([out, width], Distribution::Normal(0.0, 0.04), &device);
        let x: Vec<f32> = on_burn.to_data().try_to_vec()?;
        let values: Vec<f32> = weight.to_data().try_to_vec()?;
        let packed = rten.prepack_b(NdTensor::from_data([out, width], values.clone()).transposed());
        let mut product = Product {
            rows,
            width,
            out,
            for_rten: NdTensor::from_data([rows, width], x.clone()),
            x,
            weight: values,
            on_burn,
            linear: Linear::new(String::new(), weight, None),
            rten: &rten,
            packed,
            openblas: sgemm.as_deref(),
            y: vec![0.0; rows * out],
        };
        agree(&mut product, &contenders)?;
        let mut seconds = vec![Vec::new(); contenders.len()];
        // A short product is repeated, so that a round takes some milliseconds.
        let flops = 2.0 * (rows * width * out) as f64;
        let times = (2e9 / flops).ceil().clamp(1.0, 50.0) as usize;
        for _ in 0..rounds {
            for ((_, run), seconds) in contenders.iter().zip(&mut seconds) {
                let began = Instant::now();
                for _ in 0..times {
                    run(&mut product);
                    black_box(&product.y);
                }
                seconds.push(began.elapsed().as_secs_f64() / times as f64);
            }
        }
        let cells = seconds.iter_mut().map(|seconds| {
            seconds.sort_by(f64::total_cmp);
            let [fast, median, slow] =
                [0, seconds.len() / 2, seconds.len() - 1].map(|i| flops / seconds[i] * 1e-9);
            format!("{median:.0} ({slow:.0}–{fast:.0})")
        });
        println!("| {width} → {out} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// Every contender computes the same product.
fn agree(product: &mut Product, contenders: &[Contender]) -> Result<(), Box<dyn Error>> {
    let mut first = Vec::new();
    for (name, run) in contenders {
        product.y = vec![f32::NAN; product.rows * product.out];
        if !run(product) {
            return Err(format!("{name} did not run").into());
        }
        if first.is_empty() {
            first.clone_from(&product.y);
        }
        let largest = first.iter().fold(0f32, |largest, y| largest.max(y.abs()));
        let off = first
            .iter()
            .zip(&product.y)
            .map(|(a, b)| (a - b).abs())
            .fold(0f32, |most, off| if off.is_nan() { f32::INFINITY } else { most.max(off) });
        if off > 1e-5 * largest {
            return Err(format!("{name} differs by {off} where values reach {largest}").into());
        }
    }
    Ok(())
}
