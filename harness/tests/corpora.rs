//! Corpora from a data directory, files and JSON lines: what is read, what it is called, and what is said when it is not there.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use harness::data::CorpusRef;
use harness::data::corpus::{CorpusError, DataOptions, Extent, Text, load};
use polars::prelude::{Column, DataFrame, ParquetWriter};

struct Fixture {
    dir: tempfile::TempDir,
    options: DataOptions,
}

fn fixture(files: &[(&str, &[u8])]) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    for (name, data) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    let mut options = DataOptions::new(Some(dir.path().to_owned()), dir.path().join("experiments"), true);
    options.hub.cache = dir.path().join("cache");
    Fixture { dir, options }
}

impl Fixture {
    fn named(&self, name: &str) -> Result<Text, CorpusError> {
        load(&CorpusRef::Named(name.to_owned()), &self.options)
    }

    fn file(&self, path: impl AsRef<Path>, field: Option<&str>) -> Result<Text, CorpusError> {
        let (path, field) = (path.as_ref().to_owned(), field.map(str::to_owned));
        load(&CorpusRef::File { path, field }, &self.options)
    }

    fn complaint(&self, path: &str, field: Option<&str>) -> String {
        self.file(path, field).unwrap_err().to_string()
    }
}

fn documents(text: &Text) -> Vec<&str> {
    text.documents().collect()
}

#[test]
fn the_raw_wikitext_file_becomes_the_rows_of_the_datasets_library() {
    // Expected by hand from the library's loop: `for row in f: row if row.strip() else ""`, joined with "\n\n".
    let raw = " \n = One = \n \n Text of one . \n = = Part = = \n\t\n = Two = \n last";
    let expected = "\n\n = One = \n\n\n\n\n Text of one . \n\n\n = = Part = = \n\n\n\n\n = Two = \n\n\n last";
    let fixture = fixture(&[("wikitext2/wiki.test.raw", raw.as_bytes())]);
    let text = fixture.named("wikitext2/test").unwrap();
    assert_eq!(text.text, expected);
    assert_eq!(text.hash, blake3::hash(expected.as_bytes()).to_hex().to_string());
    assert_eq!(text.origin, "data:wikitext2/wiki.test.raw");
    let documents = documents(&text);
    assert_eq!(documents.len(), 2, "{documents:?}");
    assert!(documents[0].contains("Text of one") && documents[0].contains("= = Part = ="));
    assert!(documents[1].starts_with(" = Two = "));
    assert_eq!(documents.concat(), text.text);

    // A raw file written on Windows is the same text.
    let windows = raw.replace('\n', "\r\n");
    let other = self::fixture(&[("wikitext2/wiki.test.raw", windows.as_bytes())]);
    assert_eq!(other.named("wikitext2/test").unwrap().hash, text.hash);
}

#[test]
fn the_name_alone_is_kept_for_the_full_split() {
    let rows = |words: usize, blanks: usize| " word \n".repeat(words) + &" \n".repeat(blanks);
    let extent = |raw: String| {
        let fixture = fixture(&[("wikitext2/wiki.test.raw", raw.as_bytes())]);
        let text = fixture.named("wikitext2/test").unwrap();
        (text.label(), text.extent)
    };
    assert_eq!(extent(rows(2891, 4358 - 2891)), ("wikitext2/test".to_owned(), Extent::Full));
    let (label, altered) = extent(rows(2891, 0));
    assert_eq!(altered, Extent::Altered("without blank rows"));
    assert!(label.starts_with("wikitext2/test (without blank rows, blake3 "), "{label}");
    let (label, part) = extent(rows(100, 50));
    assert_eq!(part, Extent::Excerpt);
    assert!(label.starts_with("wikitext2/test (excerpt, blake3 "), "{label}");
}

