use pgcapture::Row;

struct Money;

#[derive(Row)]
#[pgcapture(table = "orders")]
struct Order {
    total: Option<Money>,
}

fn main() {}
