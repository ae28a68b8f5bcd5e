//! The tables of a run.
//!
//! Schema `public` is captured. Schema `witness` is not: it is how the source itself says whether a
//! transaction with an unknown outcome is there.

/// Number of accounts.
pub const ACCOUNTS: u32 = 20;

/// What each account begins with.
pub const BALANCE: i64 = 1_000;

/// Creates everything; once per database.
pub const CREATE: &str = "
    CREATE TABLE public.ledger (
        writer int NOT NULL,
        id bigint NOT NULL,
        n bigint NOT NULL,
        tx bigint NOT NULL,
        pad text NOT NULL,
        PRIMARY KEY (writer, id)
    );
    CREATE TABLE public.accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE public.marker (id bigint PRIMARY KEY);
    CREATE SCHEMA witness;
    CREATE TABLE witness.committed (
        writer int NOT NULL,
        tx bigint NOT NULL,
        PRIMARY KEY (writer, tx)
    );
";
