//! Detours for `pgcapture dev`: a node of it reaches every other one through a proxy that `dev` runs,
//! so that `dev partition` can cut the way.
//!
//! For `dev` only. The environment variable [`VARIABLE`] names a file of lines `ADDRESS TARGET`; it is
//! read again for every new connection, because nodes join later. Both must be loopback addresses:
//! nothing can be led out of the machine, or into it.

use std::{
    fs, io,
    net::{AddrParseError, SocketAddr},
    path::{Path, PathBuf},
};

/// Names the file; unset everywhere but in nodes that `pgcapture dev` started.
pub(crate) const VARIABLE: &str = "PGCAPTURE_DEV_ROUTES";

/// Where the detours are; the default has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    file: Option<PathBuf>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RouteError {
    /// It cannot be read.
    #[error("{VARIABLE}: {file} cannot be read")]
    Read {
        /// Its name.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is none.
    #[error("{VARIABLE}: \"{line}\" is no line ADDRESS TARGET")]
    Line {
        /// What it says.
        line: String,
        /// Why; `None` when a word is missing.
        #[source]
        source: Option<AddrParseError>,
    },
    /// A line leads elsewhere.
    #[error("{VARIABLE}: \"{line}\" leaves this machine; detours are for `pgcapture dev` only")]
    NotLoopback {
        /// What it says.
        line: String,
    },
}

impl Routes {
    /// Reads the variable and checks the file that it names.
    pub(super) fn from_environment() -> Result<Self, RouteError> {
        let routes = Self {
            file: std::env::var_os(VARIABLE).map(PathBuf::from),
        };
        routes.target("").map(|_| routes)
    }

    /// Returns where to connect for `address`: there, without a detour.
    pub(super) fn target(&self, address: &str) -> Result<String, RouteError> {
        let direct = address.to_owned();
        let Some(file) = &self.file else {
            return Ok(direct);
        };
        let text = fs::read_to_string(file).map_err(|source| RouteError::Read {
            file: display(file),
            source,
        })?;
        let mut found = direct;
        for line in text.lines() {
            let (from, to) = parse(line)?;
            if from.to_string() == address {
                found = to.to_string();
            }
        }
        Ok(found)
    }
}

fn display(file: &Path) -> String {
    file.display().to_string()
}

fn parse(line: &str) -> Result<(SocketAddr, SocketAddr), RouteError> {
    let bad = |source| RouteError::Line {
        line: line.to_owned(),
        source,
    };
    let (from, to) = line.split_once(' ').ok_or_else(|| bad(None))?;
    let address = |text: &str| text.trim().parse::<SocketAddr>();
    let from = address(from).map_err(|error| bad(Some(error)))?;
    let to = address(to).map_err(|error| bad(Some(error)))?;
    if from.ip().is_loopback() && to.ip().is_loopback() {
        return Ok((from, to));
    }
    Err(RouteError::NotLoopback {
        line: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(text: &str) -> (tempfile::TempDir, Routes) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("routes");
        fs::write(&file, text).unwrap();
        (folder, Routes { file: Some(file) })
    }

    #[test]
    fn without_a_file_there_is_no_detour() {
        let target = Routes::default().target("10.0.0.1:7700").unwrap();
        assert_eq!(target, "10.0.0.1:7700");
    }

    #[test]
    fn an_address_is_replaced_and_the_file_is_read_again() {
        let (folder, routes) = routes("127.0.0.1:7701 127.0.0.1:41001\n");
        assert_eq!(routes.target("127.0.0.1:7701").unwrap(), "127.0.0.1:41001");
        assert_eq!(routes.target("127.0.0.1:7702").unwrap(), "127.0.0.1:7702");
        fs::write(
            folder.path().join("routes"),
            "127.0.0.1:7701 127.0.0.1:41001\n127.0.0.1:7702 127.0.0.1:41002\n",
        )
        .unwrap();
        assert_eq!(routes.target("127.0.0.1:7702").unwrap(), "127.0.0.1:41002");
    }

    #[test]
    fn nothing_leads_out_of_the_machine_and_nothing_is_guessed() {
        for (text, part) in [
            ("127.0.0.1:1 10.0.0.1:2", "leaves this machine"),
            ("10.0.0.1:1 127.0.0.1:2", "leaves this machine"),
            ("127.0.0.1:1", "no line"),
            ("127.0.0.1:1 localhost", "no line"),
        ] {
            let (_folder, routes) = routes(text);
            let error = routes.target("127.0.0.1:1").unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let missing = Routes {
            file: Some(PathBuf::from("/nowhere/routes")),
        };
        let error = missing.target("127.0.0.1:1").unwrap_err();
        assert!(matches!(error, RouteError::Read { .. }), "{error}");
    }
}
