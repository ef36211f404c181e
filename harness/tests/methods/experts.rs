//! Steps that read inputs, on experts: each has a second moment of its own, over the tokens that reach it.

use harness::quantize::StepError;
use harness::quantize::direct::Direct;
use models::{Decoder, Port, Site};

use crate::pairs::planned;
use crate::recipes::{make, oracle, scrambled, try_make, values};

const GPTQ: &str = r#"{ step = "weights", bits = 3, granularity = "group(8)", solver = "gptq" }"#;

fn samples(tokens: usize) -> Vec<Vec<u32>> {
    scrambled(tokens.div_ceil(16), tokens.min(16), 64, 1)
}

fn experts(decoder: &Decoder) -> Vec<Site> {
    decoder.groups().into_iter().map(|(site, _)| site).filter(|site| site.expert.is_some()).collect()
}

#[test]
fn gptq_solves_every_expert_by_its_own_tokens() {
    let original = oracle("mixtral");
    for rest in ["", ", sequential = \"group\"", ", hessian-inputs = \"fp\"", ", hessian-inputs = \"waq\""] {
        let recipe = GPTQ.replace(" }", &format!("{rest} }}"));
        let made = make(&recipe, &original, &mut Direct::new(samples(512), Some(1)));
        let sites = made.fitted["0.weights"]["sites"].as_object().unwrap();
        let groups = original.groups().len() - 1;
        assert_eq!((sites.len(), made.fitted["0.weights"]["groups"].as_u64()), (groups, Some(groups as u64)));
        let mut better = 0;
        for site in experts(&original) {
            let note = &sites[&site.to_string()];
            let number = |key: &str| note[key].as_f64().unwrap();
            assert!(number("loss") <= number("nearest-loss"), "{site}: {note}");
            better += u32::from(number("loss") < number("nearest-loss"));
        }
        assert!(better >= 12, "{rest}: {better} of 16 experts' groups are better");
    }
}

#[test]
fn an_expert_that_no_token_reached_is_rounded_to_nearest_and_recorded() {
    let original = oracle("mixtral");
    let made = make(GPTQ, &original, &mut Direct::new(samples(1), Some(1)));
    let nearest = GPTQ.replace(", solver = \"gptq\"", "");
    let nearest = make(&nearest, &original, &mut Direct::default());
    let weight = |decoder: &Decoder, site: Site| {
        let groups = decoder.groups();
        let (_, group) = groups.iter().find(|(at, _)| *at == site).unwrap();
        values(&group.linears[0].weight)
    };
    let mut unseen = 0;
    for site in experts(&original) {
        let note = &made.fitted["0.weights"]["sites"][site.to_string()];
        assert!(note["fewer-tokens-than-channels"].as_u64().unwrap() <= 1, "{site}: {note}");
        if note["fewer-tokens-than-channels"] == 0 {
            assert_eq!(weight(&made.decoder, site), weight(&nearest.decoder, site), "{site}");
            assert!(!note["rounded-to-nearest"].as_array().unwrap().is_empty());
            unseen += 1;
        }
    }
    assert_eq!(unseen, 2 * 2 * 2, "one token reaches two of a block's four experts");
}

#[test]
fn outlier_channels_of_experts_are_their_own() {
    let original = oracle("mixtral");
    let recipe = format!(r#"{{ step = "keep", method = "channels", count = 8 }}, {GPTQ}"#);
    let made = make(&recipe, &original, &mut Direct::new(samples(512), Some(1)));
    let orders: Vec<&Vec<usize>> =
        (0..4).map(|e| &made.tap.layouts[&Site::expert(0, e, Port::DownIn)].order).collect();
    assert!(orders.windows(2).any(|pair| pair[0] != pair[1]), "experts read different things");
    assert!(made.tap.layouts.keys().all(|site| experts(&original).contains(site) || site.expert.is_none()));
    assert!(!made.tap.layouts.contains_key(&Site::block(0, Port::DownIn)), "there is no such group");
}

#[test]
fn two_models_are_not_compared_expert_by_expert() {
    let original = oracle("mixtral");
    let recipe = GPTQ.replace(" }", ", asymmetric-calibration = 0.25 }");
    let refused = try_make(&recipe, &original, &mut Direct::new(samples(64), Some(1)));
    assert!(matches!(refused.err(), Some((_, StepError::Experts))));
    // And before the weights are read.
    assert!(planned(&recipe, &original).unwrap_err().to_string().contains("leave it out"));
    assert_eq!((planned(&recipe, &oracle("mistral")), planned(GPTQ, &original)), (Ok(()), Ok(())));
    let attention = recipe.replace(" }", ", sites = [\"attn_in\", \"o_in\"] }");
    assert_eq!(planned(&attention, &original), Ok(()));
    make(&attention, &original, &mut Direct::new(samples(64), Some(1)));
}
