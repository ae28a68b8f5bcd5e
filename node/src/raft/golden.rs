//! What lies on disks and travels between nodes keeps its form: files of bytes that an earlier version
//! wrote are read, mean the same, and are written again byte for byte.
//!
//! A line of a file is a name and bytes in hexadecimal. The files of a form are never changed once it
//! was released, only added to.

mod samples;

use std::{collections::BTreeSet, fmt::Write as _};

use openraft::{entry::RaftEntry as _, impls::leader_id_adv::LeaderId};
use pgcapture_engine::cluster::{Agreed, Proposal, Refusal, Request, RequestId, State};

use super::types::{Entry, LogId, Peer, Reply, StoredMembership, Vote, from_bytes, to_bytes};
use crate::store::{Batch, FORMAT_PROTOCOL_FIRST, FORMAT_VERSION, Row, Store};

/// What to do when bytes differ.
const NEXT: &str = "\
    The encoding of what nodes agree on has changed. Nodes that are upgraded would misread their own \
    disks and each other. Put the old encoding back (new variants of enums go to the end, new fields \
    need a new variant or a new type), or add a form: raise FORM in raft/types.rs or FORMAT_VERSION in \
    store/format.rs, keep reading the old one, and put the new bytes into a file of their own beside \
    the old ones. A line that is only missing is added to the file of the newest form.";

/// Every request of the samples, and how it ended.
const REQUESTS: &str = include_str!("../../fixtures/agreed/form-1-requests.txt");

/// What Raft itself keeps.
const MARKS: &str = include_str!("../../fixtures/agreed/form-1-raft.txt");

/// Every row of the store after all requests.
const ROWS: &str = include_str!("../../fixtures/agreed/store-5-rows.txt");

/// What came with version 2 of the protocol, and how it ended.
const REQUESTS_OF_2: &str = include_str!("../../fixtures/agreed/protocol-2-requests.txt");

/// Every row of the store after these as well.
const ROWS_6: &str = include_str!("../../fixtures/agreed/store-6-rows.txt");

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The lines of a file: name and bytes.
fn lines(file: &str) -> Vec<(&str, Vec<u8>)> {
    let lines = file.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(name, bytes)| (name, unhex(bytes))).collect()
}

/// Fails unless the file holds exactly these lines, and shows what it would hold.
#[track_caller]
fn assert_same(file: &str, written: &[(String, Vec<u8>)]) {
    let lines = written.iter();
    let text: String = lines
        .map(|(name, bytes)| format!("{name} {}\n", hex(bytes)))
        .collect();
    if text == file {
        return;
    }
    let differs = text.lines().zip(file.lines()).find(|(new, old)| new != old);
    panic!("{NEXT}\n\nfirst difference (now, before): {differs:#?}\n\nnow:\n{text}");
}

/// Requests, each under an id of its own from `first` on.
fn named(proposals: Vec<Proposal>, first: u128) -> Vec<(String, Request)> {
    let request = |(proposal, id): (Proposal, u128)| {
        let id = RequestId(id << 64 | id);
        (samples::name(&proposal), Request { id, proposal })
    };
    proposals.into_iter().zip(first..).map(request).collect()
}

/// The requests of the first version.
fn requests() -> Vec<(String, Request)> {
    named(samples::proposals(), 1)
}

/// Those of the second, after them.
fn requests_of_2() -> Vec<(String, Request)> {
    let first = requests().len() as u128 + 1;
    named(samples::proposals_of_2(), first)
}

#[test]
fn every_command_has_a_sample() {
    let all = requests().into_iter().chain(requests_of_2());
    let sampled: BTreeSet<String> = all.map(|(name, _)| name).collect();
    let known: BTreeSet<String> = samples::NAMES.iter().map(|it| (*it).to_owned()).collect();
    assert_eq!(sampled, known);
}

/// Applies requests and checks that they and their answers have the form of the file, and mean the same.
fn check_requests(
    file: &str,
    agreed: &mut Agreed,
    requests: &[(String, Request)],
    refusals: Vec<Refusal>,
) {
    let mut written = Vec::new();
    for (name, request) in requests {
        written.push((format!("request:{name}"), to_bytes(request).unwrap()));
        let (outcome, _) = agreed.apply(request.clone());
        let outcome = Reply(Some(outcome));
        written.push((format!("reply:{name}"), to_bytes(&outcome).unwrap()));
    }
    for refusal in refusals {
        let reply = Reply(Some(Err(refusal)));
        written.push(("reply:refused".to_owned(), to_bytes(&reply).unwrap()));
    }
    assert_same(file, &written);
    let mut known = requests.iter();
    for (name, bytes) in lines(file) {
        let again = if name.starts_with("request:") {
            let request: Request = from_bytes(&bytes).expect(NEXT);
            assert_eq!(Some(&request), known.next().map(|it| &it.1));
            to_bytes(&request).unwrap()
        } else {
            let reply: Reply = from_bytes(&bytes).expect(NEXT);
            to_bytes(&reply).unwrap()
        };
        assert_eq!(again, bytes, "{name}: {NEXT}");
    }
}

#[test]
fn requests_and_answers_keep_their_form() {
    let mut agreed = Agreed::default();
    check_requests(REQUESTS, &mut agreed, &requests(), samples::refusals());
    assert_eq!(agreed.state.protocol(), 1);
    let newer = requests_of_2();
    check_requests(REQUESTS_OF_2, &mut agreed, &newer, samples::refusals_of_2());
    assert_eq!(agreed.state.protocol(), 2);
}

