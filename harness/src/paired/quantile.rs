//! Quantiles of χ² and F, for intervals of variances.
//!
//! By halving the distribution functions, which are the regularized incomplete gamma and beta functions; these by their
//! series and continued fractions (Abramowitz and Stegun 6.5.29, 6.5.31, 26.5.8), to about 10⁻¹².

/// Terms after which a series or a continued fraction that has not converged is taken as it is.
const TERMS: usize = 10_000;

/// ln Γ(x) for x > 0: Stirling's series behind a shift to 10 and above.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let square = x * x;
    let series =
        (1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}

/// P(a, x), the regularized lower incomplete gamma function.
fn gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..TERMS {
            term *= x / (a + n as f64);
            sum += term;
            if term < f64::EPSILON * sum {
                break;
            }
        }
        return front * sum;
    }
    // 1 − Q by the continued fraction 1/(x + 1 − a − 1·(1 − a)/(x + 3 − a − …)).
    let fraction = continued(x + 1.0 - a, |n| {
        let n = n as f64;
        (-n * (n - a), x + 2.0 * n + 1.0 - a)
    });
    1.0 - front / fraction
}

/// I_x(a, b), the regularized incomplete beta function.
fn beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta(b, a, 1.0 - x);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b)).exp() / a;
    let fraction = continued(1.0, |n| {
        let m = (n / 2) as f64;
        let numerator = if n % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        (numerator, 1.0)
    });
    front / fraction
}

/// first + a₁/(b₁ + a₂/(b₂ + …)), by Lentz's method.
fn continued(first: f64, part: impl Fn(usize) -> (f64, f64)) -> f64 {
    let away_from_zero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut value = away_from_zero(first);
    let (mut c, mut d) = (value, 0.0);
    for n in 1..TERMS {
        let (numerator, addend) = part(n);
        d = 1.0 / away_from_zero(addend + numerator * d);
        c = away_from_zero(addend + numerator / c);
        value *= c * d;
        if (c * d - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// The value below which χ² with so many degrees of freedom lies with probability `p`.
///
/// # Panics
/// If `p` is not strictly between 0 and 1, or without degrees of freedom.
pub fn chi_squared(p: f64, freedom: f64) -> f64 {
    halve(p, &[freedom], |x| gamma(0.5 * freedom, 0.5 * x))
}

/// The value below which F with so many degrees of freedom above and below lies with probability `p`.
///
/// # Panics
/// As [`chi_squared`].
pub fn f(p: f64, above: f64, below: f64) -> f64 {
    halve(p, &[above, below], |x| beta(0.5 * above, 0.5 * below, above * x / (above * x + below)))
}

/// Where a distribution on the positive numbers reaches `p`.
fn halve(p: f64, freedom: &[f64], distribution: impl Fn(f64) -> f64) -> f64 {
    assert!(p > 0.0 && p < 1.0, "a probability strictly between 0 and 1, not {p}");
    assert!(freedom.iter().all(|n| *n > 0.0), "degrees of freedom above 0, not {freedom:?}");
    // In the logarithm, because quantiles near 0 are as wanted as large ones.
    let (mut low, mut high) = (-300.0f64, 300.0f64);
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return middle.exp();
        }
        if distribution(middle.exp()) < p { low = middle } else { high = middle }
    }
}
