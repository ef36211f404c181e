//! Requests and metrics.

use harness::evaluate::requests::Request;
use harness::evaluate::requests::shots::{SEED, few_shot};
use harness::evaluate::scoring::aggregate::{Score, bootstrap, mean, mean_stderr, pooled, report, score};
use harness::evaluate::scoring::{Answer, Contribution, Judgement, Metric};
use serde_json::{Value, json};

use super::*;

const METRICS: [Metric; 8] = [
    Metric::Acc,
    Metric::AccNorm,
    Metric::AccBytes,
    Metric::Perplexity,
    Metric::WordPerplexity,
    Metric::BytePerplexity,
    Metric::BitsPerByte,
    Metric::TokenPerplexity,
];

/// Requests as the reference lists their arguments.
fn arguments(requests: &[Request]) -> Value {
    let arguments = requests.iter().map(|request| match request {
        Request::Pair { context, continuation } => json!([context, continuation]),
        Request::Text { text } => json!([text]),
    });
    Value::Array(arguments.collect())
}

/// `[[log-likelihood, greedy], …]` of pairs, `[log-likelihood]` of a text.
fn answers(answers: &Value) -> Vec<Answer> {
    let answer = |answer: &Value| Answer {
        log_likelihood: answer.as_f64().or(answer[0].as_f64()).unwrap(),
        greedy: answer[1].as_bool().unwrap_or(false),
        tokens: 1,
    };
    answers.as_array().unwrap().iter().map(answer).collect()
}

/// Compares every metric that the reference gives; returns how many.
fn compare_metrics(what: &str, judgement: &Judgement, expected: &Value) -> usize {
    let expected = expected.as_object().unwrap();
    for (name, expected) in expected {
        let metric = METRICS.into_iter().find(|metric| metric.name() == name).unwrap();
        let found = match judgement.contribution(metric) {
            Some(Contribution::Value(value)) => json!(value),
            Some(Contribution::Weighted(value, weight)) => json!([value, weight]),
            None => Value::Null,
        };
        assert_eq!(&found, expected, "{what}: {name}");
    }
    expected.len()
}

#[test]
fn requests_for_0_1_and_4_examples_are_the_reference_s() {
    let golden = fixture("tasks.json");
    let (mut compared, mut seen) = (0, Vec::new());
    for (name, record) in golden["tasks"].as_object().unwrap() {
        let task = task(name);
        seen.push(task.name());
        let items = read(task, &record["docs"], Amount::Subset);
        let pool = record.get("pool").map(|pool| read(task, pool, Amount::Examples)).unwrap_or_default();
        for (shots, expected) in record["shots"].as_object().unwrap() {
            let built = few_shot(task, &items, &pool, shots.parse().unwrap(), SEED).unwrap();
            assert_eq!(built.len(), expected.as_array().unwrap().len());
            for (i, (built, expected)) in built.iter().zip(expected.as_array().unwrap()).enumerate() {
                assert_eq!(&arguments(built), expected, "{name}, document {i}, {shots} examples");
                compared += built.len();
            }
        }
    }
    assert_eq!(compared, COMPARED, "requests in the fixture");
    seen.dedup();
    let of_the_reference = tasks::TASKS.iter().filter(|task| task.protocol() == tasks::REFERENCE);
    assert_eq!(seen, of_the_reference.map(|task| task.name()).collect::<Vec<_>>());
}

/// Requests in `tasks.json`.
const COMPARED: usize = 591;

#[test]
fn metrics_of_items_are_the_reference_s() {
    let golden = fixture("tasks.json");
    let mut compared = 0;
    for (name, record) in golden["tasks"].as_object().unwrap() {
        let task = task(name);
        for (i, (item, result)) in read(task, &record["docs"], Amount::Subset)
            .iter()
            .zip(record["results"].as_array().unwrap())
            .enumerate()
        {
            let judgement = item.prompt.judge(&answers(&result["answers"])).unwrap();
            compared += compare_metrics(&format!("{name}, document {i}"), &judgement, &result["metrics"]);
        }
        let reported: Vec<&str> = task.metrics().iter().map(|metric| metric.name()).collect();
        assert_eq!(json!(reported), record["metrics"], "{name}");
        // A subject of MMLU has its own version, and so has the group.
        let version = if task.name() == "mmlu" { "1.0" } else { task.version() };
        assert_eq!(version.parse::<f64>().unwrap(), record["version"].as_f64().unwrap(), "{name}");
    }
    assert!(compared > 150, "{compared}");
}

#[test]
fn the_golden_documents_beside_the_repository_agree() {
    let test = "the_golden_documents_beside_the_repository_agree";
    let Some(path) = shared("golden/lm_eval/golden.json", test) else { return };
    let golden = json(&path);
    let (mut requests, mut metrics) = (0, 0);
    for (name, record) in golden["tasks"].as_object().unwrap() {
        let task = task(name);
        let records = record["records"].as_array().unwrap();
        let of = |shots: u64| -> Vec<&Value> {
            records.iter().filter(|record| record["num_fewshot"] == shots).collect()
        };
        // Every split holds the same documents there.
        let documents: Value = of(0).into_iter().map(|record| record["doc"].clone()).collect();
        let items = read(task, &documents, Amount::Subset);
        for shots in [0, 1] {
            let expected = of(shots);
            if expected.is_empty() {
                continue;
            }
            let built = few_shot(task, &items, &items, shots as usize, SEED).unwrap();
            for (built, expected) in built.iter().zip(&expected) {
                assert_eq!(arguments(built), expected["requests"], "{name}, {shots} examples");
                requests += built.len();
            }
        }
        for (item, record) in items.iter().zip(of(0)) {
            let judgement = item.prompt.judge(&answers(&record["fake_results"])).unwrap();
            metrics += compare_metrics(name, &judgement, &record["process_results"]);
        }
    }
    let all = golden["tasks"].as_object().unwrap().values().flat_map(|t| t["records"].as_array().unwrap());
    let expected: usize = all.map(|record| record["requests"].as_array().unwrap().len()).sum();
    assert_eq!(requests, expected);
    let _ = writeln!(std::io::stderr(), "{requests} requests and {metrics} metrics of golden.json agree");
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[track_caller]
fn near(found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} is not {expected}");
}

