//! What was promised to be on disk: the number of durable writes, in a small file beside the store's.
//!
//! redb gives the last transaction up when its pages are not what their checksums say, and goes on from
//! the one before. That is right for a write that a crash cut off, and wrong for one that was answered: a
//! vote would be forgotten, or an entry that a majority counts on. So each durable write has a number in
//! the store, and is attested here once it was synced. A store that ends before what is attested has lost
//! something, and is not used.
//!
//! The file itself is never synced. It is at most late, and then attests less; what it attests is true.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// The file's name.
const NAME: &str = "node.attested";

/// The number and its complement: a file that holds something else attests nothing.
const BYTES: usize = 16;

/// The open file.
#[derive(Debug)]
pub(super) struct Attested {
    file: File,
}

impl Attested {
    /// Opens or creates the file; returns the number that it attests, too.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, u64)> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(directory.join(NAME))?;
        let mut bytes = [0; BYTES];
        let number = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => read(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok((Self { file }, number))
    }

    /// Attests that the write of this number is on disk. A failure leaves less attested, which is
    /// told and does no harm.
    pub(super) fn attest(&self, number: u64) {
        let both = (u128::from(!number) << 64) | u128::from(number);
        if let Err(error) = self.file.write_all_at(&both.to_le_bytes(), 0) {
            tracing::warn!(%error, "{NAME} cannot be written");
        }
    }
}

fn read(bytes: [u8; BYTES]) -> u64 {
    let both = u128::from_le_bytes(bytes);
    let number = (both & u128::from(u64::MAX)) as u64;
    let complement = (both >> 64) as u64;
    if complement == !number { number } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_attested_is_read_again_and_garbage_attests_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (attested, number) = Attested::open(folder.path()).unwrap();
        assert_eq!(number, 0);
        for number in [1, 2, 300] {
            attested.attest(number);
            assert_eq!(Attested::open(folder.path()).unwrap().1, number);
        }
        std::fs::write(folder.path().join(NAME), [7; BYTES]).unwrap();
        assert_eq!(Attested::open(folder.path()).unwrap().1, 0);
        std::fs::write(folder.path().join(NAME), b"short").unwrap();
        assert_eq!(Attested::open(folder.path()).unwrap().1, 0);
    }
}
