//! CPython's generator and texts.

use harness::evaluate::python::random::Random;
use harness::evaluate::python::text::{capitalize, is_space};

use super::*;

#[test]
fn the_generator_is_cpython_s() {
    for record in fixture("python.json")["seeds"].as_array().unwrap() {
        let list = |key: &str| record[key].as_array().unwrap();
        let place = |value: &Value| value.as_u64().unwrap() as usize;
        let seed = record["seed"].as_u64().unwrap();
        // One generator for all, in the script's order: a draw too many anywhere shows in everything after it.
        let mut random = Random::new(seed);
        for expected in list("random") {
            assert_eq!(Some(random.random()), expected.as_f64(), "seed {seed}");
        }
        for pair in list("bits") {
            assert_eq!(Some(random.bits(place(&pair[0]) as u32)), pair[1].as_u64(), "seed {seed}, {pair}");
        }
        for pair in list("randrange") {
            assert_eq!(random.below(place(&pair[0])), place(&pair[1]), "seed {seed}, {pair}");
        }
        for case in list("sample") {
            let expected: Vec<usize> = case[2].as_array().unwrap().iter().map(place).collect();
            let drawn = random.sample(place(&case[0]), place(&case[1])).unwrap();
            assert_eq!(drawn, expected, "seed {seed}, sample({}, {})", case[0], case[1]);
        }
        let mut shuffled: Vec<usize> = (0..50).collect();
        random.shuffle(&mut shuffled);
        assert_eq!(shuffled, list("shuffle").iter().map(place).collect::<Vec<_>>(), "seed {seed}");
        for expected in list("choices") {
            assert_eq!(random.choice(1000), place(expected), "seed {seed}");
        }
        let words: Vec<u64> = (0..2000).map(|_| u64::from(random.next_u32())).collect();
        assert_eq!(words[1997..], list("far").iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>());
    }
}

#[test]
fn white_space_and_capitals_are_cpython_s() {
    let golden = fixture("python.json");
    let spaces: Vec<u64> =
        (0..=0x10ffff).filter(|&code| char::from_u32(code).is_some_and(is_space)).map(u64::from).collect();
    let expected: Vec<u64> =
        golden["spaces"].as_array().unwrap().iter().map(|code| code.as_u64().unwrap()).collect();
    assert_eq!(spaces, expected);

    let cases = ["titles", "capitalized"].map(|key| golden[key].as_array().unwrap().clone()).concat();
    assert!(cases.len() > 100);
    let wrong: Vec<String> = cases
        .iter()
        .filter(|pair| Some(capitalize(pair[0].as_str().unwrap()).as_str()) != pair[1].as_str())
        .map(|pair| format!("{pair}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
