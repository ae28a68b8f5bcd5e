//! The examples run as they are, against the mock gateway.

#![expect(
    clippy::duplicate_mod,
    reason = "each example has the module of arguments"
)]

macro_rules! example {
    ($name:ident, $path:literal) => {
        #[allow(
            dead_code,
            unreachable_pub,
            reason = "an example is a program of its own"
        )]
        #[path = $path]
        mod $name;
    };
}

example!(follow, "../examples/follow.rs");
example!(typed, "../examples/typed.rs");
example!(handlers, "../examples/handlers.rs");
example!(debounce, "../examples/debounce.rs");
example!(dump, "../examples/dump.rs");

use std::time::Duration;

use pgcapture::testkit::{Gateway, row};

async fn gateway() -> Gateway {
    let gateway = Gateway::start().await;
    let order = || {
        row("public.orders")
            .set("id", 1_i64)
            .set("customer", "ann")
            .set("note", "n")
    };
    gateway
        .insert(order())
        .update(order())
        .insert(row("public.items").set("id", 5_i64))
        .delete(row("public.orders").set("id", 1_i64))
        .commit()
        .dump([order()])
        .existing([order()]);
    gateway
}

macro_rules! runs {
    ($test:ident, $example:ident, $count:literal, $acked:literal) => {
        #[tokio::test]
        async fn $test() {
            let gateway = gateway().await;
            let arguments = $example::arguments::Arguments {
                endpoint: gateway.endpoints(),
                stream: "orders".to_owned(),
                count: $count,
            };
            let run = tokio::time::timeout(Duration::from_secs(20), $example::run(arguments));
            run.await.expect("the example ends").unwrap();
            assert_eq!(gateway.acked(), $acked);
        }
    };
}

runs!(follow_prints_and_acknowledges, follow, 5, 5);
runs!(typed_prints_and_acknowledges, typed, 4, 4);
runs!(handlers_see_both_tables, handlers, 5, 5);
runs!(
    debounce_shows_the_newest_and_acknowledges_all,
    debounce,
    1,
    4
);
runs!(dump_brings_rows_on_the_stream_of_changes, dump, 5, 5);
