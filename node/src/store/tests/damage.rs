//! A file that was damaged is refused with its name and what to do, or holds everything that was
//! promised; nothing else is ever read from it.

use super::*;

/// What a store was told to keep.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    state: State,
    cursors: Vec<(SubscriptionId, Cursor)>,
    vote: Option<Vec<u8>>,
    entries: Vec<(u64, Vec<u8>)>,
}

const ENTRIES: u64 = 200;

fn kept(store: &Store) -> Kept {
    let owned = |(id, cursor): (&SubscriptionId, &Arc<Cursor>)| (id.clone(), Cursor::clone(cursor));
    Kept {
        state: State::clone(&store.state().borrow()),
        cursors: store.with_cursors(|cursors| cursors.iter().map(owned).collect()),
        vote: store.mark(Mark::Vote).unwrap(),
        entries: store.entries((0, u64::MAX), usize::MAX).unwrap(),
    }
}

/// A store with something of everything, still open.
async fn filled(folder: &Path) -> Store {
    let store = Store::open(folder).unwrap();
    let add = Command::AddSource(Box::new(source("shop")));
    store.propose(add).await.unwrap();
    for index in 0..ENTRIES {
        let entry = (index, vec![index as u8; 300]);
        store.write_log(&[LogWrite::Append(vec![entry])]).unwrap();
    }
    store
        .save(vec![(subscription("a"), cursor(7))])
        .await
        .unwrap();
    store
        .write_log(&[LogWrite::Set(Mark::Vote, vec![9; 20])])
        .unwrap();
    store
}

/// Opens a folder with these bytes as the file, and with what was attested.
fn open(bytes: &[u8], attested: &Path) -> Result<Kept, StoreError> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("node.redb"), bytes).unwrap();
    fs::copy(attested, folder.path().join("node.attested")).unwrap();
    Store::open(folder.path()).map(|store| kept(&store))
}

#[track_caller]
fn assert_refused(error: &StoreError) {
    assert_eq!(error.explanation().code, "PGC-N05", "{error}");
    let text = error.to_string();
    assert!(text.starts_with("PGC-N05: "), "{text}");
    assert!(text.contains("/node.redb: "), "{text}");
    let next = error.explanation().next;
    assert!(next.contains("cluster remove"), "{next}");
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path()).await;
    let file = folder.path().join("node.redb");
    let attested = folder.path().join("node.attested");
    // As a crash leaves it, and as a clean end does.
    let crashed = fs::read(&file).unwrap();
    let expected = kept(&store);
    assert_eq!(open(&crashed, &attested).unwrap(), expected);
    drop(store);
    let clean = fs::read(&file).unwrap();
    assert_eq!(open(&clean, &attested).unwrap(), expected);
    for bytes in [crashed, clean] {
        for cut in [
            1,
            7,
            511,
            4_096,
            bytes.len() / 2,
            bytes.len() - 100,
            bytes.len(),
        ] {
            let short = &bytes[..bytes.len() - cut];
            assert_refused(&open(short, &attested).unwrap_err());
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless_wherever_it_is() {
    const PAGE: usize = 4_096;
    let folder = tempfile::tempdir().unwrap();
    let store = filled(folder.path()).await;
    let (file, attested) = (
        folder.path().join("node.redb"),
        folder.path().join("node.attested"),
    );
    let crashed = fs::read(&file).unwrap();
    let expected = kept(&store);
    drop(store);
    let clean = fs::read(&file).unwrap();
    for bytes in [crashed, clean] {
        let mut refused = 0;
        // The first page is the header: every bit counts. Of others, some that hold rows.
        let header = (0..320).step_by(3);
        let is_empty = |page: &usize| {
            bytes[*page..(*page + PAGE).min(bytes.len())]
                .iter()
                .all(|it| *it == 0)
        };
        let pages: Vec<usize> = (PAGE..bytes.len())
            .step_by(PAGE)
            .filter(|page| !is_empty(page))
            .collect();
        let rows = pages.iter().flat_map(|page| [*page + 2, *page + 700]);
        for place in header.chain(rows) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << (place % 8);
            match open(&damaged, &attested) {
                Ok(kept) => assert_eq!(kept, expected, "a bit at {place} went unseen"),
                Err(error) => {
                    refused += 1;
                    assert!(
                        matches!(
                            error,
                            StoreError::Damaged { .. } | StoreError::NewerVersion { .. }
                        ),
                        "{error:?}"
                    );
                }
            }
        }
        assert!(refused > 10, "{refused} refused of {} pages", pages.len());
    }
}

#[tokio::test]
async fn an_older_copy_is_refused_until_somebody_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(folder.path()).await);
    let file = folder.path().join("node.redb");
    let older = fs::read(&file).unwrap();
    let store = Store::open(folder.path()).unwrap();
    store
        .write_log(&[LogWrite::Set(Mark::Vote, vec![10])])
        .unwrap();
    drop(store);
    fs::write(&file, older).unwrap();
    for _ in 0..2 {
        let error = Store::open(folder.path()).unwrap_err();
        assert_refused(&error);
        assert!(error.to_string().contains("is missing"), "{error}");
    }
    fs::remove_file(folder.path().join("node.attested")).unwrap();
    Store::open(folder.path()).unwrap();
}

#[tokio::test]
async fn a_write_whose_attestation_was_lost_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let attested = folder.path().join("node.attested");
    let store = filled(folder.path()).await;
    let late = fs::read(&attested).unwrap();
    store
        .write_log(&[LogWrite::Set(Mark::Vote, vec![11])])
        .unwrap();
    assert_ne!(fs::read(&attested).unwrap(), late);
    drop(store);
    fs::write(&attested, &late).unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.mark(Mark::Vote).unwrap(), Some(vec![11]));
    // Attested anew at the start.
    assert_ne!(fs::read(&attested).unwrap(), late);
}