/// What the requests make of an empty store, as rows.
fn rows(store: &Store) -> Vec<(String, Vec<u8>)> {
    let mut written = Vec::new();
    let view = store.view().unwrap();
    view.each(|row| {
        let kind = match &row {
            Row::State(_) => "state",
            Row::Cursor(..) => "cursor",
            Row::Dump(..) => "dump",
            Row::DumpTable(..) => "dump_table",
            Row::Answered(..) => "answered",
            Row::Added(..) => "added",
        };
        written.push((kind.to_owned(), to_bytes(&row).unwrap()));
        Ok::<_, crate::store::StoreError>(())
    })
    .unwrap();
    written
}

/// Checks that a store has the rows of the file, and that they are read as what it holds.
fn check_rows(file: &str, store: &Store, version: u32) {
    assert_same(file, &rows(store));
    assert_eq!(store.view().unwrap().version().unwrap(), version);
    let other = tempfile::tempdir().unwrap();
    let read = Store::open(other.path()).unwrap();
    let of_file = lines(file).into_iter();
    let of_file = of_file.map(|(_, bytes)| Ok(from_bytes::<Row>(&bytes).expect(NEXT)));
    read.replace(of_file, version, &[]).expect(NEXT);
    assert_eq!(**read.state().borrow(), **store.state().borrow());
    assert_ne!(**read.state().borrow(), State::default());
    assert_same(file, &rows(&read));
    drop(read);
    let again = Store::open(other.path()).unwrap();
    assert_eq!(**again.state().borrow(), **store.state().borrow());
    assert_eq!(again.view().unwrap().version().unwrap(), version);
}

#[test]
fn a_whole_state_keeps_its_form() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let apply = |requests: Vec<(String, Request)>| {
        let batch = Batch {
            requests: requests.into_iter().map(|it| it.1).collect(),
            marks: Vec::new(),
        };
        store.apply(batch).unwrap();
    };
    apply(requests());
    let written = rows(&store);
    for kind in ["state", "cursor", "dump", "dump_table", "answered"] {
        assert!(written.iter().any(|it| it.0 == kind), "no row of {kind}");
    }
    // Nothing of the second version before it is agreed on: the program before reads all of it.
    check_rows(ROWS, &store, FORMAT_PROTOCOL_FIRST);
    apply(requests_of_2());
    check_rows(ROWS_6, &store, FORMAT_VERSION);
}

#[test]
fn what_raft_keeps_has_its_form() {
    let leader = LeaderId {
        term: 7,
        node_id: 3,
    };
    let id = |index| LogId::new(leader, index);
    let peer = |number: u64| Peer {
        name: format!("n{number}"),
        address: format!("n{number}:7700"),
    };
    let nodes = (1..=3).map(|number| (number, peer(number)));
    let nodes: std::collections::BTreeMap<u64, Peer> = nodes.collect();
    let voters = vec![[1, 2].into(), [1, 2, 3].into()];
    let membership = openraft::Membership::new(voters, nodes).unwrap();
    let (_, request) = requests().swap_remove(0);
    let stored = StoredMembership::new(Some(id(5)), membership.clone());
    let entries = [
        ("entry:blank", Entry::new_blank(id(300))),
        ("entry:normal", Entry::new_normal(id(301), request)),
        (
            "entry:membership",
            Entry::new_membership(id(302), membership),
        ),
    ];
    let mut written: Vec<(String, Vec<u8>)> = entries
        .iter()
        .map(|(name, entry)| ((*name).to_owned(), to_bytes(entry).unwrap()))
        .collect();
    let mut add = |name: &str, bytes: Vec<u8>| written.push((name.to_owned(), bytes));
    add("vote", to_bytes(&Vote::new(7, 3)).unwrap());
    add(
        "vote:committed",
        to_bytes(&Vote::new_committed(7, 3)).unwrap(),
    );
    add("purged", to_bytes(&id(299)).unwrap());
    add("applied", to_bytes(&Some(id(300))).unwrap());
    add("applied:none", to_bytes(&None::<LogId>).unwrap());
    add("membership", to_bytes(&stored).unwrap());
    assert_same(MARKS, &written);
    for (name, bytes) in lines(MARKS) {
        let again = match name.split_once(':').map_or(name, |it| it.0) {
            "entry" => to_bytes(&from_bytes::<Entry>(&bytes).expect(NEXT)),
            "vote" => to_bytes(&from_bytes::<Vote>(&bytes).expect(NEXT)),
            "purged" => to_bytes(&from_bytes::<LogId>(&bytes).expect(NEXT)),
            "applied" => to_bytes(&from_bytes::<Option<LogId>>(&bytes).expect(NEXT)),
            _ => to_bytes(&from_bytes::<StoredMembership>(&bytes).expect(NEXT)),
        };
        assert_eq!(again.unwrap(), bytes, "{name}: {NEXT}");
    }
}

#[test]
fn bytes_of_an_unknown_form_are_refused() {
    let (_, bytes) = lines(REQUESTS).swap_remove(0);
    let mut newer = bytes.clone();
    newer[0] += 1;
    let error = from_bytes::<Request>(&newer).unwrap_err();
    assert!(error.to_string().contains("unknown form 2"), "{error}");
    let short = bytes.split_last().unwrap().1;
    assert!(from_bytes::<Request>(short).is_err());
    let longer = [bytes, vec![0]].concat();
    assert!(from_bytes::<Request>(&longer).is_err());
}
