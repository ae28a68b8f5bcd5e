//! The token that every call must carry: `authorization: Bearer …`; and, where clients show
//! certificates, that of a node for what nodes ask of each other.
//!
//! Keeps a hash of the token only; compares in constant time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use pgcapture_engine::codes;
use pgcapture_proto::status::status;
use rustls::{RootCertStore, pki_types::CertificateDer};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tonic::{Request, Status, service::Interceptor};

use crate::tls::{self, Purpose};

/// Certificates of which is remembered what they are for. More nodes and clients than a cluster has; with
/// one more all are forgotten, and verified anew as they come.
const REMEMBERED_MAX: usize = 1_024;

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

/// Lets other nodes through: with the right token, and with a certificate that is a node's.
#[derive(Clone, Debug)]
pub struct NodeCheck {
    token: TokenCheck,
    authority: Option<Arc<Authority>>,
}

/// Whose certificates must be shown, and what those that were shown are for. A certificate says it for
/// good; that it has not expired is checked with every connection, and goes on to hold while it is open.
#[derive(Debug)]
struct Authority {
    roots: RootCertStore,
    /// By hash.
    known: Mutex<BTreeMap<[u8; 32], Purpose>>,
}

impl Authority {
    fn is_nodes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some(end) = chain.first() else {
            return false;
        };
        let hash = Sha256::digest(end).into();
        // A panic under the lock leaves the map as it was: go on.
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = known().get(&hash).copied();
        let purpose = remembered.or_else(|| {
            let purpose = tls::purpose(chain, &self.roots)?;
            let mut known = known();
            if known.len() >= REMEMBERED_MAX {
                known.clear();
            }
            known.insert(hash, purpose);
            Some(purpose)
        });
        purpose == Some(Purpose::Node)
    }
}

impl NodeCheck {
    /// Makes the check; without an authority no certificates are shown, and the token is all.
    #[must_use]
    pub fn new(token: TokenCheck, authority: Option<RootCertStore>) -> Self {
        let authority = authority.map(|roots| Authority {
            roots,
            known: Mutex::default(),
        });
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
        if authority.is_nodes(&chain) {
            return Ok(request);
        }
        metrics::counter!("pgcapture_auth_failures_total", "reason" => "certificate").increment(1);
        let what = "only nodes may ask this, and the certificate is none of a node";
        Err(status(codes::node::DENIED.code, what, NODES_NEXT))
    }
}

/// What to do when a client asks what nodes ask each other.
const NODES_NEXT: &str =
    "give nodes certificates made with `pgcapture cert issue NAME --host HOST`";

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

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

    /// Who signs, and the roots that trust it.
    fn authority() -> (Issuer<'static, KeyPair>, RootCertStore) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        (Issuer::new(params, key), roots)
    }

    fn issue(
        issuer: &Issuer<'static, KeyPair>,
        purpose: ExtendedKeyUsagePurpose,
        last_year: i32,
    ) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        vec![params.signed_by(&key, issuer).unwrap().der().clone()]
    }

    #[test]
    fn what_a_certificate_is_for_is_found_out_once() {
        let (issuer, roots) = authority();
        let authority = Authority {
            roots,
            known: Mutex::default(),
        };
        let known = || authority.known.lock().unwrap().len();
        let node = issue(&issuer, ExtendedKeyUsagePurpose::ServerAuth, 4000);
        let client = issue(&issuer, ExtendedKeyUsagePurpose::ClientAuth, 4000);
        for _ in 0..2 {
            assert!(authority.is_nodes(&node));
            assert!(!authority.is_nodes(&client));
            assert_eq!(known(), 2);
        }
        // One that has expired, or is another authority's, is none of a node, however often it is shown.
        let (other, _) = super::tests::authority();
        let expired = issue(&issuer, ExtendedKeyUsagePurpose::ServerAuth, 2001);
        let foreign = issue(&other, ExtendedKeyUsagePurpose::ServerAuth, 4000);
        for chain in [&expired[..], &foreign, &[]] {
            assert!(!authority.is_nodes(chain) && !authority.is_nodes(chain));
        }
        assert_eq!(known(), 2, "only what is certain is remembered");
        for number in 0..u64::try_from(REMEMBERED_MAX).unwrap() {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            authority
                .known
                .lock()
                .unwrap()
                .insert(hash, Purpose::Client);
        }
        let next = issue(&issuer, ExtendedKeyUsagePurpose::ServerAuth, 4000);
        assert!(authority.is_nodes(&next) && authority.is_nodes(&node));
        assert_eq!(known(), 2, "the others were forgotten");
    }
}
