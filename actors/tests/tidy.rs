//! The rules of the house, checked over the whole repository.
//!
//! Reads sources, manifests and documents as text; builds nothing and needs no tool. A rule stands
//! here when no compiler or lint can hold it: how a file begins, how long it may grow, which crate
//! may see which, what the README may ask of its reader. `deny.toml` states the same fences for the
//! resolved dependency tree; here they hold for the manifests, where the difference between a
//! dependency and a dev-dependency is visible.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Beyond this a file has a second subject.
const LONGEST_FILE: usize = 500;

/// Beyond this ARCHITECTURE.md is no longer read.
const LONGEST_ARCHITECTURE: usize = 400;

/// Folders that hold what a build or a run leaves.
const NOT_OURS: [&str; 3] = ["target", ".git", "corpus"];

/// What a crate may use of the others, and the third-party worlds fenced off from it.
struct Fence {
    manifest: &'static str,
    ours: &'static [&'static str],
    /// Separated by blanks.
    never: &'static str,
}

const FENCES: [Fence; 8] = [
    Fence {
        manifest: "proto/Cargo.toml",
        ours: &[],
        never: "actix clap redb tokio tokio-postgres",
    },
    Fence {
        manifest: "actors/engine/Cargo.toml",
        ours: &["pgcapture-proto"],
        never: "actix actix-rt axum clap metrics openraft pulsar rand redb rustix socket2 tempfile \
                tokio tokio-postgres tokio-util tonic tracing uuid",
    },
    Fence {
        manifest: "actors/Cargo.toml",
        ours: &["pgcapture-engine", "pgcapture-proto"],
        never: "axum clap openraft redb tonic tonic-health tonic-reflection",
    },
    Fence {
        manifest: "node/Cargo.toml",
        ours: &["pgcapture-actors", "pgcapture-engine", "pgcapture-proto"],
        never: "postgres-protocol pulsar tokio-postgres tokio-postgres-rustls",
    },
    Fence {
        manifest: "node/base2histogram/Cargo.toml",
        ours: &[],
        never: "",
    },
    Fence {
        manifest: "client/Cargo.toml",
        ours: &["pgcapture-derive", "pgcapture-proto"],
        never: "actix axum clap openraft pulsar redb tokio-postgres",
    },
    Fence {
        manifest: "client/derive/Cargo.toml",
        ours: &[],
        never: "prost tokio tonic",
    },
    Fence {
        manifest: "chaos-tests/Cargo.toml",
        ours: &["pgcapture", "pgcapture-proto"],
        never: "actix axum openraft pulsar redb",
    },
];

/// Crates of the workspace, as manifests name them.
const OURS: [&str; 7] = [
    "pgcapture",
    "pgcapture-actors",
    "pgcapture-chaos-tests",
    "pgcapture-derive",
    "pgcapture-engine",
    "pgcapture-node",
    "pgcapture-proto",
];

fn root() -> PathBuf {
    let actors = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = actors.parent().expect("actors stands in the repository");
    root.to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every file of ours with its path below the repository, sorted.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let (root, mut folders, mut found) = (root(), vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry of it").path();
            let name = path
                .file_name()
                .expect("entries have names")
                .to_string_lossy()
                .into_owned();
            if path.is_symlink() || NOT_OURS.contains(&name.as_str()) {
                continue;
            }
            let extension = path.extension().map(|text| text.to_string_lossy());
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_some_and(|text| extensions.contains(&text.as_ref())) {
                let text = String::from_utf8_lossy(&fs::read(&path).expect("a readable file"))
                    .into_owned();
                let below = path
                    .strip_prefix(&root)
                    .expect("below the root")
                    .display()
                    .to_string();
                found.push((below, text));
            }
        }
    }
    assert!(!found.is_empty(), "no file matches: the walk is broken");
    found.sort();
    found
}

