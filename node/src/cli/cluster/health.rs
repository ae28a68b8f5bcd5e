//! `pgcapture cluster health`: one line for people, one object and an exit code for scripts.

use pgcapture_engine::codes;
use pgcapture_proto::admin::v1::{
    ClusterStatus, GetClusterRequest, ListConsumersRequest, ListConsumersResponse,
    ListSourcesRequest, ListSourcesResponse,
};
use serde::Serialize;

use crate::cli::{
    Failure, Global, connect,
    output::{self, Column, Format, View},
    watch::{self, Awaited, Until, WatchArgs},
};

/// The whole in figures, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct HealthView {
    healthy: bool,
    nodes: usize,
    nodes_alive: usize,
    leader: String,
    term: u64,
    slots: usize,
    slots_streaming: usize,
    consumers: usize,
    problems: Vec<String>,
    #[serde(skip)]
    paused: usize,
}

impl HealthView {
    fn new(
        cluster: &ClusterStatus,
        sources: &ListSourcesResponse,
        consumers: Result<&ListConsumersResponse, &tonic::Status>,
    ) -> Self {
        let mut problems = Vec::new();
        if cluster.leader.is_empty() {
            problems.push("no leader is known".to_owned());
        } else if cluster.stale {
            problems.push(format!("leader {} does not answer", cluster.leader));
        }
        let mut alive = 0;
        for member in &cluster.members {
            match member.state.as_str() {
                "alive" => alive += 1,
                // Said once already, above.
                "unknown" if cluster.stale => (),
                state => problems.push(format!("node {} is {state}", member.name)),
            }
        }
        let (mut streaming, mut paused) = (0, 0);
        for source in &sources.sources {
            let status = source.status.clone().unwrap_or_default();
            let name = source.definition.as_ref().map_or("", |it| it.name.as_str());
            match status.state.as_str() {
                "following" | "catching_up" => streaming += 1,
                "paused" => paused += 1,
                state => problems.push(match status.trouble {
                    Some(trouble) => {
                        format!(
                            "source {name} is {state}: {} {}",
                            trouble.code, trouble.text
                        )
                    }
                    None => format!("source {name} is {state}"),
                }),
            }
        }
        // Without a majority nobody can say: that is a state of the cluster, and no failure to look.
        if let Err(status) = &consumers {
            problems.push(format!(
                "consumers: {}",
                Failure::from((*status).clone()).text
            ));
        }
        Self {
            healthy: problems.is_empty(),
            nodes: cluster.members.len(),
            nodes_alive: alive,
            leader: cluster.leader.clone(),
            term: cluster.term,
            slots: sources.sources.len(),
            slots_streaming: streaming,
            consumers: consumers.map_or(0, |list| list.consumers.len()),
            problems,
            paused,
        }
    }

    fn line(&self) -> String {
        let word = if self.healthy {
            "healthy"
        } else {
            "! not healthy"
        };
        let leader = if self.leader.is_empty() {
            "no leader".to_owned()
        } else {
            format!("leader {} (term {})", self.leader, self.term)
        };
        let paused = match self.paused {
            0 => String::new(),
            count => format!(", {count} paused"),
        };
        format!(
            "{word}: {}/{} nodes, {leader}, {}/{} slots streaming{paused}, {} consumers",
            self.nodes_alive, self.nodes, self.slots_streaming, self.slots, self.consumers
        )
    }
}

impl View for HealthView {
    const COLUMNS: &'static [Column] = &[("HEALTH", false)];

    fn cells(&self) -> Vec<String> {
        vec![self.line()]
    }
}

impl Awaited for HealthView {
    fn reaches(&self, _until: Until) -> bool {
        self.healthy
    }
}

