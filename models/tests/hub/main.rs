//! The hub client against a hub on this machine: what is fetched, resumed, refused, and said about it.

#![allow(clippy::unwrap_used)]

mod server;

use std::path::{Path, PathBuf};

use models::hub::{self, HubError, HubOptions};
use server::{COMMIT, Server, tag};

const SMALL: [(&str, &[u8]); 4] = [
    ("config.json", b"{\"model_type\":\"llama\"}"),
    ("tokenizer.json", b"{}"),
    ("tokenizer_config.json", b"{\"add_bos_token\":true}"),
    ("README.md", b"not fetched"),
];

/// Bytes that differ everywhere, so that a wrong offset shows.
fn weights(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn with_weights(data: &[u8]) -> Server {
    Server::start(&[&SMALL[..], &[("model.safetensors", data)]].concat())
}

fn options(server: &Server, cache: &Path) -> HubOptions {
    HubOptions { offline: false, token: None, endpoint: server.endpoint.clone(), cache: cache.to_owned() }
}

fn fetch(id: &str, revision: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    hub::fetch(id, revision, options, &mut |_, _, _| {})
}

fn fetch_dataset_file(id: &str, file: &str, options: &HubOptions) -> Result<PathBuf, HubError> {
    hub::fetch_dataset_file(id, file, "main", options, &mut |_, _, _| {})
}

#[test]
fn a_single_file_model_is_fetched_once_and_then_comes_from_the_cache() {
    let data = weights(40_000);
    let server = with_weights(&data);
    let cache = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let mut watch = |file: &str, done: u64, total: u64| seen.push((file.to_owned(), done, total));
    let folder = hub::fetch("tiny/llama", "main", &options(&server, cache.path()), &mut watch).unwrap();

    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data);
    assert_eq!(std::fs::read(folder.join("tokenizer_config.json")).unwrap(), SMALL[2].1);
    assert!(!folder.join("README.md").exists());
    assert!(folder.ends_with(Path::new("models--tiny--llama/snapshots").join(COMMIT)));
    assert_eq!(seen.last(), Some(&("model.safetensors".to_owned(), 40_000, 40_000)));
    let done: Vec<u64> = seen.iter().filter(|s| s.0.starts_with("model")).map(|s| s.1).collect();
    assert!(done.is_sorted(), "{done:?}");

    let requests = server.log().len();
    let mut offline = options(&server, cache.path());
    assert_eq!(fetch("tiny/llama", "main", &offline).unwrap(), folder);
    offline.offline = true;
    assert_eq!(fetch("tiny/llama", "main", &offline).unwrap(), folder);
    assert_eq!(fetch("tiny/llama", COMMIT, &offline).unwrap(), folder);
    assert_eq!(server.log().len(), requests, "the cache was enough");
}

#[test]
fn every_shard_of_the_index_is_fetched() {
    let index = br#"{"weight_map":{"a":"m-1-of-2.safetensors","b":"m-2-of-2.safetensors","c":"m-1-of-2.safetensors"}}"#;
    let (one, two) = (weights(900), weights(1_700));
    let server = Server::start(
        &[
            &SMALL[..],
            &[("model.safetensors.index.json", index.as_slice())],
            &[("m-1-of-2.safetensors", one.as_slice()), ("m-2-of-2.safetensors", two.as_slice())],
            &[("m-3-of-2.safetensors", b"not named")],
        ]
        .concat(),
    );
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.join("m-1-of-2.safetensors")).unwrap(), one);
    assert_eq!(std::fs::read(folder.join("m-2-of-2.safetensors")).unwrap(), two);
    assert!(!folder.join("m-3-of-2.safetensors").exists());

    // A snapshot that lost a shard is not complete: offline says which, online brings only that one back.
    std::fs::remove_file(folder.join("m-2-of-2.safetensors")).unwrap();
    let mut offline = options(&server, cache.path());
    offline.offline = true;
    let message = fetch("tiny/llama", "main", &offline).unwrap_err().to_string();
    assert!(message.contains("lacks m-2-of-2.safetensors."), "{message}");
    let before = server.log().len();
    fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap();
    assert_eq!(server.log()[before + 1..], ["m-2-of-2.safetensors from 0".to_owned()]);
}

#[test]
fn a_shard_outside_the_repository_is_refused() {
    let index = br#"{"weight_map":{"a":"../../escape.safetensors"}}"#;
    let server = Server::start(&[&SMALL[..], &[("model.safetensors.index.json", index.as_slice())]].concat());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap_err();
    assert!(matches!(error, HubError::BadIndex { .. }), "{error}");
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let data = weights(300_000);
    let server = with_weights(&data);
    server.state.lock().unwrap().cuts =
        vec![("model.safetensors".into(), 120_000), ("model.safetensors".into(), 70_000)];
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data);
    let bodies: Vec<String> = server.log().into_iter().filter(|l| l.starts_with("model.safe")).collect();
    let from = |n: usize| format!("model.safetensors from {n}");
    assert_eq!(bodies, [from(0), from(120_000), from(190_000)]);
}

#[test]
fn a_connection_that_brings_nothing_more_is_given_up_and_resumed_by_the_next_run() {
    let data = weights(200_000);
    let server = with_weights(&data);
    let cut = |n| ("model.safetensors".to_owned(), n);
    server.state.lock().unwrap().cuts = vec![cut(50_000), cut(0), cut(0), cut(0)];
    let cache = tempfile::tempdir().unwrap();
    let options = options(&server, cache.path());
    let error = fetch("tiny/llama", "main", &options).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { done: 50_000, total: 200_000, .. }), "{error}");
    assert!(error.to_string().contains("run again to resume"), "{error}");
    assert!(
        matches!(
            fetch("tiny/llama", "main", &HubOptions { offline: true, ..options.clone() }),
            Err(HubError::Offline { .. })
        ),
        "an unfinished model must not pass for a cached one"
    );

    let before = server.log().len();
    let folder = fetch("tiny/llama", "main", &options).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data);
    assert_eq!(server.log()[before + 1..], ["model.safetensors from 50000".to_owned()]);
}

