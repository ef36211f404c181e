//! The content id of a cell: a hash of what produces the quantized model, and of nothing else.

use serde_json::{Value, json};

use super::canonical_json;

/// The id of a cell, 32 hexadecimal characters.
///
/// `weights`, `tokenizer` and `calibration_token_hash` are hashes of content; `steps` are the recipe's with every
/// default resolved (through their types, so that a number is always written as the same JSON); `seed` is `None` where
/// no randomness was used. Names, labels, paths and devices do not enter: the same cell under another name is the same
/// cell.
///
/// The hash is blake3 in its key-derivation mode, whose context keeps these ids apart from every other hash of the same
/// bytes; the context's version rises if the meaning of an input ever changes.
pub fn cell_id(
    weights: &str,
    tokenizer: &str,
    steps: &[Value],
    calibration_token_hash: Option<&str>,
    seed: Option<u64>,
) -> String {
    let meaning = json!({
        "weights": weights,
        "tokenizer": tokenizer,
        "steps": steps,
        "calibration": calibration_token_hash,
        "seed": seed,
    });
    let mut hasher = blake3::Hasher::new_derive_key("quantscope cell v1");
    hasher.update(canonical_json(&meaning).as_bytes());
    hasher.finalize().to_hex()[..32].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn steps() -> Vec<Value> {
        vec![
            json!({ "step": "weights", "bits": 8, "granularity": "channel" }),
            json!({ "step": "activations" }),
        ]
    }

    fn id() -> String {
        cell_id("w", "t", &steps(), Some("c"), Some(7))
    }

    #[test]
    fn every_input_changes_it() {
        let mut bits = steps();
        bits[0]["bits"] = json!(4);
        let mut swapped = steps();
        swapped.reverse();
        let ids = [
            id(),
            cell_id("w2", "t", &steps(), Some("c"), Some(7)),
            cell_id("w", "t2", &steps(), Some("c"), Some(7)),
            cell_id("t", "w", &steps(), Some("c"), Some(7)),
            cell_id("w", "t", &[], Some("c"), Some(7)),
            cell_id("w", "t", &bits, Some("c"), Some(7)),
            cell_id("w", "t", &swapped, Some("c"), Some(7)),
            cell_id("w", "t", &steps(), Some("c2"), Some(7)),
            cell_id("w", "t", &steps(), None, Some(7)),
            cell_id("w", "t", &steps(), Some("null"), Some(7)),
            cell_id("w", "t", &steps(), Some("c"), Some(8)),
            cell_id("w", "t", &steps(), Some("c"), Some(0)),
            cell_id("w", "t", &steps(), Some("c"), None),
        ];
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn it_is_stable_across_versions() {
        // By Python's blake3 package, context "quantscope cell v1", over the text
        // {"calibration":"c","seed":7,"steps":[{"bits":8,"granularity":"channel","step":"weights"},
        // {"step":"activations"}],"tokenizer":"t","weights":"w"} without the line break.
        assert_eq!(id(), "60aecaac8ce81a1d751a1a2af9ab6f3f");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn reversed_keys(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                Value::Object(map.iter().rev().map(|(k, v)| (k.clone(), reversed_keys(v))).collect())
            }
            Value::Array(items) => items.iter().map(reversed_keys).collect(),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn the_order_of_keys_does_not_matter(value in json_value()) {
            prop_assert_eq!(canonical_json(&value), canonical_json(&reversed_keys(&value)));
        }

        #[test]
        fn canonical_json_is_the_same_value(value in json_value()) {
            let text = canonical_json(&value);
            let back: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(canonical_json(&back), text);
        }
    }
}