#[test]
fn parquet_rows_from_the_hub_cache_equal_the_raw_file() {
    let raw = " \n = One = \n \n Text . \n";
    let fixture = fixture(&[("wikitext2/wiki.test.raw", raw.as_bytes())]);
    let from_raw = fixture.named("wikitext2/test").unwrap();

    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = fixture.options.hub.cache.join("datasets--Salesforce--wikitext");
    let folder = repo.join("snapshots").join(commit).join("wikitext-2-raw-v1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let rows = Column::new("text".into(), ["", " = One = \n", "", " Text . \n"]);
    let mut frame = DataFrame::new(rows.len(), vec![rows]).unwrap();
    let file = std::fs::File::create(folder.join("test-00000-of-00001.parquet")).unwrap();
    ParquetWriter::new(file).finish(&mut frame).unwrap();

    let mut options = fixture.options.clone();
    options.data_dir = None;
    let from_hub = load(&CorpusRef::Named("wikitext2/test".into()), &options).unwrap();
    assert_eq!(from_hub.text, from_raw.text);
    assert_eq!(from_hub.extent, Extent::Full);
    let expected = format!("hub:Salesforce/wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet@{commit}");
    assert_eq!(from_hub.origin, expected);
}

#[test]
fn calibration_files_are_excerpts_unless_their_note_says_otherwise() {
    let mut files: Vec<(&str, &[u8])> = vec![
        ("calibration/c4.utf8", b"page one\n\npage two\r\n"),
        ("calibration/tiny.utf8", b"A story.\n<|endoftext|>\nAnother.\n<|endoftext|>\n"),
        ("calibration/wiki.utf8", b"<doc id=\"1\">\nTitle\n\nText.\n</doc>\n<doc id=\"2\">\nNext\n</doc>\n"),
        ("udhr/eng.txt", b"All human beings"),
    ];
    let plain = fixture(&files);
    let c4 = plain.named("c4").unwrap();
    assert_eq!(c4.text, "page one\n\npage two\n", "the text is the file, its line ends as Python reads them");
    assert_eq!(documents(&c4), ["page one", "page two"]);
    assert!(c4.is_excerpt());
    assert_eq!(c4.label(), format!("c4 (excerpt, blake3 {})", &c4.hash[..12]));
    let tiny = plain.named("tiny").unwrap();
    assert_eq!(
        (tiny.text.as_str(), documents(&tiny)),
        ("A story.\n\nAnother.", vec!["A story.", "Another."])
    );
    assert_eq!(documents(&plain.named("wiki").unwrap()), ["Title\n\nText.", "Next"]);
    let udhr = plain.named("udhr/eng").unwrap();
    assert_eq!((udhr.label(), udhr.origin.as_str()), ("udhr/eng".to_owned(), "data:udhr/eng.txt"));

    files.push(("calibration/c4.origin", b"full: all of a private crawl\nmore"));
    let noted = fixture(&files).named("c4").unwrap();
    assert_eq!((noted.extent, noted.hash == c4.hash), (Extent::Full, true));
    assert_eq!(noted.origin, "data:calibration/c4.utf8 (full: all of a private crawl)");
}

#[test]
fn files_are_found_beside_the_experiment() {
    let fixture = fixture(&[
        ("experiments/text.utf8", "\u{feff}Ein Text.\n".as_bytes()),
        ("experiments/docs.jsonl", b"{\"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"two\\n\"}\n"),
    ]);
    let text = fixture.file("text.utf8", None).unwrap();
    assert_eq!((text.text.as_str(), text.origin.as_str()), ("Ein Text.\n", "file:text.utf8"));
    let lines = fixture.file("docs.jsonl", Some("text")).unwrap();
    assert_eq!((lines.text.as_str(), documents(&lines)), ("one\n\ntwo", vec!["one", "two"]));
    let absolute = fixture.dir.path().join("experiments/text.utf8");
    assert_eq!(fixture.file(absolute, None).unwrap().origin, "file:text.utf8");
}

#[test]
fn bad_files_are_named_with_place_and_cure() {
    let fixture = fixture(&[
        ("experiments/latin.txt", b"caf\xe9"),
        ("experiments/empty.txt", b" \n\t\n"),
        ("experiments/a.jsonl", b"{\"text\": \"one\"}\n{\"text\": "),
        ("experiments/b.jsonl", b"\n{\"id\": 1, \"body\": \"x\"}"),
        ("experiments/c.jsonl", b"{\"text\": 7}"),
        ("experiments/d.jsonl", b"[1]"),
    ]);
    assert!(fixture.complaint("latin.txt", None).contains("latin.txt: not UTF-8 at byte 3"));
    assert!(fixture.complaint("empty.txt", None).contains("the text is empty"));
    assert!(fixture.complaint("a.jsonl", Some("text")).contains("a.jsonl line 2: no JSON"));
    assert!(fixture.complaint("b.jsonl", Some("text")).ends_with("line 2: no field `text`; it has id, body"));
    assert!(fixture.complaint("c.jsonl", Some("text")).ends_with("line 1: the field `text` is no string"));
    assert!(fixture.complaint("d.jsonl", Some("text")).ends_with("line 1: no JSON object"));
    assert!(fixture.complaint("a.jsonl", None).contains("field = \"text\""));
    let gone = fixture.complaint("gone.txt", None);
    assert!(gone.contains("experiments/gone.txt and gone.txt"), "{gone}");
}

#[test]
fn missing_corpora_say_where_was_looked_and_what_to_do() {
    let mut fixture = fixture(&[]);
    let message = |fixture: &Fixture, name: &str| fixture.named(name).unwrap_err().to_string();
    let c4 = message(&fixture, "c4");
    let place = fixture.dir.path().join("calibration/c4.utf8").display().to_string();
    for part in [place.as_str(), "not fetched from the hub", "--data DIR", "QUANTSCOPE_DATA", "docs/data.md"]
    {
        assert!(c4.contains(part), "`{part}` is missing in: {c4}");
    }
    assert!(
        message(&fixture, "wikitext2/train")
            .contains("Salesforce/wikitext is not in the hub cache (offline)")
    );
    fixture.options.data_dir = None;
    assert!(message(&fixture, "udhr/eng").contains("no data directory was named"));
    assert!(message(&fixture, "wikitext/test").contains("did you mean `wikitext2/test`?"));
    assert!(message(&fixture, "udhr/../../secret").contains("there is no corpus"));
    assert!(!message(&fixture, "zzz").contains("did you mean"));
}

#[test]
fn built_in_texts_come_from_the_program() {
    let mut fixture = fixture(&[]);
    let held_out = fixture.named("builtin/stories-held-out").unwrap();
    assert_eq!(Some(held_out.text.as_str()), models::builtin::text("builtin/stories-held-out"));
    fixture.options.builtin = |_| None;
    assert!(matches!(fixture.named("builtin/stories-held-out"), Err(CorpusError::NotBuiltIn { .. })));
    fixture.options.builtin = |name| (name == "stories-held-out").then(|| "Once.".into());
    let text = fixture.named("builtin/stories-held-out").unwrap();
    assert_eq!((text.text.as_str(), text.origin.as_str(), text.extent), ("Once.", "builtin", Extent::Full));
}
