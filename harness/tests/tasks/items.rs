//! Reading items: every form, and everything that can be wrong with a file.

use harness::evaluate::items::{Form, ItemError, Items, Prompt, load};
use harness::evaluate::requests::zero_shot;
use polars::prelude::{Column, DataFrame, NamedFrom, ParquetWriter, Series};
use serde_json::json;

use super::*;

fn write(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn subset(name: &str, text: &str) -> Result<Items, ItemError> {
    let (_folder, path) = write("items.jsonl", text);
    load(task(name), &path, Amount::Subset)
}

#[test]
fn what_is_wrong_with_a_line_is_said_with_its_number() {
    let good = r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}"#;
    let cases = [
        (r#"{"goal": "g", "#, "no JSON object"),
        ("[1]", "no JSON object"),
        (r#"{"goal": "g", "sol1": "a", "label": 0}"#, "no field `sol2`; it has goal, sol1, label"),
        (r#"{"goal": "g", "sol1": "a", "sol2": 3, "label": 0}"#, "the field `sol2` is not a text"),
        (
            r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}"#,
            "the right answer is 2, and there are 2 choices",
        ),
        (
            r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}"#,
            "the right answer is -1, and there are 2 choices",
        ),
        (
            r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": "x"}"#,
            "the field `label` is not a place among the choices",
        ),
        (r#"{"goal": "g", "sol1": "a", "sol2": " ", "label": 0}"#, "continuation 1 (from 0) is empty"),
    ];
    for (line, expected) in cases {
        // Blank lines do not count as items, and do count as lines.
        let message = subset("piqa", &format!("{good}\n\n{line}\n{good}\n")).unwrap_err().to_string();
        assert!(message.contains(&format!("items.jsonl line 3: {expected}")), "{message}");
    }
    let message = subset("piqa", r#"{"question": "q"}"#).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "the items of `piqa` need the fields goal, sol1, sol2, label (hub), or query, choices, gold (uniform); \
             the first item has question"
        ),
        "{message}"
    );
}

#[test]
fn other_tasks_name_their_own_faults() {
    let cases = [
        (
            "winogrande",
            r#"{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}"#,
            "has no blank",
        ),
        (
            "winogrande",
            r#"{"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}"#,
            "the right answer is ``",
        ),
        (
            "winogrande",
            r#"{"sentence": "a _", "option1": "a", "option2": "b", "answer": "1"}"#,
            "continuation 0",
        ),
        (
            "arc_easy",
            r#"{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "E"}"#,
            "the right answer is `E`, and there are 1 choices",
        ),
        (
            "copa",
            r#"{"premise": "p", "choice1": "a", "choice2": "b", "question": "why", "label": 0}"#,
            "`why` is neither",
        ),
        (
            "copa",
            r#"{"premise": "p", "choice1": "a", "choice2": "", "question": "cause", "label": 0}"#,
            "continuation 1",
        ),
        ("race", r#"{"article": "a", "problems": "[1"}"#, "no Python literal: expected a comma at byte 2"),
        ("race", r#"{"article": "a", "problems": "[]"}"#, "the field `problems` is not a list of problems"),
        (
            "race",
            r#"{"article": "a", "problems": [{"question": "q", "answer": "A", "options": ["a"]}]}"#,
            "1 options, not 4",
        ),
        (
            "mmlu",
            r#"{"question": "q", "subject": "cooking", "choices": ["a", "b", "c", "d"], "answer": 0}"#,
            "no subject `cooking`",
        ),
        (
            "mmlu",
            r#"{"question": "q", "subject": "anatomy", "choices": ["a"], "answer": 0}"#,
            "1 choices, not 4",
        ),
        ("wikitext", r#"{"page": " "}"#, "continuation 0"),
    ];
    for (name, line, expected) in cases {
        let message = subset(name, line).unwrap_err().to_string();
        assert!(message.contains("line 1: ") && message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn a_file_with_another_number_of_items_is_refused() {
    let line = "{\"premise\": \"P.\", \"choice1\": \"A\", \"choice2\": \"B\", \"question\": \"cause\", \"label\": 0}\n";
    let (_folder, path) = write("copa.jsonl", &line.repeat(99));
    let copa = task("copa");
    for amount in [Amount::Full, Amount::First(10)] {
        let message = load(copa, &path, amount).unwrap_err().to_string();
        assert!(message.contains("holds 99 items, and `copa` has 100"), "{message}");
    }
    let part = load(copa, &path, Amount::Subset).unwrap();
    assert_eq!((part.items.len(), part.full), (99, false));
    fs::write(&path, line.repeat(100)).unwrap();
    assert!(load(copa, &path, Amount::Full).unwrap().full);
    let first = load(copa, &path, Amount::First(10)).unwrap();
    assert_eq!((first.items.len(), first.full), (10, false));
    assert!(matches!(load(copa, &path, Amount::First(0)), Err(ItemError::NoItems)));
    fs::write(&path, "\n").unwrap();
    assert!(matches!(load(copa, &path, Amount::Subset), Err(ItemError::NoItems)));
    let missing = load(copa, Path::new("nowhere/copa.jsonl"), Amount::Full).unwrap_err().to_string();
    assert!(missing.contains("copa.jsonl"), "{missing}");
}

#[test]
fn a_limit_counts_in_each_part() {
    let line = |subject: &str| {
        format!(
            "{{\"question\": \"q\", \"subject\": \"{subject}\", \"choices\": [\"a\", \"b\", \"c\", \"d\"], \"answer\": 0}}\n"
        )
    };
    let text = line("anatomy").repeat(14000) + &line("virology").repeat(42);
    let (_folder, path) = write("mmlu.jsonl", &text);
    let items = load(task("mmlu"), &path, Amount::First(3)).unwrap().items;
    let parts: Vec<&str> = items.iter().filter_map(|item| item.part.as_deref()).collect();
    assert_eq!(parts, ["anatomy", "anatomy", "anatomy", "virology", "virology", "virology"]);
}

#[test]
fn the_uniform_form_gives_the_same_questions_as_the_hub_s() {
    let pairs = [
        (
            "piqa",
            json!({"goal": "g", "sol1": "a", "sol2": "b", "label": 1}),
            json!({"id": 7, "query": "g", "choices": ["a", "b"], "gold": 1}),
        ),
        (
            "arc_challenge",
            json!({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}),
            json!({"id": 7, "query": "q", "choices": ["a", "b"], "gold": 1}),
        ),
        (
            "openbookqa",
            json!({"question_stem": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}),
            json!({"id": 7, "query": "q", "choices": ["a", "b"], "gold": 0}),
        ),
        (
            "winogrande",
            json!({"sentence": "x _ y", "option1": "a", "option2": "b", "answer": "2"}),
            json!({"id": 7, "query": "x _ y", "choices": ["a", "b"], "gold": 1}),
        ),
        (
            "boolq",
            json!({"passage": "p", "question": "q", "label": 1}),
            json!({"id": 7, "query": "q", "passage": "p", "choices": ["no", "yes"], "gold": 1}),
        ),
        ("lambada_openai", json!({"text": "a b  c"}), json!({"id": 7, "context": "a b ", "target": " c"})),
        (
            "hellaswag",
            json!({"activity_label": "L", "ctx_a": "A.", "ctx_b": "b", "endings": ["x", "y"], "label": "1"}),
            json!({"id": 7, "query": "L: A. B", "choices": ["x", "y"], "gold": 1}),
        ),
    ];
    for (name, hub, uniform) in pairs {
        let task = task(name);
        let of = |document: &Value| {
            let objects = [document.as_object().unwrap().clone()];
            from_objects(task, Path::new("x"), &objects, Amount::Subset).unwrap()
        };
        let (hub, uniform) = (of(&hub), of(&uniform));
        assert_eq!((hub.form, uniform.form), (Form::Hub, Form::Uniform), "{name}");
        assert_eq!(hub.items[0].prompt, uniform.items[0].prompt, "{name}");
        assert_eq!((hub.items[0].id.as_str(), uniform.items[0].id.as_str()), ("0", "7"));
        assert_ne!(hub.hash, uniform.hash);
    }
}

#[test]
fn parquet_files_hold_the_hub_s_columns() {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, columns: Vec<Column>| {
        let path = folder.path().join(name);
        let mut frame = DataFrame::new(columns[0].len(), columns).unwrap();
        ParquetWriter::new(fs::File::create(&path).unwrap()).finish(&mut frame).unwrap();
        path
    };
    let piqa = save(
        "piqa.parquet",
        vec![
            Column::new("goal".into(), ["g", "naïve 日本"]),
            Column::new("sol1".into(), ["a", "b"]),
            Column::new("sol2".into(), ["c", "d"]),
            Column::new("label".into(), [0i64, 1]),
        ],
    );
    let read = load(task("piqa"), &piqa, Amount::Subset).unwrap();
    let lines = "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"c\", \"label\": 0}\n\
                 {\"label\": 1, \"goal\": \"naïve 日本\", \"sol1\": \"b\", \"sol2\": \"d\"}\n";
    // The same items, hashes included, whatever the file and the order of its fields.
    assert_eq!(read, subset("piqa", lines).unwrap());

    let list = |items: [&str; 4]| Series::new("".into(), items);
    let mmlu = save(
        "mmlu.parquet",
        vec![
            Column::new("question".into(), [" q ", "r"]),
            Column::new("subject".into(), ["anatomy", "virology"]),
            Column::new("choices".into(), [list(["1", "2", "3", "4"]), list(["é", "f", "g", "h"])]),
            Column::new("answer".into(), [3i64, 0]),
        ],
    );
    let read = load(task("mmlu"), &mmlu, Amount::Subset).unwrap();
    assert_eq!(read.items[1].part.as_deref(), Some("virology"));
    assert!(
        matches!(&read.items[0].prompt, Prompt::Choices { text, gold: 3, .. } if text == "q\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:")
    );

    let wrong = save(
        "wrong.parquet",
        vec![
            Column::new("goal".into(), ["g", "h"]),
            Column::new("sol1".into(), ["a", "b"]),
            Column::new("sol2".into(), ["c", "d"]),
            Column::new("label".into(), [0i64, 5]),
        ],
    );
    let message = load(task("piqa"), &wrong, Amount::Subset).unwrap_err().to_string();
    assert!(message.contains("wrong.parquet row 2: the right answer is 5"), "{message}");
    fs::write(&wrong, "no Parquet").unwrap();
    assert!(matches!(load(task("piqa"), &wrong, Amount::Subset), Err(ItemError::Parquet { .. })));
}

#[test]
fn a_structure_of_lists_as_the_hub_writes_it_is_read() {
    // Written by pyarrow from the documents that the requests were built from.
    let arc = task("arc_easy");
    let read = load(arc, &fixtures().join("arc.parquet"), Amount::Subset).unwrap();
    let golden = fixture("tasks.json");
    let documents = objects(&golden["tasks"]["arc_easy"]["docs"]);
    let expected = from_objects(arc, Path::new("x"), &documents[..read.items.len()], Amount::Subset).unwrap();
    assert_eq!(read, expected);
}

#[test]
fn the_data_sets_beside_the_repository_are_complete() {
    let test = "the_data_sets_beside_the_repository_are_complete";
    let Some(folder) = shared("data/tasks", test) else { return };
    for name in
        ["arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada", "openbookqa", "piqa", "winogrande"]
    {
        let task = if name == "lambada" { task("lambada_openai") } else { task(name) };
        let items = load(task, &folder.join(format!("{name}.jsonl")), Amount::Full).unwrap();
        assert!(items.full && items.form == Form::Uniform, "{name}");
        let requests = zero_shot(task, &items.items);
        assert!(requests.iter().zip(&items.items).all(|(r, item)| r.len() == item.prompt.requests()));
    }
    let Some(raw) = shared("data/wikitext2/wiki.test.raw", test) else { return };
    let wikitext = load(task("wikitext"), &raw, Amount::Full).unwrap();
    let text = fs::read_to_string(&raw).unwrap().replace("\r\n", "\n");
    let blank = text.lines().any(|line| line.trim().is_empty());
    assert!(wikitext.full);
    assert_eq!(wikitext.form, if blank { Form::Raw } else { Form::RawWithoutBlankRows });
    let (words, bytes) = wikitext.items.iter().fold((0, 0), |sum, item| match item.prompt {
        Prompt::Text { words, bytes, .. } => (sum.0 + words, sum.1 + bytes),
        _ => panic!("{item:?}"),
    });
    // Cut apart, nothing is lost but the line breaks between the articles.
    assert_eq!(text.len() - bytes, wikitext.items.len() - 1);
    let _ = writeln!(std::io::stderr(), "wikitext: {words} words, {bytes} bytes");
}
