//! Preflight, plan and management on real servers; login and TLS.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres/support.rs"]
mod support;

use std::process::Command;

use pgcapture_actors::postgres::{
    Config, Connection, LocalServer, LocalServerOptions, PgError, Replication, Secret,
    catalog::{self, PreflightRequest, SourceRequest},
};

use self::support::Source;

fn request(must_exist: bool) -> PreflightRequest {
    PreflightRequest {
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        database: "postgres".to_owned(),
        must_exist,
        system_identifier: None,
    }
}

async fn codes(source: &mut Source, request: &PreflightRequest) -> Vec<&'static str> {
    let problems = catalog::preflight(&mut source.sql, request).await.unwrap();
    problems.iter().map(PgError::code).collect()
}

#[tokio::test]
async fn a_good_source_has_no_problem_and_each_bad_one_its_code() {
    let mut source = Source::start_with(&[("max_replication_slots", "1")]).await;
    assert_eq!(codes(&mut source, &request(true)).await, [""; 0]);
    let mut other = request(true);
    other.system_identifier = Some(1);
    assert_eq!(codes(&mut source, &other).await, ["PGC-S28"]);
    let mut other = request(true);
    other.database = "elsewhere".to_owned();
    assert_eq!(codes(&mut source, &other).await, ["PGC-S16"]);
    let mut other = request(false);
    other.slot = "new".to_owned();
    assert_eq!(codes(&mut source, &other).await, ["PGC-S10"]);
    source
        .insert_sql("ALTER PUBLICATION p SET (publish = 'insert, update')")
        .await;
    assert_eq!(codes(&mut source, &request(true)).await, ["PGC-S19"]);
    source.insert_sql("DROP PUBLICATION p").await;
    assert_eq!(codes(&mut source, &request(true)).await, ["PGC-S18"]);
    catalog::drop_slot(&mut source.sql, "s", false)
        .await
        .unwrap();
    catalog::drop_slot(&mut source.sql, "s", false)
        .await
        .unwrap();
    assert_eq!(
        codes(&mut source, &request(true)).await,
        ["PGC-S13", "PGC-S18"]
    );
    source
        .insert_sql("SELECT pg_create_logical_replication_slot('s', 'test_decoding')")
        .await;
    assert_eq!(codes(&mut source, &request(true)).await[0], "PGC-S15");
    source.insert_sql("CREATE ROLE nobody LOGIN").await;
    source.insert_sql("SET ROLE nobody").await;
    assert_eq!(codes(&mut source, &request(false)).await[0], "PGC-S08");
}

#[tokio::test]
async fn wal_level_replica_is_told_before_and_by_the_server() {
    let settings = [("wal_level".to_owned(), "replica".to_owned())];
    let server = LocalServer::start(LocalServerOptions {
        settings: settings.to_vec(),
        ..LocalServerOptions::default()
    })
    .await
    .unwrap();
    let config = server.config("postgres");
    let mut sql = Connection::connect(&config, Replication::Off)
        .await
        .unwrap();
    let error = catalog::create_slot(&mut sql, "s").await.unwrap_err();
    assert_eq!(error.code(), "PGC-S07", "{error}");
    let problems = catalog::preflight(&mut sql, &request(false)).await.unwrap();
    assert_eq!(problems[0].code(), "PGC-S07");
}

#[tokio::test]
async fn rights_slots_and_walsenders_that_lack_have_their_codes() {
    let settings = [("max_wal_senders", "1"), ("max_replication_slots", "1")];
    let mut source = Source::start_with(&settings).await;
    source.insert_sql("CREATE ROLE plain LOGIN").await;
    let url = source.server.url("postgres").replace("postgres@", "plain@");
    let plain = Config::parse(&url).unwrap();
    let error = Connection::connect(&plain, Replication::Database)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S08", "{error}");
    let error = catalog::create_slot(&mut source.sql, "second")
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S10", "{error}");
    let config = source.server.config("postgres");
    let _first = Connection::connect(&config, Replication::Database)
        .await
        .unwrap();
    let error = Connection::connect(&config, Replication::Database)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S11", "{error}");
}

