//! Says when a call failed for a certificate, and whose.
//!
//! A node that takes no such certificate says so after the client's part of the handshake is over: the
//! connection is there, and the first call over it breaks. HTTP/2 keeps the text of the reason at best; where
//! it kept none, what is said is that this may be why. Never sees a certificate itself.

use std::error::Error as _;

use tonic::{Status, transport::Endpoint};

use crate::error::Error;

/// What the TLS library says when it or the other side does not take a certificate.
const DISTRUST: [&str; 2] = ["invalid peer certificate", "received fatal alert"];

/// What is added where a connection broke without a reason.
const PERHAPS: &str = "a node that does not take this client's certificate ends the connection so; if its \
                       [tls] client_ca is set, name a certificate of that authority with identity_files";

/// Returns what one side says of the other's certificate, when that is why a call has failed. What a node
/// answers comes without a cause, and may speak of other nodes; what happens to a connection is one.
pub(crate) fn distrust(status: &Status) -> Option<String> {
    said_by(status.source()?)
}

fn said_by(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    let mut innermost = None;
    while let Some(error) = cause {
        let text = error.to_string();
        let found = DISTRUST.iter().find_map(|words| text.find(words));
        // Those around it repeat what it says, with more around it.
        innermost = found
            .and_then(|at| text.get(at..).map(str::to_owned))
            .or(innermost);
        cause = error.source();
    }
    let said = innermost?;
    Some(match said.strip_prefix("received fatal alert: ") {
        Some(alert) => format!("the node does not take this client's certificate ({alert})"),
        None => said.replacen("peer certificate", "certificate of the node", 1),
    })
}

/// The error of a connection that could not be made.
pub(crate) fn not_connected(endpoint: &Endpoint, source: tonic::transport::Error) -> Error {
    let name = endpoint.uri().to_string();
    match said_by(&source) {
        Some(reason) => Error::Untrusted {
            endpoint: name,
            reason,
        },
        None => Error::Connect {
            endpoint: name,
            source,
        },
    }
}

/// The error of a call that failed before anything came.
pub(crate) fn not_opened(endpoint: &Endpoint, status: Status) -> Error {
    if let Some(reason) = distrust(&status) {
        return Error::Untrusted {
            endpoint: endpoint.uri().to_string(),
            reason,
        };
    }
    let is_broken = status.source().is_some();
    let is_secure = endpoint.uri().scheme_str() == Some("https");
    if is_broken && is_secure {
        return Error::Status {
            code: status.code(),
            message: format!("{}; {PERHAPS}", status.message()),
        };
    }
    status.into()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn said_by(endpoint: &'static str, cause: &str) -> String {
        let status = Status::from_error(Box::new(io::Error::other(cause.to_owned())));
        not_opened(&Endpoint::from_static(endpoint), status).to_string()
    }

    #[test]
    fn a_certificate_that_is_refused_is_named_with_the_next_step() {
        let said = said_by("https://n1:7700", "received fatal alert: UnknownCA");
        assert!(
            said.contains("this client's certificate (UnknownCA)"),
            "{said}"
        );
        assert!(said.contains("next: "), "{said}");
        let said = said_by("https://n1:7700", "invalid peer certificate: UnknownIssuer");
        assert!(
            said.contains("invalid certificate of the node: UnknownIssuer"),
            "{said}"
        );
    }

    #[test]
    fn a_connection_that_breaks_without_a_word_may_be_for_a_certificate() {
        assert!(said_by("https://n1:7700", "broken pipe").contains("identity_files"));
        assert!(!said_by("http://n1:7700", "broken pipe").contains("identity_files"));
        let answer = Status::unavailable("node is draining");
        let answer = not_opened(&Endpoint::from_static("https://n1:7700"), answer);
        assert!(!answer.to_string().contains("identity_files"));
        let answer = Status::unavailable("n2 does not answer: invalid peer certificate: Expired");
        assert_eq!(distrust(&answer), None, "it speaks of another node");
    }
}