#[test]
fn a_finished_part_file_and_a_server_without_ranges_start_over_instead_of_corrupting() {
    for part in [100_000, 100_001, 60_000] {
        let data = weights(100_000);
        let server = with_weights(&data);
        server.state.lock().unwrap().ignores_ranges = true;
        let cache = tempfile::tempdir().unwrap();
        let blobs = cache.path().join("models--tiny--llama/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(tag(&data)).with_extension("part"), weights(part)).unwrap();
        let folder = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap();
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data, "part of {part} bytes");
    }
}

#[test]
fn a_truncated_cached_file_is_not_trusted_when_the_hub_is_asked() {
    let data = weights(5_000);
    let server = with_weights(&data);
    let cache = tempfile::tempdir().unwrap();
    let options = options(&server, cache.path());
    let folder = fetch("tiny/llama", "main", &options).unwrap();
    std::fs::write(std::fs::canonicalize(folder.join("model.safetensors")).unwrap(), &data[..4_000]).unwrap();
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    fetch("tiny/llama", "main", &options).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data);
}

#[test]
fn a_mirror_that_tells_no_sizes_serves_too() {
    let data = weights(80_000);
    let server = with_weights(&data);
    {
        let mut state = server.state.lock().unwrap();
        state.bare_description = true;
        state.cuts = vec![("model.safetensors".into(), 30_000)];
    }
    let cache = tempfile::tempdir().unwrap();
    let folder = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), data);
}

#[test]
fn a_gated_model_says_how_to_get_access() {
    let server = with_weights(&weights(10));
    server.state.lock().unwrap().gated_by = Some("secret".into());
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&server, cache.path());
    let error = fetch("tiny/llama", "main", &options).unwrap_err();
    assert!(matches!(error, HubError::Gated { status: 401, token_given: false, .. }), "{error}");
    let message = error.to_string();
    for part in
        ["Accept the licence", "HF_TOKEN", &format!("{}/tiny/llama", server.endpoint), "no token was sent"]
    {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
    options.token = Some("wrong".into());
    let error = fetch("tiny/llama", "main", &options).unwrap_err();
    assert!(matches!(error, HubError::Gated { status: 403, token_given: true, .. }), "{error}");
    assert!(!format!("{options:?}").contains("wrong"), "a token must not be printed");
    options.token = Some("secret".into());
    fetch("tiny/llama", "main", &options).unwrap();
}

#[test]
fn what_is_not_there_is_named() {
    let server = Server::start(&SMALL[..1]);
    let cache = tempfile::tempdir().unwrap();
    let options = options(&server, cache.path());
    let message = |id: &str, revision: &str| fetch(id, revision, &options).unwrap_err().to_string();
    assert!(message("tiny/lama", "main").contains("has no `tiny/lama`"));
    assert!(message("tiny/llama", "v2").contains("no revision `v2`"));
    assert!(message("tiny/llama", "main").contains("no `tokenizer.json`; it has config.json"));
    assert!(message("not an id", "main").contains("owner/name"));
    assert!(message("tiny/llama/more", "main").contains("owner/name"));
    assert!(message("../etc", "main").contains("owner/name"));
    assert!(message("tiny/llama", "../../x").contains("no revision"));
}

#[test]
fn weights_without_safetensors_are_refused_before_anything_is_downloaded() {
    let server = Server::start(&[&SMALL[..], &[("pytorch_model.bin", b"pickle".as_slice())]].concat());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch("tiny/llama", "main", &options(&server, cache.path())).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("pytorch_model.bin") && message.contains("safe_serialization"), "{message}");
    assert_eq!(server.log(), ["/api/models/tiny/llama/revision/main"]);
}

#[test]
fn offline_and_not_cached_says_which_folder_to_fill() {
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        offline: true,
        token: None,
        endpoint: "http://127.0.0.1:1".into(),
        cache: cache.path().to_owned(),
    };
    let message = fetch("tiny/llama", "main", &options).unwrap_err().to_string();
    let folder = cache.path().join("models--tiny--llama");
    for part in ["--offline", folder.to_str().unwrap(), "hf download tiny/llama --revision main", "path ="] {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
    let message = fetch_dataset_file("tiny/text", "a.parquet", &options).unwrap_err().to_string();
    assert!(message.contains("--repo-type dataset"), "{message}");

    let online = HubOptions { offline: false, ..options };
    let error = fetch("tiny/llama", "main", &online).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn a_data_set_file_comes_from_the_data_set_and_then_from_the_cache() {
    let server = Server::start(&[("raw/test.parquet", b"PAR1")]);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&server, cache.path());
    let path = fetch_dataset_file("tiny/text", "raw/test.parquet", &options).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"PAR1");
    assert!(path.to_str().unwrap().contains("datasets--tiny--text"));
    options.offline = true;
    assert_eq!(fetch_dataset_file("tiny/text", "raw/test.parquet", &options).unwrap(), path);
    let error = fetch_dataset_file("tiny/text", "raw/train.parquet", &options).unwrap_err();
    assert!(error.to_string().contains("lacks raw/train.parquet"), "{error}");
}
