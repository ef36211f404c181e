//! Loops over f32 slices, compiled for several x86-64 feature levels and chosen at run time.
//!
//! Rust compiles for the lowest common processor; these few loops are where that costs the most. The same source is
//! compiled once per level and never fused into multiply-adds, so every level gives the same bits.

/// Compiles a function for AVX-512, AVX2 and the baseline, and picks one when it is called.
#[macro_export]
macro_rules! per_processor {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                if std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has every feature the function was compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if std::is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

/// Independent sums of a reduction; fixed, so that the order of additions is the same on every processor.
const LANES: usize = 16;

#[inline(always)]
fn reduce(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

per_processor! {
    /// Σ x
    pub fn sum(values: &[f32]) -> f32 {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += chunk[i];
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            sums[i] += x;
        }
        reduce(sums)
    }
}

per_processor! {
    /// Σ x²
    pub fn sum_of_squares(values: &[f32]) -> f32 {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += chunk[i] * chunk[i];
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            sums[i] += x * x;
        }
        reduce(sums)
    }
}

/// The end of a slice among lanes of −∞, whose exponentials are 0: one value at a time it would take as long as many
/// whole chunks.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

per_processor! {
    /// max x, of those that are numbers; −∞ for an empty slice.
    pub fn maximum(values: &[f32]) -> f32 {
        let mut highest = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks.iter().chain([&padded(rest)]) {
            for i in 0..LANES {
                highest[i] = if chunk[i] > highest[i] { chunk[i] } else { highest[i] };
            }
        }
        highest.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

per_processor! {
    /// Σ e^(x − shift)
    pub fn sum_of_exps(values: &[f32], shift: f32) -> f32 {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks.iter().chain([&padded(rest)]) {
            for i in 0..LANES {
                sums[i] += exp(chunk[i] - shift);
            }
        }
        reduce(sums)
    }
}

per_processor! {
    /// x ← softmax(scale · x), for a positive scale.
    pub fn softmax(values: &mut [f32], scale: f32) {
        let highest = maximum(values);
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = values.as_chunks_mut::<LANES>();
        let mut last = padded(rest);
        for chunk in chunks.iter_mut().chain([&mut last]) {
            for i in 0..LANES {
                chunk[i] = exp((chunk[i] - highest) * scale);
                sums[i] += chunk[i];
            }
        }
        rest.copy_from_slice(&last[..rest.len()]);
        let share = 1.0 / reduce(sums);
        for x in values {
            *x *= share;
        }
    }
}

per_processor! {
    /// gate ← silu(gate) · up
    pub fn silu_times(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

per_processor! {
    /// gate ← gelu(gate) · up, gelu in its tanh form: with u = sqrt(2/π) · (x + 0.044715 x³), x/2 · (1 + tanh u) is
    /// x / (1 + e^−2u).
    pub fn gelu_tanh_times(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = gelu_tanh(*g) * u;
        }
    }
}

per_processor! {
    /// x ← gelu(x), in its tanh form
    pub fn gelu_tanh_all(values: &mut [f32]) {
        for x in values {
            *x = gelu_tanh(*x);
        }
    }
}

per_processor! {
    /// x ← x / (1 + e^−x)
    pub fn silu_all(values: &mut [f32]) {
        for x in values {
            *x /= 1.0 + exp(-*x);
        }
    }
}

per_processor! {
    /// x ← cap · tanh(factor · x / cap), within 10⁻⁷ of the cap
    pub fn soft_cap(values: &mut [f32], factor: f32, cap: f32) {
        let factor = factor / cap;
        for x in values {
            let y = *x * factor;
            let t = exp(-2.0 * y.abs());
            *x = (cap * (1.0 - t) / (1.0 + t)).copysign(y);
        }
    }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWO_ROOT: f32 = 1.595_769;
    x / (1.0 + exp(-TWO_ROOT * (x + 0.044_715 * x * x * x)))
}

/// e^x within 2 units in the last place, without a branch, so that loops over it become vector code.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, e^r by the polynomial of Cephes' `expf`, and 2^n through the exponent bits.
/// Below −87.3 the result is 0, above 88.3 it is infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer without an instruction that old processors lack.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let e = p * (r * r) + r + 1.0;
    // n in the last bits of the sum: a conversion that saturates would be made one value at a time.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = e * power;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// e^x in f64 for x ≤ 0, within 2 units in the last place and without a branch; below −708 it is 0.
///
/// As [`exp`], with the first fourteen terms of the series of e^r: what is left out is below 10⁻¹⁷.
#[inline(always)]
pub fn exp_below_zero(x: f64) -> f64 {
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    // 1.5·2^52: the last bits of what is added to it are the nearest integer.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// 1/k!, k = 13 … 0.
    const TERMS: [f64; 14] = [
        1.605_904_383_682_161_3e-10,
        2.087_675_698_786_81e-9,
        2.505_210_838_544_172e-8,
        2.755_731_922_398_589_3e-7,
        2.755_731_922_398_589e-6,
        2.480_158_730_158_73e-5,
        1.984_126_984_126_984e-4,
        1.388_888_888_888_888_8e-3,
        8.333_333_333_333_333e-3,
        4.166_666_666_666_666_4e-2,
        1.666_666_666_666_666_6e-1,
        5e-1,
        1.0,
        1.0,
    ];
    let clamped = if x < -708.0 { -708.0 } else { x };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = TERMS[0];
    for term in &TERMS[1..] {
        p = p * r + term;
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_below_zero_agrees_with_the_standard_library() {
        let mut worst = 0.0f64;
        for i in 0..700_000 {
            let x = -f64::from(i) / 1000.3;
            worst = worst.max((exp_below_zero(x) / x.exp() - 1.0).abs());
        }
        assert!(worst <= 2.0 * f64::EPSILON, "relative error {worst:e}");
        assert_eq!(exp_below_zero(0.0), 1.0);
        assert_eq!(exp_below_zero(-1e300), 0.0);
        assert_eq!(exp_below_zero(f64::NEG_INFINITY), 0.0);
        assert!(exp_below_zero(f64::NAN).is_nan());
    }

    #[test]
    fn the_end_of_a_slice_is_as_its_middle() {
        let values: Vec<f32> = (0..40).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        for length in 0..values.len() {
            let values = &values[..length];
            let expected = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(maximum(values), expected);
            let mut shares = values.to_vec();
            softmax(&mut shares, 0.7);
            let exps: f64 = values.iter().map(|&x| f64::from(0.7 * x).exp()).sum();
            for (share, &x) in shares.iter().zip(values) {
                assert!((f64::from(*share) - f64::from(0.7 * x).exp() / exps).abs() < 1e-6);
            }
            let exps: f64 = values.iter().map(|&x| f64::from(x - 1.0).exp()).sum();
            assert!((f64::from(sum_of_exps(values, 1.0)) - exps).abs() <= 1e-5 * exps);
        }
        assert_eq!(maximum(&[f32::NAN, 1.0]), 1.0);
        let mut hidden = [f32::NAN, 1.0];
        softmax(&mut hidden, 1.0);
        assert!(hidden.iter().all(|x| x.is_nan()), "what is no number is not hidden");
    }

    #[test]
    fn exp_agrees_with_the_standard_library() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 2.5e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_their_formulas() {
        let values: Vec<f32> = (-3000..3000).map(|i| i as f32 / 100.0).collect();
        let (mut gelu, mut silu, mut capped, mut gated) =
            (values.clone(), values.clone(), values.clone(), values.clone());
        gelu_tanh_all(&mut gelu);
        silu_all(&mut silu);
        soft_cap(&mut capped, 0.5, 7.0);
        gelu_tanh_times(&mut gated, &values);
        for (i, &x) in values.iter().enumerate() {
            let x = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let expected = x / 2.0 * (1.0 + u.tanh());
            let close =
                |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 1e-6 * x.abs().max(1.0);
            assert!(close(gelu[i], expected), "gelu({x}) = {}", gelu[i]);
            assert!(close(gated[i] / x.abs().max(1.0) as f32, expected * x / x.abs().max(1.0)), "gated {x}");
            assert!(close(silu[i], x / (1.0 + (-x).exp())), "silu({x}) = {}", silu[i]);
            assert!(close(capped[i], 7.0 * (0.5 * x / 7.0).tanh()), "capped {x}: {}", capped[i]);
        }
        let mut extremes = [f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::NAN];
        soft_cap(&mut extremes, 1.0, 30.0);
        assert_eq!(extremes[..3], [30.0, -30.0, 0.0]);
        assert!(extremes[3].is_nan());
    }

    #[test]
    fn reductions_agree_with_plain_sums() {
        let values: Vec<f32> = (0..1003).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
        let total: f64 = values.iter().map(|&x| f64::from(x)).sum();
        assert!((f64::from(sum(&values)) - total).abs() < 1e-3);
        let squares: f64 = values.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((f64::from(sum_of_squares(&values)) - squares).abs() < 1e-3 * squares);
        let exps: f64 = values.iter().map(|&x| f64::from(x - 2.0).exp()).sum();
        assert!((f64::from(sum_of_exps(&values, 2.0)) - exps).abs() < 1e-5 * exps);
        assert_eq!(maximum(&values), values.iter().copied().fold(f32::MIN, f32::max));
        let mut shares = values.clone();
        softmax(&mut shares, 0.5);
        let halves: f64 = values.iter().map(|&x| f64::from(x / 2.0).exp()).sum();
        for (share, &x) in shares.iter().zip(&values) {
            assert!((f64::from(*share) - f64::from(x / 2.0).exp() / halves).abs() < 1e-6);
        }
    }
}