/// Fails with every break of a rule at once, one a line.
fn none(rule: &str, breaks: &[String]) {
    assert!(breaks.is_empty(), "{rule}:\n  {}", breaks.join("\n  "));
}

/// Returns the names in a manifest's tables whose header ends with `dependencies`; the tables of
/// tests only when asked for.
fn dependencies(manifest: &str, with_tests: bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            let last = header.rsplit('.').next().unwrap_or(header);
            inside = last.ends_with("dependencies") && (with_tests || last != "dev-dependencies");
        } else if inside && !line.starts_with('#') && line.contains('=') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            names.insert(name.to_owned());
        }
    }
    names
}

#[test]
fn every_source_says_what_it_is_and_stays_readable() {
    let mut breaks = Vec::new();
    for (path, text) in files(&["rs"]) {
        // The inputs of the macro tests are somebody else's program on purpose.
        if !path.contains("/ui/") && !text.starts_with("//!") {
            breaks.push(format!("{path} does not start with //!"));
        }
        let lines = text.lines().count();
        if lines > LONGEST_FILE {
            breaks.push(format!("{path} has {lines} lines, over {LONGEST_FILE}"));
        }
        if path.ends_with("/mod.rs") {
            breaks.push(format!("{path}: foo.rs beside foo/, never mod.rs"));
        }
    }
    none("a source file", &breaks);
}

#[test]
fn the_engine_touches_nothing_outside_itself() {
    let mut breaks = Vec::new();
    for (path, text) in files(&["rs"]) {
        if !path.starts_with("actors/engine/src/") {
            continue;
        }
        for (number, line) in (1..).zip(text.lines().map(str::trim_start)) {
            if line.starts_with("//") {
                continue;
            }
            for world in ["env", "fs", "net", "process", "thread"] {
                if line.contains(&format!("std::{world}")) {
                    breaks.push(format!("{path}:{number}: std::{world}"));
                }
            }
            if line.contains("::now()") {
                breaks.push(format!("{path}:{number}: time comes in as an argument"));
            }
        }
    }
    none("the engine is pure", &breaks);
}

#[test]
fn manifests_keep_the_fences() {
    let mut breaks = Vec::new();
    for fence in FENCES {
        for name in dependencies(&read(fence.manifest), false) {
            let foreign = OURS.contains(&name.as_str()) && !fence.ours.contains(&name.as_str());
            if foreign || fence.never.split_whitespace().any(|never| never == name) {
                breaks.push(format!("{} must not see {name}", fence.manifest));
            }
        }
    }
    none("who may depend on what", &breaks);
}

#[test]
fn every_member_has_a_fence_and_takes_versions_and_lints_from_the_workspace() {
    let members: BTreeSet<String> = files(&["toml"])
        .into_iter()
        .map(|(path, _)| path)
        .filter(|path| path.ends_with("/Cargo.toml") && !path.contains("/fuzz/"))
        .collect();
    let fenced: BTreeSet<String> = FENCES.map(|fence| fence.manifest.to_owned()).into();
    assert_eq!(members, fenced, "a crate without a fence, or the other way");

    let mut breaks = Vec::new();
    for path in members {
        let manifest = read(&path);
        for name in dependencies(&manifest, true) {
            let short = format!("\n{name}.workspace = true");
            let long = format!("\n{name} = {{ workspace = true");
            if !manifest.contains(&short) && !manifest.contains(&long) {
                breaks.push(format!("{path}: {name} names a version of its own"));
            }
        }
        if !manifest.contains("\n[lints]\nworkspace = true") {
            breaks.push(format!("{path} does not take the workspace's lints"));
        }
    }
    none("one place for versions and lints", &breaks);
}

