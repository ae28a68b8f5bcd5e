//! No listener beyond loopback without TLS, and a token or certificates of clients, unless the user says
//! so aloud.

use pgcapture_engine::codes;

use crate::config::{Config, ConfigError, Problem};

/// Refuses an open listener that is not protected; with `is_insecure` it only says so.
///
/// # Errors
///
/// [`ConfigError`] with what is missing.
pub fn refuse_open_listener(config: &Config, is_insecure: bool) -> Result<(), ConfigError> {
    // Whoever must show a certificate of ours is known as well as by a token.
    let knows_clients = config.auth.token.is_some() || config.tls.client_ca.is_some();
    let missing = match (config.tls.cert.is_some(), knows_clients) {
        _ if config.node.listen.ip().is_loopback() => return Ok(()),
        (true, true) => return Ok(()),
        (true, false) => "[tls] client_ca or [auth] token",
        (false, true) => "[tls] cert and key",
        (false, false) => "[tls] cert and key, and [tls] client_ca or [auth] token",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_beyond_loopback_needs_tls_and_to_know_its_clients() {
        let pair = "[tls]\ncert = \"c\"\nkey = \"k\"\n";
        let ca = "client_ca = \"ca\"\n";
        let token = "[auth]\ntoken = \"env:T\"\n";
        for (more, is_good) in [
            (String::new(), false),
            (pair.to_owned(), false),
            (token.to_owned(), false),
            (format!("{pair}{token}"), true),
            (format!("{pair}{ca}"), true),
        ] {
            let text = format!("[node]\nlisten = \"0.0.0.0:7700\"\n{more}");
            let config = Config::from_text("x", &text).unwrap();
            let refused = refuse_open_listener(&config, false);
            assert_eq!(refused.is_ok(), is_good, "{text}");
            assert!(refuse_open_listener(&config, true).is_ok(), "{text}");
        }
    }
}
