//! Who else belongs to the cluster: asked once of the node that answered first.
//!
//! What is learned comes after what was given: an address by which nodes reach each other may be none
//! for clients. A gateway that does not know the question, or is slow, costs nothing but this attempt.

use std::time::Duration;

use pgcapture_proto::admin::v1::{GetClusterRequest, cluster_client::ClusterClient};
use tonic::{Status, transport::Channel};

use crate::{client::Client, dump::authorized, trust};

/// The answer is in the memory of the node; a slower one is not waited for.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// At most so many addresses are learned: more than vote in a cluster, few enough to try them all.
const LEARNED_MAX: usize = 16;

/// Asks the node behind a connection; empty when it does not say.
///
/// # Errors
///
/// When the node does not take our certificate.
pub(crate) async fn learn(client: &Client, channel: Channel) -> Result<Vec<String>, Status> {
    let Ok(request) = authorized(client, GetClusterRequest {}) else {
        return Ok(Vec::new());
    };
    let mut cluster = ClusterClient::new(channel);
    let asked = tokio::time::timeout(ANSWER_MAX, cluster.get_cluster(request)).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) if trust::distrust(&status).is_some() => return Err(status),
        Ok(Err(_)) | Err(_) => return Ok(Vec::new()),
    };
    let members = answer.into_inner().members.into_iter();
    let addresses = members.map(|member| member.address);
    Ok(addresses
        .filter(|address| !address.is_empty())
        .take(LEARNED_MAX)
        .collect())
}

/// Adds what was learned to what was given, under the scheme of the first that was given.
pub(crate) fn join(given: Vec<String>, learned: &[String]) -> Vec<String> {
    let first = given.first().and_then(|it| it.split_once("://"));
    let scheme = first.map_or("http", |(scheme, _)| scheme).to_owned();
    let mut all = given;
    for address in learned {
        let address = format!("{scheme}://{address}");
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learned_comes_behind_what_was_given_and_once() {
        let given = vec!["https://n1:7700".to_owned()];
        let learned = ["n1:7700", "n2:7700"].map(str::to_owned);
        let joined = join(given, &learned);
        assert_eq!(joined, ["https://n1:7700", "https://n2:7700"]);
    }
}
