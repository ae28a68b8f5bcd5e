//! The limit of kept WAL between the administration API and the node's values.

use pgcapture_actors::agent::AgentStatus;
use pgcapture_engine::wal_guard::{self, WalWish};
use pgcapture_proto::admin::v1::{WalGuard, WalOutlook};

use crate::{
    config::{WalGuardSection, nearest_policy},
    sources::SourceError,
    units::{Percent, Size},
};

/// What a request says about WAL.
pub(super) fn section(wanted: WalGuard) -> Result<WalGuardSection, SourceError> {
    let invalid = |text: String| SourceError::Invalid { text };
    let alert = match wanted.alert_percent {
        None => None,
        Some(percent) => {
            let parsed = format!("{percent}%").parse::<Percent>();
            Some(parsed.map_err(|error| invalid(error.to_string()))?)
        }
    };
    let policy = match wanted.policy.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error: wal_guard::UnknownPolicy| {
            let meant = nearest_policy(text);
            let meant = meant.map(|word| format!("; did you mean \"{word}\"?"));
            invalid(format!("{error}{}", meant.unwrap_or_default()))
        })?),
    };
    Ok(WalGuardSection {
        limit: wanted.limit_bytes.map(Size),
        alert,
        policy,
    })
}

/// What was said about a source; `None` when nothing was.
pub(super) fn guard(wish: Option<&WalWish>) -> Option<WalGuard> {
    let wish = wish.filter(|wish| **wish != WalWish::default())?;
    let policy = wish.policy.map_or("", wal_guard::WalPolicy::as_str);
    Some(WalGuard {
        limit_bytes: wish.limit_bytes,
        alert_percent: wish.alert_percent.map(u32::from),
        policy: policy.to_owned(),
    })
}

/// How kept WAL stands to the limit.
pub(super) fn outlook(
    guard: Option<wal_guard::WalGuard>,
    agent: &AgentStatus,
) -> Option<WalOutlook> {
    let (guard, outlook) = (guard?, agent.wal_outlook);
    Some(WalOutlook {
        level: outlook.level.as_str().to_owned(),
        limit_bytes: outlook.limit_bytes,
        seconds_to_limit: outlook.seconds_to_limit,
        alert_percent: u32::from(guard.alert_percent),
        policy: guard.policy.as_str().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_comes_back_as_it_was_said() {
        let said = WalGuard {
            limit_bytes: Some(20 << 30),
            alert_percent: Some(40),
            policy: "spill".to_owned(),
        };
        let wish = section(said.clone()).unwrap().wish();
        assert_eq!(guard(Some(&wish)), Some(said));
        assert_eq!(guard(Some(&WalWish::default())), None);
    }

    #[test]
    fn what_is_no_policy_or_percentage_is_refused_with_what_was_meant() {
        let policy = |policy: &str| WalGuard {
            policy: policy.to_owned(),
            ..WalGuard::default()
        };
        let refused = section(policy("spil")).unwrap_err();
        assert_eq!(refused.explanation().code, "PGC-N12");
        let text = refused.to_string();
        assert!(text.ends_with("did you mean \"spill\"?"), "{text}");
        let alert = WalGuard {
            alert_percent: Some(0),
            ..WalGuard::default()
        };
        assert!(section(alert).is_err());
    }
}
