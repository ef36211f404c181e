//! A hub on this machine: the repository description and the files, with the faults a real network has.
//!
//! Plain sockets instead of an HTTP crate: a response that ends in the middle is the point.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the server answers, and what it was asked.
#[derive(Default)]
pub struct State {
    /// Files of the one repository.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Refuses every file with the hub's words for a gated model unless this token is sent.
    pub gated_by: Option<String>,
    /// For each coming request of a file's body: bytes after which the connection is cut.
    pub cuts: Vec<(String, usize)>,
    /// Answers a resumed request with the whole file, as a server without ranges does.
    pub ignores_ranges: bool,
    /// Leaves sizes and hashes out of the description, as a plain mirror does.
    pub bare_description: bool,
    /// `path range` of every request for a body, and `path` of every description.
    pub log: Vec<String>,
}

/// A running server; it ends with the test process.
pub struct Server {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
}

/// The commit that `main` is.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Server {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                // A client that hangs up is no failure of the server.
                std::thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Self { endpoint, state }
    }

    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }
}

/// The hash-like name under which a file's content is cached.
pub fn tag(data: &[u8]) -> String {
    format!("{:016x}{:08x}", data.iter().fold(7u64, |h, b| h.wrapping_mul(31) ^ u64::from(*b)), data.len())
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let (mut range, mut token) = (None, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => range = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                token = value.strip_prefix("Bearer ").map(str::to_owned);
            }
            Some(_) => {}
            None => break,
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    if let Some(rest) = path.strip_prefix("/api/") {
        state.log.push(path.split('?').next().unwrap_or_default().to_owned());
        return describe(stream, &state, rest);
    }
    let Some((repo, rest)) = path[1..].split_once("/resolve/") else {
        return refuse(stream, 404, "RepoNotFound");
    };
    if !matches!(repo, "tiny/llama" | "datasets/tiny/text") {
        return refuse(stream, 401, "RepoNotFound");
    }
    if state.gated_by.is_some() && state.gated_by != token {
        return refuse(stream, if token.is_some() { 403 } else { 401 }, "GatedRepo");
    }
    let name = rest.split_once('/').map_or("", |(_, name)| name);
    let Some(data) = state.files.get(name).cloned() else {
        return refuse(stream, 404, "EntryNotFound");
    };
    let probe = range.as_deref() == Some("bytes=0-0");
    let mut start = range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok())
        .unwrap_or(0);
    if !probe {
        state.log.push(format!("{name} from {start}"));
    }
    if start >= data.len() && !data.is_empty() {
        return refuse(stream, 416, "");
    }
    if state.ignores_ranges && !probe {
        start = 0;
    }
    let body = if probe { &data[..1] } else { &data[start..] };
    let cut =
        state.cuts.iter().position(|(file, _)| !probe && file == name).map(|at| state.cuts.remove(at).1);
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \
         \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        body.len(),
        start + body.len() - 1,
        data.len(),
        tag(&data)
    )?;
    out.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
}

fn describe(mut out: TcpStream, state: &State, rest: &str) -> std::io::Result<()> {
    let known = ["models/tiny/llama/revision/", "datasets/tiny/text/revision/"];
    let Some(revision) = known.iter().find_map(|prefix| rest.split('?').next()?.strip_prefix(prefix)) else {
        return refuse(out, 401, "RepoNotFound");
    };
    if !matches!(revision, "main" | COMMIT) {
        return refuse(out, 404, "RevisionNotFound");
    }
    let siblings: Vec<serde_json::Value> = state
        .files
        .iter()
        .map(|(name, data)| match state.bare_description {
            true => serde_json::json!({ "rfilename": name }),
            false => serde_json::json!({ "rfilename": name, "size": data.len(), "blobId": tag(data) }),
        })
        .collect();
    let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn refuse(mut out: TcpStream, status: u16, code: &str) -> std::io::Result<()> {
    write!(
        out,
        "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nX-Error-Message: words of the hub\r\nContent-Length: \
         0\r\nConnection: close\r\n\r\n"
    )
}
