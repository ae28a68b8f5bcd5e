//! The token that every call must carry: `authorization: Bearer …`; and, where clients show
//! certificates, that of a node for what nodes ask of each other.
//!
//! Keeps a hash of the token only; compares in constant time.

use std::sync::Arc;

use pgcapture_engine::codes;
use pgcapture_proto::status::status;
use rustls::RootCertStore;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Status, service::Interceptor};

use crate::tls;

/// Lets calls with the right token through; all when there is none.
#[derive(Clone)]
pub struct TokenCheck {
    wanted: Option<[u8; 32]>,
}

impl std::fmt::Debug for TokenCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_on = self.wanted.is_some();
        f.debug_struct("TokenCheck").field("is_on", &is_on).finish()
    }
}

impl TokenCheck {
    /// Makes the check; `None` lets everybody in.
    #[must_use]
    pub fn new(token: Option<&str>) -> Self {
        Self {
            wanted: token.map(|token| Sha256::digest(token.as_bytes()).into()),
        }
    }

    fn accepts(&self, header: Option<&str>) -> bool {
        let Some(wanted) = &self.wanted else {
            return true;
        };
        let sent = header.and_then(|header| header.strip_prefix("Bearer "));
        let sent = Sha256::digest(sent.unwrap_or_default().as_bytes());
        sent.as_slice().ct_eq(wanted).into()
    }
}

impl Interceptor for TokenCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization");
        if self.accepts(header.and_then(|value| value.to_str().ok())) {
            return Ok(request);
        }
        metrics::counter!("pgcapture_auth_failures_total", "reason" => "token").increment(1);
        let denied = &codes::node::DENIED;
        let what = "a valid token is needed";
        Err(status(denied.code, what, denied.next))
    }
}

/// Lets other nodes through: with the right token, and with a certificate that is no client's.
#[derive(Clone, Debug)]
pub struct NodeCheck {
    token: TokenCheck,
    authority: Option<Arc<RootCertStore>>,
}

impl NodeCheck {
    /// Makes the check; without an authority no certificates are shown, and the token is all.
    #[must_use]
    pub fn new(token: TokenCheck, authority: Option<RootCertStore>) -> Self {
        Self {
            token,
            authority: authority.map(Arc::new),
        }
    }
}

impl Interceptor for NodeCheck {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let request = self.token.call(request)?;
        let Some(authority) = &self.authority else {
            return Ok(request);
        };
        let chain = request.peer_certs().unwrap_or_default();
        if !tls::is_clients(&chain, authority) {
            return Ok(request);
        }
        metrics::counter!("pgcapture_auth_failures_total", "reason" => "certificate").increment(1);
        let what = "only nodes may ask this, and the certificate is a client's";
        Err(status(codes::node::DENIED.code, what, NODES_NEXT))
    }
}

/// What to do when a client asks what nodes ask each other.
const NODES_NEXT: &str =
    "give nodes certificates made with `pgcapture cert issue NAME --host HOST`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_passes() {
        let check = TokenCheck::new(Some("secret"));
        assert!(check.accepts(Some("Bearer secret")));
        for bad in [
            None,
            Some(""),
            Some("secret"),
            Some("Bearer "),
            Some("Bearer secre"),
        ] {
            assert!(!check.accepts(bad), "{bad:?}");
        }
        assert!(TokenCheck::new(None).accepts(None));
        assert!(!format!("{check:?}").contains("secret"));
    }
}