pub(super) async fn run(global: &Global, args: WatchArgs) -> Result<(), Failure> {
    let began = tokio::time::Instant::now();
    let mut last = HealthView::default();
    let is_table = matches!(global.output, Format::Table | Format::Wide);
    let fetch = async || {
        // Connected anew: a node that has been away answers again.
        let mut cluster = connect::cluster(global).await?;
        let mut admin = connect::admin(global).await?;
        let members = cluster
            .get_cluster(GetClusterRequest {})
            .await?
            .into_inner();
        let sources = admin
            .list_sources(ListSourcesRequest {})
            .await?
            .into_inner();
        let consumers = admin.list_consumers(ListConsumersRequest::default()).await;
        let consumers = consumers.map(tonic::Response::into_inner);
        Ok::<_, Failure>(HealthView::new(&members, &sources, consumers.as_ref()))
    };
    // Here an error is a state to be waited through, so that `watch::show` is not enough.
    let deadline = began + global.timeout.0;
    loop {
        let outcome = fetch().await;
        let is_over = tokio::time::Instant::now() >= deadline;
        match outcome {
            Ok(view) => last = view,
            Err(failure) if args.until.is_none() || is_over => return Err(failure),
            Err(failure) => last.problems = vec![failure.text],
        }
        let is_reached = last.healthy && last.problems.is_empty();
        let wait = match (args.until, args.watch) {
            (Some(_), _) if is_reached || is_over => None,
            (Some(_), wait) => Some(wait.unwrap_or(watch::UNTIL_INTERVAL)),
            (None, wait) => wait,
        };
        if wait.is_none() || args.watch.is_some() {
            print(global, &last, is_table, args.until.map(|_| began.elapsed()))?;
        }
        let Some(wait) = wait else {
            break;
        };
        tokio::select! {
            () = tokio::time::sleep(wait.0) => (),
            _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        }
    }
    if last.healthy && last.problems.is_empty() {
        return Ok(());
    }
    let text = last.problems.join("; ");
    Err(Failure::new(3, &codes::node::NOT_HEALTHY, text))
}

fn print(
    global: &Global,
    view: &HealthView,
    is_table: bool,
    waited: Option<std::time::Duration>,
) -> Result<(), Failure> {
    if !is_table {
        return Ok(output::value(global, view)?);
    }
    let waited = waited.map_or_else(String::new, |waited| {
        format!("    (after {:.1} s)", waited.as_secs_f64())
    });
    Ok(output::data(&format!("{}{waited}\n", view.line()))?)
}

#[cfg(test)]
mod tests {
    use pgcapture_proto::admin::v1::{
        ClusterMember, Source, SourceDefinition, SourceStatus, Trouble,
    };

    use super::*;

    fn cluster(states: &[&str]) -> ClusterStatus {
        let members = states.iter().zip(1..).map(|(state, number)| ClusterMember {
            name: format!("n{number}"),
            state: (*state).to_owned(),
            ..ClusterMember::default()
        });
        ClusterStatus {
            leader: "n1".to_owned(),
            term: 7,
            members: members.collect(),
            ..ClusterStatus::default()
        }
    }

    fn sources(states: &[&str]) -> ListSourcesResponse {
        let sources = states.iter().map(|state| Source {
            definition: Some(SourceDefinition {
                name: "shop".to_owned(),
                ..SourceDefinition::default()
            }),
            status: Some(SourceStatus {
                state: (*state).to_owned(),
                trouble: (*state == "blocked").then(|| Trouble {
                    code: "PGC-S07".to_owned(),
                    text: "disk full".to_owned(),
                    next: String::new(),
                }),
                ..SourceStatus::default()
            }),
            ..Source::default()
        });
        ListSourcesResponse {
            sources: sources.collect(),
            ..ListSourcesResponse::default()
        }
    }

    fn health(cluster: &ClusterStatus, states: &[&str]) -> HealthView {
        HealthView::new(
            cluster,
            &sources(states),
            Ok(&ListConsumersResponse::default()),
        )
    }

    #[test]
    fn all_is_well_when_every_part_is() {
        let view = health(&cluster(&["alive", "alive"]), &["following", "paused"]);
        assert!(view.healthy, "{view:?}");
        assert_eq!(
            view.line(),
            "healthy: 2/2 nodes, leader n1 (term 7), 1/2 slots streaming, 1 paused, 0 consumers"
        );
    }

    #[test]
    fn every_part_that_is_not_well_is_named() {
        let view = health(&cluster(&["alive", "silent"]), &["blocked", "unreachable"]);
        assert_eq!(
            view.problems,
            [
                "node n2 is silent",
                "source shop is blocked: PGC-S07 disk full",
                "source shop is unreachable",
            ]
        );
        assert!(view.line().starts_with("! not healthy: 1/2 nodes"));
        let unknown = tonic::Status::unavailable("no majority");
        let view = HealthView::new(&cluster(&["alive"]), &sources(&[]), Err(&unknown));
        assert_eq!(view.problems, ["consumers: no majority"]);
        let mut old = cluster(&["unknown", "unknown"]);
        old.stale = true;
        assert_eq!(health(&old, &[]).problems, ["leader n1 does not answer"]);
        old.leader.clear();
        assert_eq!(health(&old, &[]).problems, ["no leader is known"]);
    }
}