#[test]
fn aggregates_and_standard_errors_are_the_reference_s() {
    let golden = fixture("metrics.json");

    let accuracies = numbers(&golden["accuracies"]["values"]);
    assert_eq!(json!(mean(&accuracies)), golden["accuracies"]["mean"]);
    assert_eq!(json!(mean_stderr(&accuracies).unwrap()), golden["accuracies"]["stderr"]);

    let losses = numbers(&golden["perplexity"]["values"]);
    let targets: Vec<Judgement> =
        losses.iter().map(|&log_likelihood| Judgement::Target { log_likelihood, greedy: false }).collect();
    near(score(Metric::Perplexity, &targets).unwrap().value, &golden["perplexity"]["perplexity"]);
    for (draws, expected) in golden["perplexity"]["bootstrap"].as_object().unwrap() {
        near(bootstrap(&losses, draws.parse().unwrap()).unwrap(), expected);
    }
    // The delta method tells the same as many draws: their own error at 3000 draws is about 1 %.
    let delta = score(Metric::Perplexity, &targets).unwrap().stderr.unwrap();
    let drawn = golden["perplexity"]["bootstrap"]["3000"].as_f64().unwrap();
    assert!((delta / drawn - 1.0).abs() < 0.05, "{delta} {drawn}");

    let texts: Vec<Judgement> = golden["weighted"]["values"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            let units = pair[1].as_u64().unwrap() as usize;
            Judgement::Text {
                log_likelihood: pair[0].as_f64().unwrap(),
                words: units,
                bytes: units,
                tokens: 1,
            }
        })
        .collect();
    near(score(Metric::WordPerplexity, &texts).unwrap().value, &golden["weighted"]["perplexity"]);
    near(score(Metric::BitsPerByte, &texts).unwrap().value, &golden["weighted"]["bits_per_byte"]);

    let group = &golden["group"];
    let parts: Vec<Score> = (0..3)
        .map(|i| Score {
            value: group["values"][i].as_f64().unwrap(),
            stderr: group["stderrs"][i].as_f64(),
            n: group["sizes"][i].as_u64().unwrap() as usize,
        })
        .collect();
    let whole = pooled(&parts).unwrap();
    assert_eq!(json!(whole.value), group["value"]);
    near(whole.stderr.unwrap(), &group["stderr"]);
}

#[test]
fn mmlu_reports_subjects_groups_and_the_whole() {
    let mmlu = task("mmlu");
    let document = |subject: &str, answer: usize| json!({"question": "q", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": answer});
    let items = read(
        mmlu,
        &json!([document("anatomy", 0), document("anatomy", 1), document("virology", 0)]),
        Amount::Subset,
    );
    let answer = |log_likelihood| Answer { log_likelihood, greedy: false, tokens: 1 };
    // Always the first choice: right, wrong, right.
    let answers = [answer(-1.0), answer(-2.0), answer(-3.0), answer(-4.0)];
    let judged: Vec<Judgement> = items.iter().map(|item| item.prompt.judge(&answers).unwrap()).collect();
    let named: Vec<(String, f64, usize)> = report(mmlu, Metric::Acc, &items, &judged)
        .into_iter()
        .map(|named| (named.name, named.score.value, named.score.n))
        .collect();
    let expected = [
        ("mmlu_anatomy", 0.5, 2),
        ("mmlu_virology", 1.0, 1),
        ("mmlu_stem", 0.5, 2),
        ("mmlu_other", 1.0, 1),
        ("mmlu", 2.0 / 3.0, 3),
    ];
    assert_eq!(named, expected.map(|(name, value, n)| (name.to_owned(), value, n)));
    let subjects = mmlu.groups().last().unwrap().parts.len();
    assert_eq!(subjects, 57);
}

#[test]
fn a_text_has_no_place_for_examples_and_a_small_pool_is_refused() {
    let wikitext = task("wikitext");
    let items = read(wikitext, &json!([{"page": "a"}]), Amount::Subset);
    let message = few_shot(wikitext, &items, &items, 1, SEED).unwrap_err().to_string();
    assert!(message.contains("`wikitext` scores whole texts"), "{message}");

    let golden = fixture("tasks.json");
    let items = read(task("piqa"), &golden["tasks"]["piqa"]["docs"], Amount::Subset);
    // One more than asked for is drawn, to have one to spare.
    let message = few_shot(task("piqa"), &items, &items[..4], 4, SEED).unwrap_err().to_string();
    assert!(message.contains("need 5 items of the split `train`, and there are 4"), "{message}");
}
