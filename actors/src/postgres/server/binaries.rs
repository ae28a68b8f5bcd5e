//! Where PostgreSQL's programs lie.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use super::LocalServerError;

/// Names the directory to take, for people with several versions.
const VARIABLE: &str = "PGCAPTURE_PG_BIN";

/// Directories that hold one directory a version, and the way to the programs from there.
const VERSIONED: &[(&str, &str)] = &[
    ("/usr/lib/postgresql", "bin"),
    ("/usr", "bin"),
    ("/Library/PostgreSQL", "bin"),
    ("/opt/homebrew/opt", "bin"),
    ("/usr/local/opt", "bin"),
];

/// Directories that hold the programs of one version.
const PLAIN: &[&str] = &["/usr/local/pgsql/bin", "/usr/bin", "/usr/local/bin"];

/// Finds `initdb` and `postgres`: where told to, else in `PGCAPTURE_PG_BIN`, `PATH` and the places
/// of the usual packages, the newest version first.
pub(super) fn find(told: Option<&Path>) -> Result<PathBuf, LocalServerError> {
    let named = env::var_os(VARIABLE).map(PathBuf::from);
    let candidates = match told.map(Path::to_owned).or(named) {
        // Who names a directory does not want another.
        Some(directory) => vec![directory],
        None => usual_places(),
    };
    let found = candidates.iter().find(|directory| has_programs(directory));
    match found {
        Some(directory) => Ok(real(directory)),
        None => Err(LocalServerError::NoBinaries {
            searched: candidates,
        }),
    }
}

/// Follows links: `/usr/bin/postgres` may lead to the directory that has all the other programs and
/// the libraries beside them.
fn real(directory: &Path) -> PathBuf {
    let program = fs::canonicalize(directory.join("postgres")).ok();
    let target = program
        .as_deref()
        .and_then(Path::parent)
        .filter(|real| has_programs(real));
    target.unwrap_or(directory).to_owned()
}

fn has_programs(directory: &Path) -> bool {
    ["initdb", "postgres"]
        .iter()
        .all(|name| directory.join(name).is_file())
}

fn usual_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
    for (parent, bin) in VERSIONED {
        places.extend(
            versions(Path::new(parent))
                .into_iter()
                .map(|dir| dir.join(bin)),
        );
    }
    places.extend(PLAIN.iter().map(PathBuf::from));
    places
}

/// Returns `15`, `pgsql-16`, `postgresql@17` of a directory, the newest first.
fn versions(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut found: Vec<(u32, PathBuf)> = paths
        .filter_map(|path| Some((major(path.file_name()?)?, path)))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

fn major(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    let number = ["", "pgsql-", "postgresql@"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix)?.parse().ok());
    number.filter(|major| *major >= 9)
}

/// Returns the library directory beside the programs if it brings its own libpq: the system's may
/// be of another version.
pub(super) fn library_path(bin_dir: &Path) -> Option<PathBuf> {
    let lib = bin_dir.parent()?.join("lib");
    let mut entries = fs::read_dir(&lib).ok()?.filter_map(Result::ok);
    let has_libpq =
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with("libpq.so"));
    has_libpq.then_some(lib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first_by_number() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["9.6", "9", "10", "15", "share"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        let names: Vec<_> = versions(parent.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["15", "10", "9"]);
    }

    #[test]
    fn a_named_directory_without_programs_is_an_error_that_names_it() {
        let empty = tempfile::tempdir().unwrap();
        let error = find(Some(empty.path())).unwrap_err().to_string();
        assert!(
            error.contains(&empty.path().display().to_string()),
            "{error}"
        );
    }
}
