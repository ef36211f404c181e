//! Finite fields, as far as Paley's constructions need them: sums of elements, and which elements are squares.

/// p and k where q = p^k for a prime p and k ≥ 1.
pub fn prime_power(q: usize) -> Option<(usize, usize)> {
    let prime = (2..).take_while(|d| d * d <= q).find(|d| q.is_multiple_of(*d)).unwrap_or(q);
    let (mut rest, mut power) = (q, 0);
    while prime > 1 && rest.is_multiple_of(prime) {
        (rest, power) = (rest / prime, power + 1);
    }
    (rest == 1 && power > 0).then_some((prime, power))
}

/// The field with p^k elements, p odd. An element is a number below p^k, whose digits to the base p are the coefficients
/// of a polynomial over the integers modulo p, lowest first.
pub struct Field {
    prime: usize,
    power: usize,
    /// By element.
    character: Vec<i8>,
}

impl Field {
    /// The field with `prime`^`power` elements.
    pub fn new(prime: usize, power: usize) -> Self {
        let size = prime.pow(power as u32);
        let modulus = irreducible(prime, power);
        let mut character = vec![-1i8; size];
        for element in 0..size {
            let digits = digits(element, prime, power);
            character[number(&square(&digits, &modulus, prime), prime)] = 1;
        }
        character[0] = 0;
        Self { prime, power, character }
    }

    /// How many elements it has.
    pub fn size(&self) -> usize {
        self.character.len()
    }

    /// 1 for a square, −1 for another element, 0 for zero.
    pub fn character(&self, element: usize) -> i8 {
        self.character[element]
    }

    /// a + b
    pub fn sum(&self, a: usize, b: usize) -> usize {
        self.digitwise(a, b, |a, b| (a + b) % self.prime)
    }

    /// a − b
    pub fn difference(&self, a: usize, b: usize) -> usize {
        self.digitwise(a, b, |a, b| (a + self.prime - b) % self.prime)
    }

    fn digitwise(&self, mut a: usize, mut b: usize, of: impl Fn(usize, usize) -> usize) -> usize {
        let (mut found, mut place) = (0, 1);
        for _ in 0..self.power {
            found += place * of(a % self.prime, b % self.prime);
            (a, b, place) = (a / self.prime, b / self.prime, place * self.prime);
        }
        found
    }
}

fn digits(mut element: usize, prime: usize, count: usize) -> Vec<usize> {
    (0..count)
        .map(|_| {
            let digit = element % prime;
            element /= prime;
            digit
        })
        .collect()
}

fn number(digits: &[usize], prime: usize) -> usize {
    digits.iter().rev().fold(0, |number, digit| number * prime + digit)
}

/// The square of a polynomial, modulo a monic one.
fn square(x: &[usize], modulus: &[usize], prime: usize) -> Vec<usize> {
    let mut product = vec![0; 2 * x.len() - 1];
    for (i, a) in x.iter().enumerate() {
        for (j, b) in x.iter().enumerate() {
            product[i + j] = (product[i + j] + a * b) % prime;
        }
    }
    remainder(product, modulus, prime)
}

/// The remainder of a division by a monic polynomial, with as many coefficients as its degree.
fn remainder(mut x: Vec<usize>, by: &[usize], prime: usize) -> Vec<usize> {
    let degree = by.len() - 1;
    for top in (degree..x.len()).rev() {
        let lead = x[top];
        for (i, b) in by.iter().enumerate() {
            let at = top - degree + i;
            x[at] = (x[at] + (prime - lead) * b) % prime;
        }
    }
    x.resize(degree, 0);
    x
}

/// The first monic polynomial of this degree that no monic polynomial of at most half its degree divides.
fn irreducible(prime: usize, degree: usize) -> Vec<usize> {
    let monic = |degree: usize| {
        (0..prime.pow(degree as u32)).map(move |n| {
            let mut polynomial = digits(n, prime, degree);
            polynomial.push(1);
            polynomial
        })
    };
    let divides = |by: &[usize], x: &[usize]| remainder(x.to_vec(), by, prime).iter().all(|r| *r == 0);
    monic(degree)
        .find(|x| (1..=degree / 2).all(|d| !monic(d).any(|by| divides(&by, x))))
        .expect("there are irreducible polynomials of every degree over every prime field")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prime_powers_are_told_from_other_numbers() {
        let expected =
            [(2, 2, 1), (9, 3, 2), (25, 5, 2), (27, 3, 3), (343, 7, 3), (83, 83, 1), (4096, 2, 12)];
        for (q, prime, power) in expected {
            assert_eq!(prime_power(q), Some((prime, power)), "{q}");
        }
        for q in [0, 1, 6, 12, 35, 45, 100, 1001] {
            assert_eq!(prime_power(q), None, "{q}");
        }
    }

    #[test]
    fn half_of_the_elements_that_are_not_zero_are_squares_and_the_character_is_that_of_a_field() {
        for (prime, power) in [(3, 1), (13, 1), (3, 2), (5, 2), (3, 3), (7, 2), (7, 3), (3, 5)] {
            let field = Field::new(prime, power);
            let q = field.size();
            assert_eq!(q, prime.pow(power as u32));
            let squares = (0..q).filter(|e| field.character(*e) == 1).count();
            assert_eq!(squares, (q - 1) / 2, "GF({prime}^{power})");
            // −1 is a square exactly where q ≡ 1 modulo 4.
            let negative = field.character(field.difference(0, 1));
            assert_eq!(negative == 1, q % 4 == 1, "GF({prime}^{power})");
            // Σ χ(x)·χ(x + c) = −1 for every c ≠ 0 (Jacobsthal): only true of the quadratic character.
            for c in 1..q {
                let sum: i32 = (0..q)
                    .map(|x| i32::from(field.character(x)) * i32::from(field.character(field.sum(x, c))))
                    .sum();
                assert_eq!(sum, -1, "GF({prime}^{power}), c = {c}");
            }
        }
    }
}
