//! Connection URLs, read and written as libpq does.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use super::{
    Config, ConfigError, DEFAULT_APPLICATION_NAME, DEFAULT_CONNECT_TIMEOUT, DEFAULT_PORT, Host,
    SslMode,
};
use crate::postgres::secret::Secret;

/// The parts of a URL before they are put together: parameters override the authority.
#[derive(Default)]
struct Parts {
    hosts: Vec<String>,
    ports: Vec<String>,
    user: String,
    password: Option<Secret>,
    database: String,
}

pub(super) fn parse(url: &str) -> Result<Config, ConfigError> {
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or(ConfigError::Scheme)?;
    // A password with a bare `/` or `?` would be taken for a host or parameter and then be printed.
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if rest
        .get(authority_end..)
        .is_some_and(|tail| tail.contains('@'))
    {
        return Err(ConfigError::BareAt);
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let mut parts = Parts {
        database: decode(database, "database")?,
        ..Parts::default()
    };
    parse_authority(authority, &mut parts)?;
    let mut config = Config {
        hosts: Vec::new(),
        user: String::new(),
        password: None,
        database: String::new(),
        ssl_mode: SslMode::default(),
        ssl_root_cert: None,
        connect_timeout: DEFAULT_CONNECT_TIMEOUT,
        application_name: DEFAULT_APPLICATION_NAME.to_owned(),
        read_write: false,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name, "parameter name")?;
        set_parameter(&name, value, &mut parts, &mut config)?;
    }
    if parts.user.is_empty() {
        return Err(ConfigError::NoUser);
    }
    config.hosts = hosts(&parts)?;
    if parts.database.is_empty() {
        parts.database.clone_from(&parts.user);
    }
    config.user = parts.user;
    config.password = parts.password;
    config.database = parts.database;
    Ok(config)
}

fn parse_authority(authority: &str, parts: &mut Parts) -> Result<(), ConfigError> {
    let hosts = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            parts.user = decode(user, "user")?;
            if !password.is_empty() {
                parts.password = Some(Secret::new(decode(password, "password")?));
            }
            hosts
        }
        None => authority,
    };
    for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
        let (name, port) = split_port(host);
        parts.hosts.push(decode(name, "host")?);
        parts.ports.push(port.to_owned());
    }
    Ok(())
}

/// Splits `host:port` and `[::1]:port`; the port is empty when there is none.
fn split_port(host: &str) -> (&str, &str) {
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        return (address, rest.strip_prefix(':').unwrap_or(rest));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn set_parameter(
    name: &str,
    raw: &str,
    parts: &mut Parts,
    config: &mut Config,
) -> Result<(), ConfigError> {
    if name == "password" {
        parts.password = Some(Secret::new(decode(raw, "password")?));
        return Ok(());
    }
    let value = decode(raw, "parameter")?;
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    match name {
        "host" | "hostaddr" => parts.hosts = list(&value),
        "port" => parts.ports = list(&value),
        "user" => parts.user = value,
        "dbname" => parts.database = value,
        "sslmode" => config.ssl_mode = ssl_mode(&value)?,
        "sslrootcert" => config.ssl_root_cert = Some(PathBuf::from(value)),
        "connect_timeout" => config.connect_timeout = connect_timeout(&value)?,
        "application_name" | "fallback_application_name" => config.application_name = value,
        "target_session_attrs" => config.read_write = read_write(&value)?,
        _ => return Err(ConfigError::UnknownParameter(name.to_owned())),
    }
    Ok(())
}

fn ssl_mode(value: &str) -> Result<SslMode, ConfigError> {
    let modes = [
        SslMode::Disable,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ];
    let mode = modes.into_iter().find(|mode| mode.as_str() == value);
    mode.ok_or_else(|| ConfigError::BadValue {
        name: "sslmode",
        value: value.to_owned(),
        expected: "disable, prefer, require, verify-ca or verify-full",
    })
}

fn connect_timeout(value: &str) -> Result<Duration, ConfigError> {
    let seconds = value.parse::<u32>().ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| ConfigError::BadValue {
        name: "connect_timeout",
        value: value.to_owned(),
        expected: "a number of seconds above 0",
    })?;
    Ok(Duration::from_secs(seconds.into()))
}

fn read_write(value: &str) -> Result<bool, ConfigError> {
    match value {
        "any" => Ok(false),
        "read-write" | "primary" => Ok(true),
        _ => Err(ConfigError::BadValue {
            name: "target_session_attrs",
            value: value.to_owned(),
            expected: "any, read-write or primary",
        }),
    }
}

fn hosts(parts: &Parts) -> Result<Vec<Host>, ConfigError> {
    let names = if parts.hosts.is_empty() {
        vec!["localhost".to_owned()]
    } else {
        parts.hosts.clone()
    };
    let mut ports = Vec::new();
    for port in &parts.ports {
        ports.push(match port.as_str() {
            "" => DEFAULT_PORT,
            text => text
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or(ConfigError::Port)?,
        });
    }
    let one_for_all = match ports.as_slice() {
        [] => Some(DEFAULT_PORT),
        [port] => Some(*port),
        _ => None,
    };
    if one_for_all.is_none() && ports.len() != names.len() {
        return Err(ConfigError::PortCount {
            hosts: names.len(),
            ports: ports.len(),
        });
    }
    let ports = ports.iter().copied().cycle();
    let ports = ports.chain(std::iter::repeat(DEFAULT_PORT));
    let place = |(name, port): (&String, u16)| match name.as_str() {
        "" => Host::new("localhost", port),
        name => Host::new(name, port),
    };
    Ok(names.iter().zip(ports).map(place).collect())
}