#[test]
fn the_fence_reader_tells_dependencies_from_those_of_tests() {
    let manifest = "[dependencies]\na.workspace = true\n# b = 1\nc = { workspace = true }\n\
                    [target.'cfg(unix)'.dependencies]\nd.workspace = true\n\
                    [dev-dependencies]\ne = \"1\"\n[lints]\nworkspace = true\n";
    let names = |with_tests| Vec::from_iter(dependencies(manifest, with_tests));
    assert_eq!(names(false), ["a", "c", "d"]);
    assert_eq!(names(true), ["a", "c", "d", "e"]);
}

#[test]
fn no_file_names_one_machine() {
    // Put together here, so that this file does not break its own rule.
    let places = ["home", "root", "work", "Users"].map(|place| format!("/{place}/"));
    let mut breaks = Vec::new();
    for (path, text) in files(&["md", "proto", "rs", "sh", "toml", "yaml", "yml"]) {
        for (number, line) in (1..).zip(text.lines()) {
            for place in &places {
                // An absolute path begins a word; `our/work/` is a folder of somebody's own.
                let named = line.match_indices(place.as_str()).any(|(at, _)| {
                    let before = line.get(..at).and_then(|text| text.chars().next_back());
                    before.is_none_or(|before| " \"'`(=:".contains(before))
                });
                if named {
                    breaks.push(format!("{path}:{number}: {place}"));
                }
            }
        }
    }
    none("a path of one machine", &breaks);
}

#[test]
fn an_error_code_stands_in_one_place_and_in_its_own_family() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut breaks = Vec::new();
    for (path, text) in files(&["rs"]) {
        let Some(file) = path.strip_prefix("actors/engine/src/codes/") else {
            continue;
        };
        // Dumps share the letter of the existing rows that they bring; D is for doctor's checks. C is
        // for the configuration: what nodes agree on by Raft has its letter.
        let named = match file {
            "dump.rs" => "existing_rows.rs",
            "cluster.rs" => "raft.rs",
            file => file,
        };
        let family = named.chars().next().unwrap().to_ascii_uppercase();
        for line in text.lines().map(str::trim) {
            let Some(code) = line.strip_prefix("code: \"") else {
                continue;
            };
            let code = code.trim_end_matches(['"', ',']);
            if !code.starts_with(&format!("PGC-{family}")) {
                breaks.push(format!("{path}: {code} belongs to another family"));
            }
            let stands = places.entry(code.to_owned()).or_default();
            stands.push(path.clone());
        }
    }
    for (code, stands) in places {
        if stands.len() > 1 {
            breaks.push(format!("{code} stands in {}", stands.join(" and ")));
        }
    }
    none("error codes", &breaks);
}

#[test]
fn the_readme_begins_with_exactly_two_commands() {
    let readme = read("README.md");
    let block = readme.split("```").nth(1).expect("commands are shown");
    let commands: Vec<&str> = block
        .lines()
        .skip(1)
        .filter_map(|line| line.split('#').next())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(
        commands,
        ["deploy/quickstart run", "deploy/quickstart test"]
    );
}

#[test]
fn documents_are_there_and_short_enough_to_be_read() {
    assert!(read("CHANGELOG.md").contains("\n## [Unreleased]\n"));
    assert!(read("LICENSE").contains("Version 2.0, January 2004"));
    let architecture = read("ARCHITECTURE.md");
    assert!(architecture.lines().count() <= LONGEST_ARCHITECTURE);
    assert!(architecture.contains("**Architecture Invariant**"));
}

#[test]
fn the_fences_of_cargo_deny_name_crates_that_exist() {
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let mut breaks = Vec::new();
    for line in deny.lines().filter(|line| line.contains("wrappers = [")) {
        // Quoted words up to the reason, the only one with blanks.
        let quoted = line.split('"').skip(1).step_by(2);
        for name in quoted.take_while(|text| !text.contains(' ')) {
            if !lock.contains(&format!("\nname = \"{name}\"\n")) {
                breaks.push(format!("{name} is not in Cargo.lock"));
            }
        }
    }
    none("deny.toml", &breaks);
}
