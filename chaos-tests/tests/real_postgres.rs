//! The harness's own footing: it starts a real PostgreSQL, crashes it in every way it knows, and its
//! writers and journal agree with the server afterwards.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use pgcapture_chaos_tests::{
    harness::{postgres::Postgres, sql::Sql},
    workload::{
        bank,
        journal::{JournalWriter, Outcome, read_journal},
        ledger::resolve_unknown,
        load::{LoadPlan, RunningLoad},
        schema::CREATE,
    },
};

fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

async fn count(sql: &Sql, statement: &str) -> i64 {
    let row = sql.client.query_one(statement, &[]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn writers_journal_what_the_server_has_after_crashes() {
    let dir = open_dir();
    let mut postgres = Postgres::start(None, dir.path()).await.unwrap();
    let sql = Sql::connect(&postgres.dsn()).await.unwrap();
    sql.client.batch_execute(CREATE).await.unwrap();
    bank::open_accounts(&sql).await.unwrap();
    let path = dir.path().join("journal.jsonl");
    let journal = Arc::new(JournalWriter::create(&path).unwrap());
    let plan = LoadPlan {
        dsn: postgres.dsn(),
        seed: 11,
        writers: 3,
        rows_per_second: 2_000,
        large_transaction_rows: 3_000,
        with_rests: true,
    };
    let mut load = RunningLoad::start(&plan, Arc::clone(&journal));
    let crashes = async {
        let mut seen = 0;
        for round in 0..3 {
            seen = grown_beyond(&postgres.dsn(), seen + 150).await;
            match round {
                0 => postgres.kill().await.unwrap(),
                1 => postgres.stop_immediately().await.unwrap(),
                _ => postgres.stop_fast().await.unwrap(),
            }
            postgres.start_again().await.unwrap();
        }
        grown_beyond(&postgres.dsn(), seen + 150).await
    };
    tokio::select! {
        _ = crashes => {}
        error = load.failed() => panic!("{error:#}"),
    }
    let done = load.stop().await.unwrap();
    journal.finish().unwrap();
    assert!(done.rows > 600 && done.busy_ms > 0, "{done:?}");

    let sql = Sql::connect(&postgres.dsn()).await.unwrap();
    let transactions = read_journal(&path).unwrap();
    for line in resolve_unknown(&sql, &transactions).await.unwrap() {
        journal.append(&line).unwrap();
    }
    journal.finish().unwrap();
    let transactions = read_journal(&path).unwrap();
    let committed = transactions
        .iter()
        .filter(|transaction| transaction.outcome == Outcome::Committed);
    let in_source = count(&sql, "SELECT count(*) FROM witness.committed").await;
    assert_eq!(i64::try_from(committed.count()).unwrap(), in_source);
    let sum = "SELECT sum(balance)::bigint FROM public.accounts";
    assert_eq!(count(&sql, sum).await, 20_000);
}

/// Waits until more transactions than `wanted` are in the source; returns how many.
async fn grown_beyond(dsn: &str, wanted: i64) -> i64 {
    let limit = Duration::from_secs(30);
    let grown = async {
        loop {
            let sql = Sql::connect_again(dsn).await.unwrap();
            let have = count(&sql, "SELECT count(*) FROM witness.committed").await;
            if have > wanted {
                return have;
            }
        }
    };
    tokio::time::timeout(limit, grown).await.unwrap()
}

#[tokio::test]
async fn a_dropped_server_is_gone() {
    let dir = open_dir();
    let postgres = Postgres::start(None, dir.path()).await.unwrap();
    let id = postgres.id();
    let dsn = postgres.dsn();
    drop(postgres);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    assert!(Sql::connect(&dsn).await.is_err());
}
