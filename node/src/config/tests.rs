//! Every mistake is told with its place and what to write instead; layers win in their order.

use pgcapture_engine::wal_guard::{WalGuard, WalPolicy};

use super::*;

fn codes_of(error: &ConfigError) -> Vec<&'static str> {
    let problems = error.problems.iter();
    problems.map(|problem| problem.explanation.code).collect()
}

fn mistakes(text: &str) -> (Vec<&'static str>, String) {
    let error = Config::from_text("pgcapture.toml", text).unwrap_err();
    (codes_of(&error), error.to_string())
}

fn no_env() -> std::iter::Empty<(String, String)> {
    std::iter::empty()
}

#[test]
fn an_empty_file_is_a_good_configuration() {
    let config = Config::from_text("pgcapture.toml", "").unwrap();
    assert_eq!(config.node.listen.to_string(), "127.0.0.1:7700");
    assert_eq!(config.node.metrics.to_string(), "127.0.0.1:7790");
    assert!(config.source.is_empty());
}

#[test]
fn every_key_can_be_written() {
    let config = Config::from_text(
        "pgcapture.toml",
        r#"
[node]
name = "n1"
data_dir = "/data"
listen = "127.0.0.1:1"
metrics = "localhost:2"
[tls]
cert = "/c"
key = "file:/k"
[auth]
token = "env:TOKEN"
[limits]
sessions = 7
max_row = "1MiB"
[log]
segment = "1MiB"
retention = { time = "1h", size = "1GiB" }
[agent]
catch_up_above = "64MiB"
follow_below = "1MiB"
wal_guard = { limit = "20GiB", alert = "40%" }
[source.shop]
url = "postgres://pgcapture@db1,db2/shop?target_session_attrs=read-write"
password = "${SHOP_PASSWORD}"
tables = ["public.*"]
exclude = ["public.tmp_*"]
wal_guard = { policy = "drop_with_gap" }
[replica.r1]
source = "shop"
url = "postgres://pgcapture@standby/shop"
password = "env:STANDBY_PASSWORD"
max_lag = "10s"
"#,
    )
    .unwrap();
    assert_eq!(config.node.metrics.to_string(), "127.0.0.1:2");
    assert_eq!(config.tls.key, Some(PathBuf::from("/k")));
    assert_eq!(config.limits.sessions, 7);
    assert_eq!(config.log.retention.size, Size(1 << 30));
    let shop = &config.source["shop"];
    assert_eq!(
        shop.password,
        Some(SecretRef::Env("SHOP_PASSWORD".to_owned()))
    );
    assert_eq!(shop.slot, "shop_pgcapture");
    assert_eq!(shop.publication, "pgcapture_shop");
    assert_eq!(shop.stream, "shop");
    let guard = shop.wal_guard.wish().or(config.agent.wal_guard.of_node());
    let wanted = WalGuard {
        limit_bytes: 20 << 30,
        alert_percent: 40,
        policy: WalPolicy::DropWithGap,
    };
    assert_eq!(guard, Some(wanted));
    let replica = &config.replica["r1"];
    assert_eq!(
        (replica.source.as_str(), replica.kind.as_str()),
        ("shop", "standby")
    );
    assert_eq!(
        (replica.max_ranges, replica.max_lag),
        (4, Span::from_secs(10))
    );
}

#[test]
fn an_unknown_key_suggests_the_one_that_was_meant() {
    let (codes, text) = mistakes("[node]\nlisten_addr = \"127.0.0.1:1\"\n[limit]\nsessions = 1\n");
    assert_eq!(codes, ["PGC-C005", "PGC-C005"]);
    assert!(text.contains("did you mean \"node.listen\"?"), "{text}");
    assert!(text.contains("did you mean \"limits.sessions\"?"), "{text}");
    assert!(text.contains("╭─[pgcapture.toml:2:1]"), "{text}");
    let (_, text) = mistakes("[source.shop]\nurl = \"postgres://h/d\"\ntable = [\"a.b\"]\n");
    assert!(
        text.contains("did you mean \"source.shop.tables\"?"),
        "{text}"
    );
}

