//! No listener beyond loopback without TLS and a token, unless the user says so aloud.

use pgcapture_engine::codes;

use crate::config::{Config, ConfigError, Problem};

/// Refuses an open listener that is not protected; with `is_insecure` it only says so.
///
/// # Errors
///
/// [`ConfigError`] with what is missing.
pub fn refuse_open_listener(config: &Config, is_insecure: bool) -> Result<(), ConfigError> {
    let missing = match (config.tls.cert.is_some(), config.auth.token.is_some()) {
        _ if config.node.listen.ip().is_loopback() => return Ok(()),
        (true, true) => return Ok(()),
        (true, false) => "[auth] token",
        (false, true) => "[tls] cert and key",
        (false, false) => "[tls] cert and key, and [auth] token",
    };
    if is_insecure {
        tracing::warn!(
            listen = %config.node.listen,
            missing,
            "listening beyond loopback without protection, as --insecure asks: whoever reaches \
             the port can read every captured row"
        );
        return Ok(());
    }
    let problem = Problem::new(
        &codes::config::INSECURE_LISTEN,
        format!("{} would be open to the network", config.node.listen),
    )
    .label(format!("missing: {missing}"));
    Err(ConfigError {
        problems: vec![problem],
        files: Vec::new(),
    })
}