fn decode(text: &str, what: &'static str) -> Result<String, ConfigError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next()), digit(rest.next()));
        let byte = high
            .zip(low)
            .and_then(|(h, l)| u8::try_from(h * 16 + l).ok());
        bytes.push(byte.ok_or(ConfigError::Encoding(what))?);
    }
    String::from_utf8(bytes).map_err(|_| ConfigError::Encoding(what))
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes every write");
        }
    }
    encoded
}

pub(super) fn write_redacted(config: &Config) -> String {
    let password = if config.password.is_some() {
        ":***"
    } else {
        ""
    };
    let host = |host: &Host| match host {
        Host::Tcp { .. } => host.to_string(),
        Host::Unix { directory, port } => {
            format!("{}:{port}", encode(&directory.to_string_lossy()))
        }
    };
    let hosts = config.hosts.iter().map(host).collect::<Vec<_>>().join(",");
    let mut url = format!(
        "postgres://{}{password}@{hosts}/{}",
        encode(&config.user),
        encode(&config.database)
    );
    let mut separator = '?';
    let mut add = |name: &str, value: &str| {
        write!(url, "{separator}{name}={}", encode(value)).expect("a String takes every write");
        separator = '&';
    };
    if config.ssl_mode != SslMode::default() {
        add("sslmode", config.ssl_mode.as_str());
    }
    if let Some(file) = &config.ssl_root_cert {
        add("sslrootcert", &file.to_string_lossy());
    }
    if config.connect_timeout != DEFAULT_CONNECT_TIMEOUT {
        add(
            "connect_timeout",
            &config.connect_timeout.as_secs().to_string(),
        );
    }
    if config.application_name != DEFAULT_APPLICATION_NAME {
        add("application_name", &config.application_name);
    }
    if config.read_write {
        add("target_session_attrs", "read-write");
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Host {
        let host = host.to_owned();
        Host::Tcp { host, port }
    }

    #[test]
    fn a_full_url_is_read() {
        let config = Config::parse(
            "postgresql://us%40er:p%3Ass@db1:5433,[::1]:5434/shop%20a?sslmode=verify-full\
             &sslrootcert=/etc/ca.pem&connect_timeout=3&application_name=me\
             &target_session_attrs=read-write",
        )
        .unwrap();
        assert_eq!(config.hosts, [tcp("db1", 5433), tcp("::1", 5434)]);
        assert_eq!(
            (config.user.as_str(), config.database.as_str()),
            ("us@er", "shop a")
        );
        assert_eq!(config.password.as_ref().map(Secret::expose), Some("p:ss"));
        assert_eq!(config.ssl_mode, SslMode::VerifyFull);
        assert_eq!(config.ssl_root_cert, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.application_name, "me");
        assert!(config.read_write);
    }

    #[test]
    fn a_redacted_url_reads_back_as_all_but_the_password() {
        let urls = [
            "postgres://a:secret@h/d",
            "postgres://a@h1:1,h2:2/d?sslmode=require",
            "postgres://a:secret@/d?host=/var/run/postgresql&port=5440",
            "postgres://a%2F:se%25cret@[fe80::1]/?application_name=x%26y",
        ];
        for url in urls {
            let mut config = Config::parse(url).unwrap();
            let redacted = config.redacted();
            assert!(!redacted.contains("secret"), "{redacted}");
            assert!(!format!("{config:?}").contains("cret\""), "{config:?}");
            let mut again = Config::parse(&redacted).unwrap();
            assert_eq!(
                config.take_password().is_some(),
                again.take_password().is_some()
            );
            assert_eq!(again, config);
        }
    }

    #[test]
    fn a_directory_is_a_unix_socket() {
        for url in [
            "postgres://u@%2Frun%2Fpg:5433/d",
            "postgres:///d?user=u&host=/run/pg&port=5433",
        ] {
            let config = Config::parse(url).unwrap();
            let path = config.hosts.first().and_then(Host::socket_path).unwrap();
            assert_eq!(path, PathBuf::from("/run/pg/.s.PGSQL.5433"));
        }
    }

    #[test]
    fn one_port_serves_several_hosts_and_defaults_are_those_of_libpq() {
        let config = Config::parse("postgres://u@/?host=a,b&port=7").unwrap();
        assert_eq!(config.hosts, [tcp("a", 7), tcp("b", 7)]);
        let config = Config::parse("postgres://u@").unwrap();
        assert_eq!(config.hosts, [tcp("localhost", 5432)]);
        assert_eq!(config.database, "u");
    }

    #[test]
    fn a_bad_url_says_what_is_wrong_without_the_password() {
        for (url, message) in [
            ("mysql://u@h", "postgres://"),
            ("postgres://h/d", "names no user"),
            ("postgres://u@h:0/d", "not a number from 1"),
            ("postgres://u@h:99999/d", "not a number from 1"),
            ("postgres://u:pw%ZZ@h/d", "password is not percent-encoded"),
            ("postgres://u:pw/x@h/d", "%40"),
            ("postgres://u:pw?x=y@h/d", "%40"),
            ("postgres://u@h/%FF", "database is not percent-encoded"),
            ("postgres://u@h/d?sslmod=x", "unknown parameter \"sslmod\""),
            ("postgres://u@h/d?sslmode=x", "sslmode cannot be \"x\""),
            ("postgres://u@h/d?connect_timeout=0", "connect_timeout"),
            ("postgres://u@/d?host=a,b,c&port=1,2", "3 hosts but 2 ports"),
        ] {
            let error = Config::parse(url).unwrap_err().to_string();
            assert!(error.contains(message), "{url}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }
}
