//! Whether anybody listens at an address: the one proof of death that a network can give.
//!
//! A refused connection says that the host lives and the process does not. Silence, and every other failure
//! (no route, a name that cannot be looked up, no file handle left here), prove nothing.

use std::{io::ErrorKind, time::Duration};

use tokio::{net::TcpStream, time::timeout};

/// What became of a connection.
#[derive(Debug)]
pub(crate) enum Knock {
    /// It was taken.
    Taken,
    /// It was refused: nobody listens there.
    Refused,
    /// Nothing is known, and why.
    Unknown(String),
}

impl Knock {
    pub(crate) const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused)
    }
}

/// Tries an address (`host:port`), for no longer than this.
pub(crate) async fn knock(address: &str, most: Duration) -> Knock {
    match timeout(most, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Knock::Taken,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Knock::Refused,
        Ok(Err(error)) => Knock::Unknown(error.to_string()),
        Err(_) => Knock::Unknown(format!("no answer within {most:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_refusal_is_one() {
        let most = Duration::from_secs(10);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(matches!(knock(&address, most).await, Knock::Taken));
        drop(listener);
        assert!(knock(&address, most).await.is_refused());
        for address in ["n2", "255.255.255.255:1"] {
            let knocked = knock(address, most).await;
            assert!(
                matches!(knocked, Knock::Unknown(_)),
                "{address}: {knocked:?}"
            );
        }
    }
}