#[test]
fn a_policy_that_is_none_suggests_the_one_that_was_meant() {
    let text = "[agent.wal_guard]\nlimit = \"20GiB\"\npolicy = \"drop\"\n";
    let (codes, text) = mistakes(text);
    assert_eq!(codes, ["PGC-C003"]);
    assert!(text.contains("did you mean \"drop_with_gap\"?"), "{text}");
    assert!(text.contains("one of \"alert\""), "{text}");
}

#[test]
fn a_limit_of_nothing_is_none_and_a_source_may_have_its_own() {
    let none = Config::from_text("x", "[agent]\nwal_guard.limit = \"0B\"\n").unwrap();
    let of_node = none.agent.wal_guard.of_node();
    let nothing = WalGuardSection::default();
    assert_eq!(nothing.wish().or(of_node), None);
    let own = WalGuardSection {
        limit: Some(Size(1 << 30)),
        ..nothing
    };
    let guard = own.wish().or(of_node).unwrap();
    assert_eq!((guard.limit_bytes, guard.alert_percent), (1 << 30, 50));
}

#[test]
fn a_bad_value_is_marked_where_it_stands() {
    let text = "[limits]\nsessions = 1\nmax_row = \"big\"\n";
    let (codes, text) = mistakes(text);
    assert_eq!(codes, ["PGC-C003"]);
    let wanted = "\
Error PGC-C003: limits.max_row cannot take this value
   ╭─[pgcapture.toml:3:11]
 2 │ sessions = 1
 3 │ max_row = \"big\"
   ·           ──┬──
   ·             ╰── \"big\" is not a size such as \"64MiB\"
   ╰────
";
    assert!(text.starts_with(wanted), "{text}");
}

#[test]
fn values_of_every_wrong_kind_are_refused() {
    for (section, line) in [
        ("node", "listen = 7700"),
        ("node", "listen = \"nowhere\""),
        ("node", "drain_timeout = \"soon\""),
        ("node", "name = [\"a\"]"),
        ("limits", "sessions = -1"),
        ("limits", "sessions = 1.5"),
        ("limits", "sessions = 99999999999"),
        ("limits", "ack_timeout = 2024-01-01"),
        ("log", "segment = true"),
        ("source.s", "url = \"postgres://h/d\"\ntables = [1]"),
        ("agent", "wal_guard.alert = \"0%\""),
        ("agent", "wal_guard.limit = \"plenty\""),
        ("replica.r", "url = \"postgres://h/d\""),
        ("replica.r", "source = \"s\""),
        (
            "replica.r",
            "source = \"s\"\nurl = \"postgres://h/d\"\nkind = \"logical\"",
        ),
        (
            "replica.r",
            "source = \"s\"\nurl = \"postgres://h/d\"\nmax_ranges = 0",
        ),
        (
            "replica.r",
            "source = \"s\"\nurl = \"postgres://h/d\"\nmax_lag = \"soon\"",
        ),
    ] {
        let (codes, text) = mistakes(&format!("[{section}]\n{line}\n"));
        assert_eq!(codes, ["PGC-C003"], "{line}: {text}");
    }
}

#[test]
fn relations_that_cannot_work_are_refused() {
    for (text, path) in [
        (
            "[agent]\ncatch_up_above = \"1MiB\"\nfollow_below = \"2MiB\"",
            "agent.follow_below",
        ),
        ("[agent]\ncatch_up_chunk = \"0B\"", "agent.catch_up_chunk"),
        ("[log]\nsegment = \"1KiB\"", "log.segment"),
        ("[log]\nretention.size = \"100MiB\"", "log.retention.size"),
        ("[limits]\nsessions = 0", "limits.sessions"),
        ("[limits]\nmax_row = \"2GiB\"", "limits.max_row"),
        ("[limits]\nack_timeout = \"0s\"", "limits.ack_timeout"),
        ("[node]\nmetrics = \"0.0.0.0:7790\"", "node.metrics"),
        ("[node]\nmetrics = \"127.0.0.1:7700\"", "node.metrics"),
        ("[tls]\ncert = \"/c\"", "tls.cert"),
        ("[tls]\nclient_ca = \"/c\"", "tls.client_ca"),
        (
            "[node]\nadvertise = \"n1:7700\"\npeers = [\"n1:7700\"]\n[tls]\ncert = \"/c\"\nkey = \"/k\"",
            "tls.client_ca",
        ),
    ] {
        let (codes, shown) = mistakes(text);
        assert_eq!(codes, ["PGC-C004"], "{text}: {shown}");
        assert!(shown.contains(path), "{text}: {shown}");
    }
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    let canary = "canary-9f27c1";
    for text in [
        format!("[auth]\ntoken = \"{canary}\""),
        format!("[source.s]\nurl = \"postgres://h/d\"\npassword = \"{canary}\""),
        format!("[source.s]\nurl = \"postgres://u:{canary}@h/d\""),
        format!("[replica.r]\nsource = \"s\"\nurl = \"postgres://u:{canary}@h/d\""),
        format!("[replica.r]\nsource = \"s\"\nurl = \"postgres://h/d\"\npassword = \"{canary}\""),
    ] {
        let error = Config::from_text("pgcapture.toml", &text).unwrap_err();
        for problem in &error.problems {
            assert!(!problem.label.contains(canary), "{problem:?}");
            assert!(!problem.title.contains(canary), "{problem:?}");
        }
        assert!(!error.to_string().contains(canary), "{error}");
    }
}

