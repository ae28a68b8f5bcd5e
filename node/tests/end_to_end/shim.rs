//! A library that is put into the node and lets its syncs fail or be slow when the test says so.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

const SHIM: &str = include_str!("refuse_sync.c");

/// What a node's disk is to do.
pub(crate) struct Refusal {
    folder: TempDir,
}

impl Refusal {
    /// Builds the library; the C compiler is one that rustc needs as well.
    pub(crate) fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("refuse_sync.c");
        fs::write(&source, SHIM).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]);
        compiler
            .arg(folder.path().join("refuse_sync.so"))
            .arg(source);
        let output = compiler.output().expect("there is a C compiler");
        assert!(output.status.success(), "{output:?}");
        Self { folder }
    }

    /// What a node must have in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        let folder = self.folder.path();
        let library = folder.join("refuse_sync.so");
        [
            ("LD_PRELOAD", library),
            ("PGCAPTURE_REFUSE", folder.to_owned()),
        ]
    }

    /// The file that is an order; see the library.
    pub(crate) fn order(&self, call: &str) -> PathBuf {
        self.folder.path().join(call)
    }
}