#[tokio::test]
async fn a_plan_makes_the_publication_before_the_slot_and_leaves_bad_tables_out() {
    let mut source = Source::start().await;
    source
        .insert_sql(
            "CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE full_row (a int); \
             ALTER TABLE full_row REPLICA IDENTITY FULL; CREATE TABLE \"We\"\"ird\" (id int PRIMARY KEY); \
             CREATE SCHEMA pgcapture; CREATE TABLE pgcapture.ddl_logs (id int PRIMARY KEY); \
             CREATE TABLE secret (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        )
        .await;
    let request = SourceRequest {
        slot: "new".to_owned(),
        publication: "all".to_owned(),
        tables: vec!["public.*".to_owned(), "nowhere.*".to_owned()],
        excludes: vec!["secret".to_owned()],
    };
    let plan = catalog::plan_source(&mut source.sql, &request)
        .await
        .unwrap();
    assert_eq!(plan.statements.len(), 2);
    assert!(plan.statements[0].starts_with("CREATE PUBLICATION \"all\" FOR TABLE"));
    assert!(plan.statements[1].contains("pg_create_logical_replication_slot"));
    let names: Vec<_> = plan
        .choice
        .without_identity
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    assert_eq!(names, ["t"]);
    assert_eq!(plan.choice.unmatched, ["nowhere.*"]);
    for statement in &plan.statements {
        source.insert_sql(statement).await;
    }
    let publication = catalog::publication(&mut source.sql, "all")
        .await
        .unwrap()
        .unwrap();
    let names: Vec<_> = publication
        .tables
        .iter()
        .map(|(_, name)| name.as_str())
        .collect();
    assert_eq!(names, ["ddl_logs", "We\"ird", "full_row", "good"]);
    let again = catalog::plan_source(&mut source.sql, &request)
        .await
        .unwrap();
    assert!(again.statements.is_empty(), "{:?}", again.statements);
    source
        .insert_sql("CREATE TABLE late (id int PRIMARY KEY)")
        .await;
    let later = catalog::plan_source(&mut source.sql, &request)
        .await
        .unwrap();
    assert_eq!(
        later.statements,
        ["ALTER PUBLICATION \"all\" ADD TABLE \"public\".\"late\""]
    );
}

/// What the server would refuse to the application once such a table is published.
#[tokio::test]
async fn a_table_whose_updates_would_fail_is_left_out_and_found() {
    let mut source = Source::start().await;
    let made = "made int GENERATED ALWAYS AS (id + 1) STORED";
    source
        .insert_sql(&format!(
            "CREATE TABLE late (id int PRIMARY KEY DEFERRABLE); CREATE TABLE made (id int, {made}); \
             ALTER TABLE made REPLICA IDENTITY FULL; \
             CREATE TABLE keyed (id int PRIMARY KEY, {made}); \
             INSERT INTO late VALUES (1); INSERT INTO made VALUES (1); INSERT INTO keyed VALUES (1)"
        ))
        .await;
    let hides_generated = source.sql.server_version() >= 180_000;
    let patterns = ["late", "made", "keyed"].map(str::to_owned);
    let choice = catalog::choose_tables(&mut source.sql, &patterns, &[])
        .await
        .unwrap();
    let names: Vec<_> = choice
        .chosen
        .iter()
        .map(|table| table.name.as_str())
        .collect();
    let expected: &[&str] = if hides_generated {
        &["keyed"]
    } else {
        &["keyed", "made"]
    };
    assert_eq!(names, expected);
    source
        .insert_sql(
            "ALTER PUBLICATION p SET TABLE late, made, keyed; \
                     ALTER PUBLICATION p SET (publish = 'insert, update')",
        )
        .await;
    // The server agrees.
    for (table, fails) in [("late", true), ("made", hides_generated), ("keyed", false)] {
        let update = format!("UPDATE {table} SET id = 2");
        assert_eq!(source.sql.query(&update).await.is_err(), fails, "{table}");
    }
    let problems = catalog::preflight(&mut source.sql, &request(true))
        .await
        .unwrap();
    assert_eq!(problems.len(), 3 - expected.len(), "{problems:?}");
    if hides_generated {
        source
            .insert_sql("ALTER PUBLICATION p SET (publish_generated_columns = stored)")
            .await;
        assert_eq!(codes(&mut source, &request(true)).await, ["PGC-S19"]);
        source.insert_sql("UPDATE made SET id = 2").await;
    }
}

#[tokio::test]
async fn types_without_binary_form_are_found() {
    let mut source = Source::start().await;
    source
        .insert_sql("ALTER TABLE t ADD COLUMN acl aclitem, ADD COLUMN more aclitem[]")
        .await;
    let found = catalog::types_without_binary(&mut source.sql, "p")
        .await
        .unwrap();
    assert_eq!(found, ["public.t.acl aclitem", "public.t.more aclitem[]"]);
}

#[tokio::test]
async fn scram_md5_and_clear_passwords_log_in_over_tls_with_every_mode() {
    let server = LocalServer::start(LocalServerOptions {
        password: Some(Secret::new("it's ünïcode")),
        hba_lines: vec![
            "hostssl postgres hashed all md5".to_owned(),
            "hostssl postgres clear all password".to_owned(),
            "host postgres clear all password".to_owned(),
        ],
        ..LocalServerOptions::default()
    })
    .await
    .unwrap();
    let config = server.config("postgres");
    let mut sql = Connection::connect(&config, Replication::Off)
        .await
        .unwrap();
    let roles = "CREATE ROLE clear LOGIN PASSWORD 'pw'; SET password_encryption = md5; \
                 CREATE ROLE hashed LOGIN PASSWORD 'pw'";
    sql.query(roles).await.unwrap();
    let certificate = certify(&server);
    sql.query("ALTER SYSTEM SET ssl = on").await.unwrap();
    sql.query("SELECT pg_reload_conf()").await.unwrap();
    let password = Secret::new("it's ünïcode");
    let url = |user: &str, tail: &str| {
        let url = server
            .url("postgres")
            .replace("postgres@127.0.0.1", &format!("{user}@localhost"));
        format!("{url}?{tail}")
    };
    let root = format!("sslrootcert={certificate}");
    for mode in ["require", "verify-ca", "verify-full"] {
        let tail = format!("sslmode={mode}&{root}");
        for (user, password) in [
            ("postgres", &password),
            ("clear", &Secret::new("pw")),
            ("hashed", &Secret::new("pw")),
        ] {
            let config = Config::parse(&url(user, &tail))
                .unwrap()
                .with_password(password.clone());
            let connection = loop {
                // The server rereads its settings when it gets to it.
                match Connection::connect(&config, Replication::Off).await {
                    Err(PgError::Tls { what, .. }) if what.contains("has no TLS") => {}
                    connection => break connection,
                }
            };
            let mut connection =
                connection.unwrap_or_else(|error| panic!("{mode} {user}: {error}"));
            let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            assert_eq!(
                connection.query(sql).await.unwrap(),
                [[Some("t".to_owned())]]
            );
        }
    }
    let untrusted = Config::parse(&url("postgres", "sslmode=verify-full")).unwrap();
    let error = Connection::connect(&untrusted, Replication::Off)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "PGC-S04", "{error}");
    let by_address = format!("{}?sslmode=verify-full&{root}", server.url("postgres"));
    let error = Connection::connect(&Config::parse(&by_address).unwrap(), Replication::Off).await;
    assert_eq!(error.unwrap_err().code(), "PGC-S04");
    let clear = url("clear", "sslmode=disable");
    let clear = Config::parse(&clear)
        .unwrap()
        .with_password(Secret::new("pw"));
    let error = Connection::connect(&clear, Replication::Off)
        .await
        .unwrap_err();
    assert!(matches!(error, PgError::Authentication(_)), "{error}");
}

/// Gives the server a certificate for `localhost` and returns its file.
fn certify(server: &LocalServer) -> String {
    let data = server.data_dir();
    let file = data.join("server.crt").display().to_string();
    let status = Command::new("openssl")
        .args([
            "req",
            "-new",
            "-x509",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-newkey",
            "rsa:2048",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(data.join("server.key"))
        .args(["-out", &file])
        .output()
        .unwrap();
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stderr)
    );
    let owner = std::fs::metadata(&data).unwrap();
    for name in ["server.key", "server.crt"] {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
        let path = data.join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    file
}
