//! One list out of those of several nodes: the owner of a source knows how it is, and what an owner
//! that does not answer would have said is shown as missing.
//!
//! Pure: values in, values out.

use std::collections::BTreeMap;

use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{Consumer, Source, SourceStatus, Stream, Trouble};
use tonic::Status;

/// State and health of what only a node knows that does not answer.
const UNREACHABLE: &str = "unreachable";

/// What other nodes said.
#[derive(Debug)]
pub(super) struct Told<T> {
    /// By the name of the node.
    pub(super) answers: BTreeMap<String, Vec<T>>,
    /// Nodes that said nothing.
    pub(super) unreachable: Vec<String>,
}

impl<T> Told<T> {
    /// Sorts answers.
    pub(super) fn new(all: Vec<(String, Result<Vec<T>, Status>)>) -> Self {
        let (mut answers, mut unreachable) = (BTreeMap::new(), Vec::new());
        for (node, answer) in all {
            match answer {
                Ok(answer) => {
                    answers.insert(node, answer);
                }
                Err(status) => {
                    tracing::warn!(node, %status, "a node does not answer for its part of a list");
                    unreachable.push(node);
                }
            }
        }
        Self {
            answers,
            unreachable,
        }
    }

    fn is_unreachable(&self, node: &str) -> bool {
        self.unreachable.iter().any(|it| it == node)
    }
}

/// A source whose owner does not answer: what is agreed on, and nothing of what it does.
pub(super) fn unreachable_source(source: &mut Source) {
    let away = &codes::node::OWNER_AWAY;
    source.status = Some(SourceStatus {
        state: UNREACHABLE.to_owned(),
        trouble: Some(Trouble {
            code: away.code.to_owned(),
            text: format!("its owner {} does not answer", source.owner),
            next: away.next.to_owned(),
        }),
        ..SourceStatus::default()
    });
}

/// Puts what the owners said in the place of what this node knows.
pub(super) fn sources(list: &mut [Source], told: &Told<Source>) {
    let name = |source: &Source| source.definition.as_ref().map(|it| it.name.clone());
    for source in list {
        if told.is_unreachable(&source.owner) {
            unreachable_source(source);
            continue;
        }
        let answer = told.answers.get(&source.owner);
        let theirs = answer.and_then(|all| all.iter().find(|it| name(it) == name(source)));
        if let Some(theirs) = theirs {
            source.clone_from(theirs);
        }
    }
}

/// The same of streams; `owner_of` says which other node owns a stream.
pub(super) fn streams(
    list: &mut [Stream],
    owner_of: &BTreeMap<String, String>,
    told: &Told<Stream>,
) {
    for stream in list {
        let Some(owner) = owner_of.get(&stream.name) else {
            continue;
        };
        if told.is_unreachable(owner) {
            UNREACHABLE.clone_into(&mut stream.health);
            stream.health_reason = format!("its owner {owner} does not answer");
            continue;
        }
        let answer = told.answers.get(owner);
        let theirs = answer.and_then(|all| all.iter().find(|it| it.name == stream.name));
        if let Some(theirs) = theirs {
            stream.clone_from(theirs);
        }
    }
}

/// The same of consumers. Every node knows of all; the home of one knows how it is: `home_of` has
/// those, by uri, that are at home on another node. What this node knows stands in for a home that
/// does not answer.
pub(super) fn consumers(
    mut list: Vec<Consumer>,
    home_of: &BTreeMap<String, String>,
    told: Told<Consumer>,
) -> (Vec<Consumer>, Vec<String>) {
    list.retain(|consumer| {
        let home = home_of.get(&consumer.uri);
        home.is_none_or(|home| told.is_unreachable(home))
    });
    for (node, answer) in told.answers {
        let is_at_home = |it: &Consumer| home_of.get(&it.uri) == Some(&node);
        list.extend(answer.into_iter().filter(is_at_home));
    }
    list.sort_by(|one, other| one.uri.cmp(&other.uri));
    (list, told.unreachable)
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::admin::v1::SourceDefinition;

    use super::*;

    fn source(name: &str, owner: &str, state: &str) -> Source {
        Source {
            definition: Some(SourceDefinition {
                name: name.to_owned(),
                ..SourceDefinition::default()
            }),
            owner: owner.to_owned(),
            status: Some(SourceStatus {
                state: state.to_owned(),
                ..SourceStatus::default()
            }),
            ..Source::default()
        }
    }

    fn told<T>(node: &str, answer: Vec<T>, away: &str) -> Told<T> {
        let away_status = Status::unavailable("away");
        Told::new(vec![
            (node.to_owned(), Ok(answer)),
            (away.to_owned(), Err(away_status)),
        ])
    }

    #[test]
    fn the_owner_says_how_a_source_is_and_an_owner_that_is_away_is_shown() {
        let mut list = vec![
            source("a", "n1", "following"),
            source("b", "n2", "starting"),
            source("c", "n3", "starting"),
            source("d", "", "starting"),
        ];
        // What n2 says of a is hearsay: n1, this node, owns it.
        let answer = vec![
            source("a", "n1", "starting"),
            source("b", "n2", "following"),
        ];
        sources(&mut list, &told("n2", answer, "n3"));
        let states = list
            .iter()
            .map(|it| it.status.as_ref().unwrap().state.as_str());
        let states: Vec<&str> = states.collect();
        assert_eq!(
            states,
            ["following", "following", "unreachable", "starting"]
        );
        let trouble = list[2].status.as_ref().unwrap().trouble.clone().unwrap();
        assert_eq!(trouble.code, "PGC-N18");
        assert!(trouble.text.contains("n3"), "{}", trouble.text);
    }

    fn owner_of(streams: &[(&str, &str)]) -> BTreeMap<String, String> {
        let streams = streams.iter();
        streams
            .map(|(stream, owner)| ((*stream).to_owned(), (*owner).to_owned()))
            .collect()
    }

    #[test]
    fn a_stream_whose_owner_is_away_is_no_stream_without_rows() {
        let stream = |name: &str, bytes| Stream {
            name: name.to_owned(),
            bytes,
            ..Stream::default()
        };
        let mut list = vec![stream("a", 1), stream("b", 0), stream("c", 0)];
        let owners = owner_of(&[("b", "n2"), ("c", "n3")]);
        streams(&mut list, &owners, &told("n2", vec![stream("b", 7)], "n3"));
        assert_eq!((list[0].bytes, list[1].bytes), (1, 7));
        assert_eq!(list[2].health, "unreachable");
    }

    #[test]
    fn a_consumer_is_told_by_its_home_once() {
        let consumer = |uri: &str, stream: &str, lag_bytes| Consumer {
            uri: uri.to_owned(),
            stream: stream.to_owned(),
            lag_bytes,
            ..Consumer::default()
        };
        let here = vec![
            consumer("a/x", "a", 1),
            consumer("b/x", "b", 99),
            consumer("c/x", "c", 50),
        ];
        let theirs = vec![consumer("b/x", "b", 2), consumer("a/x", "a", 99)];
        let homes = owner_of(&[("b/x", "n2"), ("c/x", "n3")]);
        let (list, unreachable) = consumers(here, &homes, told("n2", theirs, "n3"));
        let list: Vec<_> = list
            .iter()
            .map(|it| (it.uri.as_str(), it.lag_bytes))
            .collect();
        assert_eq!(list, [("a/x", 1), ("b/x", 2), ("c/x", 50)]);
        assert_eq!(unreachable, ["n3"]);
    }
}