#[test]
fn syntax_errors_show_their_line() {
    let (codes, text) = mistakes("[node]\nname = \n");
    assert_eq!(codes, ["PGC-C002"]);
    assert!(text.contains("pgcapture.toml:2:"), "{text}");
}

#[test]
fn a_flag_wins_over_the_environment_over_files_over_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let one = file(
        "1.toml",
        "[limits]\nsessions = 1\nmax_unacked = 1\nmax_row = \"1KiB\"\n",
    );
    let two = file("2.toml", "[limits]\nsessions = 2\nmax_unacked = 2\n");
    let env = || {
        let pairs = [
            ("PGCAPTURE__LIMITS__SESSIONS", "3"),
            ("PGCAPTURE_ENDPOINT", "x"),
            ("HOME", "/"),
        ];
        pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()))
    };
    let flag = ["--set", "limits.sessions", "4"].map(str::to_owned);
    let [name, path, value] = flag;
    let files = [one, two];
    let config = Config::load_from(&files, env(), &[(name, path, value)]).unwrap();
    assert_eq!(config.limits.sessions, 4);
    let config = Config::load_from(&files, env(), &[]).unwrap();
    assert_eq!(config.limits.sessions, 3);
    let config = Config::load_from(&files, no_env(), &[]).unwrap();
    assert_eq!((config.limits.sessions, config.limits.max_unacked), (2, 2));
    assert_eq!(config.limits.max_row, Size(1 << 10));
    let config = Config::load_from(&[], no_env(), &[]).unwrap();
    assert_eq!(config.limits.sessions, 20_000);
}

#[test]
fn a_bad_environment_variable_is_told_by_its_name() {
    let env = [("PGCAPTURE__LIMITS__SESSION".to_owned(), "3".to_owned())];
    let error = Config::load_from(&[], env.into_iter(), &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("PGCAPTURE__LIMITS__SESSION"), "{text}");
    assert!(text.contains("did you mean \"limits.sessions\"?"), "{text}");
}

#[test]
fn a_missing_file_is_told() {
    let error = Config::load_from(&["/nowhere/x.toml".into()], no_env(), &[]).unwrap_err();
    assert_eq!(codes_of(&error), ["PGC-C001"]);
}

#[test]
fn the_schema_and_the_reader_know_the_same_keys() {
    let mut document = Document::default();
    let text = "[source.s]\nurl = \"postgres://h/d\"\n".to_owned();
    document.add_text("x".to_owned(), text).unwrap();
    let mut reader = Reader::new(document);
    let config = Config::take(&mut reader);
    let json = serde_json::to_value(&config).unwrap();
    let mut written = std::collections::BTreeSet::new();
    collect("", &json, &mut written);
    assert_eq!(&written, reader.asked());
    let schema = serde_json::to_string(&Config::schema()).unwrap();
    for path in &written {
        let key = path.rsplit('.').next().unwrap();
        assert!(schema.contains(&format!("\"{key}\":")), "{path}");
    }
}

fn collect(
    prefix: &str,
    value: &serde_json::Value,
    paths: &mut std::collections::BTreeSet<String>,
) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                collect(&path, value, paths);
            }
        }
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_)
        | serde_json::Value::Array(_) => {
            paths.insert(prefix.to_owned());
        }
    }
}
