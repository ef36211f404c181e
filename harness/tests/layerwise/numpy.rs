//! Normal values as NumPy's `Generator.normal` draws them: PCG64 (O'Neill) and the ziggurat of 256 strips (Marsaglia and
//! Tsang), so that a table made by a NumPy program can be made again.

/// The multiplier of PCG's 128-bit congruential generator.
const MULTIPLIER: u128 = 0x2360ed051fc65da44385df649fccf645;
/// The increment that `default_rng(0)` has.
const INCREMENT: u128 = 0x418ddadb3af71a82588133bc447873a9;

/// Where the ziggurat's tail begins, and the area of a strip.
const TAIL: f64 = 3.654_152_885_361_009;
const AREA: f64 = 0.004_928_673_233_974_655;
const STRIPS: usize = 256;
/// 2⁵²
const UNIT: f64 = 4_503_599_627_370_496.0;

pub struct Generator {
    state: u128,
    /// Width of every strip; the lowest stands for tail and rectangle together.
    widths: [f64; STRIPS],
    /// exp(−x²/2) at the strips' ends.
    heights: [f64; STRIPS],
    /// Below it a value of the strip lies under the curve for certain.
    inside: [u64; STRIPS],
}

impl Generator {
    /// In a state that `bit_generator.state` shows.
    pub fn new(state: u128) -> Self {
        let curve = |x: f64| (-0.5 * x * x).exp();
        let (mut widths, mut heights, mut inside) = ([0.0; STRIPS], [1.0; STRIPS], [0; STRIPS]);
        widths[STRIPS - 1] = TAIL;
        for i in (1..STRIPS - 1).rev() {
            let x: f64 = widths[i + 1];
            widths[i] = (-2.0 * (AREA / x + curve(x)).ln()).sqrt();
        }
        widths[0] = AREA / curve(TAIL);
        for i in 1..STRIPS {
            heights[i] = curve(widths[i]);
        }
        inside[0] = (TAIL / widths[0] * UNIT) as u64;
        for i in 2..STRIPS {
            inside[i] = (widths[i - 1] / widths[i] * UNIT) as u64;
        }
        Self { state, widths, heights, inside }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (2.0 * UNIT)
    }

    fn standard(&mut self) -> f64 {
        loop {
            let drawn = self.next();
            let strip = (drawn & 0xff) as usize;
            let rest = drawn >> 8;
            let place = (rest >> 1) & 0x000f_ffff_ffff_ffff;
            let x = place as f64 * (self.widths[strip] / UNIT);
            let x = if rest & 1 == 1 { -x } else { x };
            if place < self.inside[strip] {
                return x;
            }
            if strip == 0 {
                loop {
                    let beyond = -(-self.uniform()).ln_1p() / TAIL;
                    let height = -(-self.uniform()).ln_1p();
                    if 2.0 * height > beyond * beyond {
                        let negative = (place >> 8) & 1 == 1;
                        return if negative { -(TAIL + beyond) } else { TAIL + beyond };
                    }
                }
            }
            let (upper, lower) = (self.heights[strip - 1], self.heights[strip]);
            if (upper - lower) * self.uniform() + lower < (-0.5 * x * x).exp() {
                return x;
            }
        }
    }

    pub fn normal(&mut self, count: usize, deviation: f64) -> Vec<f64> {
        (0..count).map(|_| deviation * self.standard()).collect()
    }
}
