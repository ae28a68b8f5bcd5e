//! The sample shop: tables with the types that make change capture interesting.
//!
//! Some orders are there before anything is captured: only a dump brings them.
//! A jsonb, a numeric, a timestamptz, an array, an enum, and a text that PostgreSQL stores out of
//! line (TOAST), so that unchanged values are seen to be left out.

use pgcapture_actors::postgres::{Config, ConfigError, Connection, PgError, Replication};

use crate::redact::split_password;

/// Where the shop lies in a server that is not ours.
const FOREIGN_SCHEMA: &str = "pgcapture_dev";

/// The tables, in the current schema. `EXTERNAL` keeps the manual out of line and uncompressed.
const TABLES: &str = "
CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'returned');
CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    tags text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    status order_status NOT NULL DEFAULT 'placed',
    total numeric(12, 2) NOT NULL,
    details jsonb NOT NULL DEFAULT '{}',
    note text,
    placed_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE orders ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE TABLE items (
    order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    line int NOT NULL,
    sku text NOT NULL,
    quantity int NOT NULL,
    price numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);
INSERT INTO customers (name, email, tags)
SELECT 'Customer ' || n, 'customer' || n || '@example.com', ARRAY['new', 'city' || n % 7]
FROM generate_series(1, 100) AS n;
INSERT INTO orders (customer_id, status, total, note)
SELECT 1 + n % 100, 'shipped', n % 500 + 0.99,
    CASE WHEN n % 20 = 0 THEN repeat('handle with care. ', 222) END
FROM generate_series(1, 5000) AS n;
INSERT INTO items SELECT id, 1, 'sku-' || id % 1000, 1, total FROM orders;
";

/// The shop and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    config: Config,
    shown_url: String,
    schema: &'static str,
}

/// The shop could not be made.
#[derive(Debug)]
pub(super) enum ShopError {
    /// The url cannot be read.
    Url(ConfigError),
    /// PostgreSQL refused.
    Postgres(PgError),
}

impl Shop {
    /// Makes the tables; in a foreign server in a schema of their own.
    pub(super) async fn create(url: &str, is_foreign: bool) -> Result<Self, ShopError> {
        let config = Config::parse(url).map_err(ShopError::Url)?;
        let shop = Self {
            config: config.with_application_name("pgcapture dev"),
            shown_url: split_password(url).0,
            schema: if is_foreign { FOREIGN_SCHEMA } else { "public" },
        };
        shop.make_tables().await.map_err(ShopError::Postgres)?;
        Ok(shop)
    }

    async fn make_tables(&self) -> Result<(), PgError> {
        let mut connection = self.connect().await?;
        let mut sql = String::from("BEGIN;");
        if self.schema == FOREIGN_SCHEMA {
            sql.push_str(&format!(
                "DROP SCHEMA IF EXISTS {0} CASCADE; CREATE SCHEMA {0}; SET LOCAL search_path = {0};",
                self.schema
            ));
        }
        sql.push_str(TABLES);
        sql.push_str("COMMIT;");
        connection.query(&sql).await.map(drop)
    }

    /// Drops the shop from a foreign server.
    pub(super) async fn drop(&self) -> Result<(), PgError> {
        let mut connection = self.connect().await?;
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        connection.query(&sql).await.map(drop)
    }

    /// Connects for ordinary SQL.
    pub(super) async fn connect(&self) -> Result<Connection, PgError> {
        Connection::connect(&self.config, Replication::Off).await
    }

    /// The schema of the tables.
    pub(super) const fn schema(&self) -> &'static str {
        self.schema
    }

    /// The url without a password.
    pub(super) fn url(&self) -> &str {
        &self.shown_url
    }
}
