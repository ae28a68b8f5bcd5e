//! Configuration: the codes `PGC-C…`.

use super::Explanation;

/// The file cannot be read.
pub const UNREADABLE: Explanation = Explanation {
    code: "PGC-C001",
    title: "the configuration file cannot be read",
    text: "The file that was named with -c does not exist, or this user may not read it.",
    next: "check the path and its permissions; `pgcapture config show` prints the defaults",
};

/// The file is not TOML.
pub const SYNTAX: Explanation = Explanation {
    code: "PGC-C002",
    title: "the configuration is not valid TOML",
    text: "The marked place does not follow the grammar of TOML; nothing after it was read.",
    next: "correct the marked place and run `pgcapture config check` again",
};

/// A value is of the wrong kind or out of range.
pub const BAD_VALUE: Explanation = Explanation {
    code: "PGC-C003",
    title: "a value cannot be used",
    text: "The key exists, but its value is of another kind or out of range. Sizes are written as \
           \"8GiB\", durations as \"30s\", addresses as \"127.0.0.1:7700\".",
    next: "write the value as the message says; `pgcapture config schema` lists every key",
};

/// Two values contradict each other.
pub const RELATION: Explanation = Explanation {
    code: "PGC-C004",
    title: "two values cannot work together",
    text: "Each value is fine alone, together they cannot work: a threshold above its limit, a \
           segment larger than the space it lies in.",
    next: "change one of the two values as the message says",
};

/// A key does not exist.
pub const UNKNOWN_KEY: Explanation = Explanation {
    code: "PGC-C005",
    title: "unknown key",
    text: "A key that is not known is an error and not ignored, so that a typing mistake never \
           silently leaves a default in force.",
    next: "use the suggested key, or remove it; `pgcapture config schema` lists every key",
};

/// A listener would be open to the network without protection.
pub const INSECURE_LISTEN: Explanation = Explanation {
    code: "PGC-C006",
    title: "the node would listen beyond loopback without protection",
    text: "Whoever reaches the port could read every captured row and remove sources. Without TLS, and \
           a token or certificates of clients, the node therefore only listens on 127.0.0.1 or ::1.",
    next: "make certificates with `pgcapture cert init` and `pgcapture cert issue` and set [tls]; or \
           listen on 127.0.0.1, or pass --insecure if the network is trusted",
};

/// A secret stands in the file itself, or its reference leads nowhere.
pub const SECRET: Explanation = Explanation {
    code: "PGC-C007",
    title: "a secret cannot be taken from where it is said to be",
    text: "Secrets are given by reference: env:NAME for an environment variable, file:/path for a \
           file. The reference leads nowhere, or the secret itself stands in the configuration.",
    next: "write env:NAME or file:/path and make sure that the node's user may read it",
};

/// The TLS files cannot be used.
pub const TLS: Explanation = Explanation {
    code: "PGC-C008",
    title: "certificate or key cannot be used",
    text: "The files named in [tls] cannot be read, are not PEM, or do not belong together.",
    next: "make them with `pgcapture cert init` and `pgcapture cert issue`, or check them with \
           `openssl x509 -in CERT -noout -text`",
};

/// One side does not trust the other's certificate.
pub const UNTRUSTED: Explanation = Explanation {
    code: "PGC-C009",
    title: "a certificate is not trusted",
    text: "With [tls] client_ca both sides of a connection show a certificate. Each refuses one that \
           another authority has made, that is for another host, or that has expired; and a node refuses \
           who shows none.",
    next: "make the certificate with the cluster's own authority: `pgcapture cert issue NAME --host HOST`, \
           for a client with --client; then pass --ca, --cert and --key",
};

/// Every code of the family.
pub const ALL: &[&Explanation] = &[
    &UNREADABLE,
    &SYNTAX,
    &BAD_VALUE,
    &RELATION,
    &UNKNOWN_KEY,
    &INSECURE_LISTEN,
    &SECRET,
    &TLS,
    &UNTRUSTED,
];
