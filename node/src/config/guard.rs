//! What is written about the WAL that a source may keep: `wal_guard = { limit, alert, policy }`.
//!
//! Under `[agent]` it is the node's word for every source, under `[source.NAME]` that of one. Each
//! part stands by itself: what a source does not say, the node says; what the node does not say is in
//! [`DEFAULT_GUARD`].

use pgcapture_engine::wal_guard::{WalGuard, WalPolicy, WalWish};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    document::Value,
    reader::{FromValue, Reader},
};
use crate::units::{Percent, Size};

/// Told and nothing else, from half of what a small disk has to spare.
const DEFAULT_GUARD: WalGuard = WalGuard {
    limit_bytes: 8 << 30,
    alert_percent: 50,
    policy: WalPolicy::Alert,
};

/// Words that look at least this much like a policy are taken for it in a suggestion.
const SIMILARITY_MIN: f64 = 0.6;

/// How much WAL a source may keep for its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WalGuardSection {
    /// What may be kept; default: `8GiB`; `0B`: no limit.
    pub limit: Option<Size>,
    /// From this part of the limit on it is told; default: `50%`.
    pub alert: Option<Percent>,
    /// What happens at the limit: `alert` (default), `spill` or `drop_with_gap`.
    #[serde(serialize_with = "word")]
    #[schemars(with = "Option<String>")]
    pub policy: Option<WalPolicy>,
}

impl WalGuardSection {
    /// Reads the keys under a section.
    pub(super) fn take(reader: &mut Reader, section: &str) -> Self {
        let key = |key: &str| format!("{section}.wal_guard.{key}");
        Self {
            limit: reader.find(&key("limit")),
            alert: reader.find(&key("alert")),
            policy: reader.find(&key("policy")),
        }
    }

    /// Returns what is said.
    #[must_use]
    pub fn wish(&self) -> WalWish {
        WalWish {
            limit_bytes: self.limit.map(|limit| limit.0),
            alert_percent: self.alert.map(|alert| alert.0),
            policy: self.policy,
        }
    }

    /// Fills in the defaults of the program, as the node's word for every source; a limit of 0 is none.
    #[must_use]
    pub fn of_node(&self) -> WalGuard {
        let wish = self.wish();
        WalGuard {
            limit_bytes: wish.limit_bytes.unwrap_or(DEFAULT_GUARD.limit_bytes),
            alert_percent: wish.alert_percent.unwrap_or(DEFAULT_GUARD.alert_percent),
            policy: wish.policy.unwrap_or(DEFAULT_GUARD.policy),
        }
    }
}

impl FromValue for Percent {
    const EXPECTED: &'static str = "a percentage such as \"50%\"";
    fn from_value(value: &Value) -> Option<Self> {
        value.text()?.parse().ok()
    }
}

impl FromValue for WalPolicy {
    const EXPECTED: &'static str = "one of \"alert\", \"spill\", \"drop_with_gap\"";
    fn from_value(value: &Value) -> Option<Self> {
        value.text()?.parse().ok()
    }
    fn suggest(value: &Value) -> Option<String> {
        nearest_policy(value.text()?).map(|policy| format!("did you mean \"{policy}\"?"))
    }
}

/// Returns the policy that a word most likely meant.
pub(crate) fn nearest_policy(text: &str) -> Option<&'static str> {
    let likeness = |policy: WalPolicy| {
        let word = policy.as_str();
        (strsim::jaro_winkler(text, word), word)
    };
    WalPolicy::ALL
        .into_iter()
        .map(likeness)
        .filter(|(score, _)| *score >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn word<S: serde::Serializer>(
    policy: &Option<WalPolicy>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match policy {
        Some(policy) => serializer.serialize_str(policy.as_str()),
        None => serializer.serialize_none(),
    }
}
