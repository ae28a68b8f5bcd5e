//! The tables that are measured and how they are filled.
//!
//! `narrow` is like pgbench's: six columns, some 150 bytes. `wide` has 40 columns of mixed types,
//! some 2 KB. Half of the changes are inserts, the other half updates of the same rows, all in
//! transactions of one size.

use clap::ValueEnum;

/// Schema of everything that a measurement makes; dropped at the end.
pub(super) const SCHEMA: &str = "pgcapture_bench";

/// Publication of the table.
pub(super) const PUBLICATION: &str = "pgcapture_bench";

/// WAL between two checkpoints while the table is filled. A checkpoint logs the running
/// transactions, which a busy server does every 15 seconds; a backlog of a day is full of such
/// records, and reading by COPY restarts at them.
const CHECKPOINT_WAL_BYTES: u64 = 64 << 20;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Table {
    /// Six columns, like pgbench.
    Narrow,
    /// 40 columns of mixed types, some 2 KB.
    Wide,
}

impl Table {
    /// Returns the word of the command line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Narrow => "narrow",
            Self::Wide => "wide",
        }
    }

    /// Rows whose WAL, inserted and updated once, is near 1 GiB.
    pub(super) const fn rows_of_a_gibibyte(self) -> u64 {
        match self {
            Self::Narrow => 4_000_000,
            Self::Wide => 440_000,
        }
    }

    /// Rows of a run that is not about a backlog.
    pub(super) const fn rows(self) -> u64 {
        match self {
            Self::Narrow => 1_000_000,
            Self::Wide => 300_000,
        }
    }

    /// Changes between two checkpoints.
    const fn checkpoint_rows(self) -> u64 {
        let of_a_gibibyte = self.rows_of_a_gibibyte();
        of_a_gibibyte / ((1 << 30) / CHECKPOINT_WAL_BYTES)
    }

    /// Columns as SQL: definition and value, with `i` for the number of the row.
    fn columns(self) -> Vec<(String, &'static str)> {
        let narrow = [
            ("id bigint PRIMARY KEY", "i"),
            ("branch int NOT NULL", "(i % 100)::int"),
            ("balance int NOT NULL", "7"),
            ("changed_at timestamptz NOT NULL", "clock_timestamp()"),
            ("filler text NOT NULL", "repeat('x', 80)"),
            ("label varchar(40)", "'v' || i"),
        ];
        let narrow = narrow.map(|(definition, value)| (definition.to_owned(), value));
        let mut columns = narrow.to_vec();
        if self == Self::Wide {
            let kinds = [
                ("bigint", "i * 7"),
                ("text", "repeat(chr(97 + (i % 26)::int), 220)"),
                ("timestamptz", "now()"),
                ("uuid", "md5(i::text)::uuid"),
                ("jsonb", "jsonb_build_object('n', i, 'state', 'open')"),
                ("boolean", "i % 2 = 0"),
                ("double precision", "i / 3.0"),
                ("text", "NULL"),
            ];
            let more = (0..34_usize).zip(kinds.iter().cycle());
            columns.extend(more.map(|(at, (kind, value))| (format!("c{at} {kind}"), *value)));
        }
        columns
    }

    /// SQL that makes schema, table, publication and the procedures; replaces what is left of an
    /// earlier run.
    pub(super) fn setup(self) -> Vec<String> {
        let columns = self.columns();
        let definitions: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let values: Vec<&str> = columns.iter().map(|(_, value)| *value).collect();
        vec![
            format!("DROP PUBLICATION IF EXISTS {PUBLICATION}"),
            format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"),
            format!("CREATE SCHEMA {SCHEMA}"),
            format!("CREATE TABLE {SCHEMA}.t ({})", definitions.join(", ")),
            format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {SCHEMA}.t"),
            format!(
                "CREATE PROCEDURE {SCHEMA}.load(lo bigint, hi bigint, step bigint, is_update boolean) \
                 LANGUAGE plpgsql AS $$
                 DECLARE n bigint := lo;
                 BEGIN
                   WHILE n < hi LOOP
                     IF is_update THEN
                       UPDATE {SCHEMA}.t SET balance = balance + 1, changed_at = clock_timestamp() \
                         WHERE id >= n AND id < least(n + step, hi);
                     ELSE
                       INSERT INTO {SCHEMA}.t SELECT {} FROM generate_series(n, least(n + step, hi) - 1) i;
                     END IF;
                     COMMIT;
                     n := n + step;
                   END LOOP;
                 END $$",
                values.join(", ")
            ),
        ]
    }

    /// SQL that writes `rows` changes, to be run one by one.
    pub(super) fn fill(self, rows: u64, transaction_rows: u64) -> Vec<String> {
        let half = rows.div_ceil(2);
        let mut statements = Vec::new();
        for (count, is_update) in [(half, false), (rows - half, true)] {
            let mut from = 0;
            // Whole transactions in every call.
            let calls = self.checkpoint_rows().div_ceil(transaction_rows);
            let chunk = calls.saturating_mul(transaction_rows);
            while from < count {
                let to = count.min(from + chunk);
                statements.push(format!(
                    "CALL {SCHEMA}.load({from}, {to}, {transaction_rows}, {is_update})"
                ));
                statements.push("CHECKPOINT".to_owned());
                from = to;
            }
        }
        statements
    }

    /// SQL of one more row, which marks the end.
    pub(super) fn mark(self, rows: u64) -> String {
        format!("CALL {SCHEMA}.load({rows}, {rows} + 1, 1, false)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_table_has_forty_columns() {
        assert_eq!(Table::Narrow.columns().len(), 6);
        assert_eq!(Table::Wide.columns().len(), 40);
    }

    #[test]
    fn a_load_has_as_many_changes_as_asked() {
        let statements = Table::Narrow.fill(5, 2);
        let wanted = [
            "CALL pgcapture_bench.load(0, 3, 2, false)",
            "CHECKPOINT",
            "CALL pgcapture_bench.load(0, 2, 2, true)",
            "CHECKPOINT",
        ];
        assert_eq!(statements, wanted);
    }
}
