//! An authority and what it signs: all of rcgen.
//!
//! The authority is its key: its name is made from it, so that two authorities never have one name,
//! and nothing of ca.crt must be parsed to sign. Before something is handed out it is verified against
//! ca.crt as a node will do it, so that files that do not belong together are found here.

use std::sync::Arc;

use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use pgcapture_engine::codes::config;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use sha2::{Digest as _, Sha256};

use crate::{cli::Failure, sources::unix_now_micros};

/// Bytes of the key's hash that tell authorities apart.
const TAG_BYTES: usize = 4;

/// A certificate and its key, in PEM.
pub(super) struct Issued {
    pub(super) cert: String,
    pub(super) key: String,
    /// Who it is for.
    pub(super) hosts: Vec<String>,
    /// Its last day.
    pub(super) expires: String,
}

/// What a certificate is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Takes connections under these names and addresses, and opens them to other nodes.
    Node { hosts: Vec<String> },
    /// Opens connections only.
    Client,
}

/// Who signs.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// ca.crt, which everybody trusts.
    cert: CertificateDer<'static>,
}

impl Authority {
    /// Makes one.
    pub(super) fn make(days: u16) -> Result<Issued, Failure> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params_of(&key)?;
        let (first, last) = span(days)?;
        set_dates(&mut params, first, last);
        let cert = params.self_signed(&key).map_err(failed)?;
        Ok(Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            hosts: Vec::new(),
            expires: last.to_string(),
        })
    }

    /// Reads one.
    pub(super) fn load(cert: &str, key: &str) -> Result<Self, Failure> {
        let key = KeyPair::from_pem(key).map_err(|error| unusable("ca.key", &error))?;
        let cert = CertificateDer::from_pem_slice(cert.as_bytes())
            .map_err(|error| unusable("ca.crt", &error))?;
        let params = params_of(&key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            cert,
        })
    }

    /// Makes and signs a certificate.
    pub(super) fn issue(&self, name: &str, role: &Role, days: u16) -> Result<Issued, Failure> {
        let (hosts, mut usages) = match role {
            Role::Node { hosts } => (hosts.clone(), vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Role::Client => (Vec::new(), Vec::new()),
        };
        usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        for host in &hosts {
            ServerName::try_from(host.as_str()).map_err(|_| {
                Failure::usage(format!("\"{host}\" is neither a host name nor an address"))
            })?;
        }
        let mut params = CertificateParams::new(hosts.clone()).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let (first, last) = span(days)?;
        set_dates(&mut params, first, last);
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        self.verify(cert.der())?;
        Ok(Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
            hosts,
            expires: last.to_string(),
        })
    }

    /// Does what a node does with a certificate that it is shown.
    fn verify(&self, cert: &CertificateDer<'_>) -> Result<(), Failure> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.cert.clone())
            .map_err(|error| unusable("ca.crt", &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| unusable("ca.crt", &error))?;
        verifier
            .verify_client_cert(cert, &[], UnixTime::now())
            .map(drop)
            .map_err(|error| {
                let text = format!("ca.crt does not stand for what ca.key signs: {error}");
                Failure::new(1, &config::TLS, text)
                    .next("bring together ca.crt and ca.key as `pgcapture cert init` has made them")
            })
    }
}

/// The authority that a key is.
fn params_of(key: &KeyPair) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    let hash = Sha256::digest(key.public_key_raw());
    let tag: String = hash
        .iter()
        .take(TAG_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let name = format!("pgcapture authority {tag}");
    params.distinguished_name.push(DnType::CommonName, name);
    // It signs nodes and clients, and no other authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The first and the last day; the first is yesterday, since clocks differ.
fn span(days: u16) -> Result<(Date, Date), Failure> {
    let now = Timestamp::from_microsecond(unix_now_micros());
    let now = now.map_err(|error| Failure::usage(format!("this machine's clock: {error}")))?;
    let today = now.to_zoned(TimeZone::UTC).date();
    let dates = today
        .yesterday()
        .and_then(|first| Ok((first, today.checked_add(i32::from(days).days())?)));
    dates.map_err(|error| Failure::usage(format!("--days {days}: {error}")))
}

fn set_dates(params: &mut CertificateParams, first: Date, last: Date) {
    let at = |date: Date| {
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = at(first);
    params.not_after = at(last);
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        1,
        &config::TLS,
        format!("no certificate could be made: {error}"),
    )
}

fn unusable(file: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(1, &config::TLS, format!("{file} cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Issued, Authority) {
        let made = Authority::make(10).unwrap();
        let loaded = Authority::load(&made.cert, &made.key).unwrap();
        (made, loaded)
    }

    #[test]
    fn what_an_authority_signs_is_taken_by_its_own_certificate_alone() {
        let (first, authority) = authority();
        let hosts = vec![
            "n1.internal".to_owned(),
            "10.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        for role in [Role::Node { hosts }, Role::Client] {
            let issued = authority.issue("n1", &role, 5).unwrap();
            assert!(issued.key.contains("PRIVATE KEY"));
            assert!(!issued.cert.contains("PRIVATE KEY"));
        }
        let other = Authority::make(10).unwrap();
        let mixed = Authority::load(&other.cert, &first.key).unwrap();
        let refused = mixed.issue("n1", &Role::Client, 5).map(drop).unwrap_err();
        assert_eq!(refused.code, config::TLS.code);
        assert!(refused.text.contains("ca.crt"), "{refused:?}");
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let (made, authority) = authority();
        let hosts = vec!["not a host".to_owned()];
        let refused = authority.issue("n1", &Role::Node { hosts }, 5);
        assert_eq!(refused.map(drop).unwrap_err().exit, 2);
        assert!(Authority::load(&made.cert, "no key").is_err());
        assert!(Authority::load("no certificate", &made.key).is_err());
    }
}
