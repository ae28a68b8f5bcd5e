//! Which replicas of a source may be asked, and asking them one after another.

use pgcapture_engine::{
    cluster::{Replica, State},
    codes,
};

use super::{DumpError, RangeRemedy, ReadTarget, TablesFound, hub::Hub};

/// Why there is nobody to ask.
#[derive(Debug)]
pub(super) enum TargetError {
    /// The source is gone.
    NoSource(DumpError),
    /// The source has no replica.
    NoReplica(DumpError),
}

impl From<TargetError> for DumpError {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::NoSource(error) | TargetError::NoReplica(error) => error,
        }
    }
}

/// Returns the replicas of a source, `first` first.
pub(super) fn of_source(
    state: &State,
    source: &str,
    first: Option<&str>,
) -> Result<Vec<ReadTarget>, TargetError> {
    let definition = state.source(source).map_err(|refusal| {
        TargetError::NoSource(DumpError {
            explanation: &codes::dump::UNKNOWN_URI,
            what: refusal.to_string(),
            remedy: RangeRemedy::Fail,
        })
    })?;
    let target = |replica: &Replica| ReadTarget {
        replica: replica.clone(),
        source: definition.clone(),
    };
    let mut targets: Vec<_> = state.replicas_of(source).map(target).collect();
    targets.sort_by_key(|target| Some(target.replica.name.as_str()) != first);
    if targets.is_empty() {
        return Err(TargetError::NoReplica(DumpError {
            explanation: &codes::dump::NO_REPLICA,
            what: format!("source \"{source}\" has no replica"),
            remedy: RangeRemedy::Fail,
        }));
    }
    Ok(targets)
}

/// Asks the first replica that answers; the last error when none does.
pub(super) async fn look(
    hub: &Hub,
    targets: &[ReadTarget],
    names: &[String],
) -> Result<TablesFound, DumpError> {
    let mut last = None;
    for target in targets {
        match hub.reader.look(target, names).await {
            Ok(found) => return Ok(found),
            Err(error) => {
                let replica = &target.replica.name;
                tracing::warn!(replica, %error, code = error.explanation.code, "a replica cannot be asked");
                last = Some(DumpError {
                    what: format!("replica \"{replica}\": {}", error.what),
                    ..error
                });
            }
        }
    }
    Err(last.unwrap_or_else(|| DumpError {
        explanation: &codes::dump::NO_REPLICA,
        what: "there is no replica to ask".to_owned(),
        remedy: RangeRemedy::Retry,
    }))
}
