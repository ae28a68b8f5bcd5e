//! What the derive makes of columns.

use std::str::FromStr;

use pgcapture::{
    Change, Client, Field, Row,
    testkit::{Gateway, row},
};
use postgres_types::Type;
use rust_decimal::Decimal;

/// An OID that no built-in type has.
const CUSTOM: u32 = 70_001;

#[derive(Debug, PartialEq)]
enum Mood {
    Happy,
}

impl FromStr for Mood {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "happy" {
            Ok(Self::Happy)
        } else {
            Err("unknown mood")
        }
    }
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Line {
    sku: String,
}

#[derive(Debug, PartialEq, Row)]
#[pgcapture(table = "sales.big_orders", rename_all = "camelCase")]
struct Wide {
    #[pgcapture(key)]
    order_id: i64,
    total_price: Decimal,
    #[pgcapture(rename = "LINES", json)]
    lines: Vec<Line>,
    #[pgcapture(json)]
    extra: Field<Vec<u8>>,
    #[pgcapture(parse)]
    mood: Option<Mood>,
    label: String,
    small_text: i32,
    flag_text: bool,
    ratio: f64,
    tags: Vec<String>,
    #[pgcapture(default)]
    missing: u8_like::Count,
    #[pgcapture(default)]
    gone: Option<i64>,
    #[pgcapture(skip)]
    cache: Vec<u8>,
}

mod u8_like {
    pub(super) type Count = i16;
}

#[tokio::test]
async fn all_shapes_of_columns_decode_from_what_postgres_sends() {
    let gateway = Gateway::start().await;
    let json = [b"\x01".as_slice(), br#"[{"sku":"a"}]"#].concat();
    gateway
        .insert(
            row("sales.big_orders")
                .set("orderId", 5_i64)
                .set("totalPrice", Decimal::new(12_345, 2))
                .binary("LINES", Type::JSONB.oid(), &json)
                .null("extra")
                .binary("mood", CUSTOM, b"happy")
                .binary("label", CUSTOM, b"an enum as text")
                .text("smallText", CUSTOM, "-7")
                .text("flagText", Type::BOOL.oid(), "t")
                .text("ratio", CUSTOM, "1.5")
                .set("tags", vec!["a", "b"]),
        )
        .commit();
    let client = Client::builder(gateway.endpoints()).build().unwrap();
    let mut events = client.stream("s").subscribe::<Wide>().await.unwrap();
    let event = events.try_next().await.unwrap().unwrap();
    let Change::Insert(wide) = event.change() else {
        panic!("{event:?}")
    };
    let expected = Wide {
        order_id: 5,
        total_price: Decimal::new(12_345, 2),
        lines: vec![Line {
            sku: "a".to_owned(),
        }],
        extra: Field::Null,
        mood: Some(Mood::Happy),
        label: "an enum as text".to_owned(),
        small_text: -7,
        flag_text: true,
        ratio: 1.5,
        tags: vec!["a".to_owned(), "b".to_owned()],
        missing: 0,
        gone: None,
        cache: Vec::new(),
    };
    assert_eq!(*wide, expected);
    assert_eq!(
        (Wide::SCHEMA, Wide::TABLE, Wide::KEY),
        ("sales", "big_orders", &["orderId"][..])
    );
}
