//! Startup and login: SCRAM-SHA-256 (with channel binding over TLS), md5, clear password.
//!
//! A password in the clear is sent only over TLS or a unix socket. The password is read from the
//! [`Config`] and appears in no error.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a message that is not expected is an error, whichever of the thirty it is"
)]

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};

use super::{Replication, Session, Wire, framing::unwritable};
use crate::postgres::{
    config::{Config, Host},
    error::PgError,
    secret::Secret,
};

/// What the login needs to know of the connection.
pub(super) struct Login<'a> {
    pub(super) config: &'a Config,
    pub(super) host: &'a Host,
    pub(super) replication: Replication,
    /// Hash for channel binding; only with TLS.
    pub(super) channel_binding: Option<Vec<u8>>,
    pub(super) is_private: bool,
}

impl Login<'_> {
    /// Logs in and waits until the server is ready.
    pub(super) async fn run(self, wire: &mut Wire) -> Result<Session, PgError> {
        let mut out = BytesMut::new();
        let mut parameters = vec![
            ("user", self.config.user.as_str()),
            ("database", self.config.database.as_str()),
            ("application_name", self.config.application_name.as_str()),
            ("client_encoding", "UTF8"),
            // Text of values does not depend on the role's or database's settings.
            ("datestyle", "ISO, YMD"),
            ("intervalstyle", "postgres"),
            ("extra_float_digits", "3"),
            ("bytea_output", "hex"),
        ];
        if self.replication == Replication::Database {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut out).map_err(|error| unwritable(&error))?;
        wire.send(&out).await?;
        self.authenticate(wire).await?;
        wire.until_ready().await
    }

    async fn authenticate(&self, wire: &mut Wire) -> Result<(), PgError> {
        let mut out = BytesMut::new();
        match wire.message().await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationSasl(body) => return self.scram(wire, &body).await,
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?.expose().as_bytes();
                let hash = md5_hash(self.config.user.as_bytes(), password, body.salt());
                frontend::password_message(hash.as_bytes(), &mut out)
            }
            Message::AuthenticationCleartextPassword if self.is_private => {
                frontend::password_message(self.password()?.expose().as_bytes(), &mut out)
            }
            Message::AuthenticationCleartextPassword => {
                return Err(refused(
                    "the server asks for the password in the clear, without TLS",
                ));
            }
            _ => {
                return Err(refused(
                    "the server asks for a method that is not known here",
                ));
            }
        }
        .map_err(|error| unwritable(&error))?;
        wire.send(&out).await?;
        expect_ok(wire).await
    }

    async fn scram(&self, wire: &mut Wire, body: &AuthenticationSaslBody) -> Result<(), PgError> {
        let mut has_scram = false;
        let mut has_plus = false;
        let mut mechanisms = body.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(|error| unwritable(&error))? {
            has_scram |= mechanism == SCRAM_SHA_256;
            has_plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let (binding, mechanism) = match &self.channel_binding {
            Some(hash) if has_plus => {
                let binding = ChannelBinding::tls_server_end_point(hash.clone());
                (binding, SCRAM_SHA_256_PLUS)
            }
            Some(_) if has_scram => (ChannelBinding::unrequested(), SCRAM_SHA_256),
            None if has_scram => (ChannelBinding::unsupported(), SCRAM_SHA_256),
            _ => return Err(refused("the server offers no SCRAM mechanism known here")),
        };
        let password = self.password()?.expose().as_bytes();
        let mut scram = ScramSha256::new(password, binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)
            .map_err(|error| unwritable(&error))?;
        wire.send(&out).await?;
        let Message::AuthenticationSaslContinue(body) = wire.message().await? else {
            return Err(refused("the server left the SCRAM exchange"));
        };
        scram
            .update(body.data())
            .map_err(|error| refused(&error.to_string()))?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(|error| unwritable(&error))?;
        wire.send(&out).await?;
        let Message::AuthenticationSaslFinal(body) = wire.message().await? else {
            return Err(refused("the server left the SCRAM exchange"));
        };
        scram
            .finish(body.data())
            .map_err(|error| refused(&error.to_string()))?;
        expect_ok(wire).await
    }

    fn password(&self) -> Result<&Secret, PgError> {
        self.config
            .password
            .as_ref()
            .ok_or_else(|| PgError::NoPassword {
                target: self.host.to_string(),
            })
    }
}

async fn expect_ok(wire: &mut Wire) -> Result<(), PgError> {
    match wire.message().await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(refused("the server did not end the login")),
    }
}

fn refused(what: &str) -> PgError {
    PgError::Authentication(what.to_owned())
}
