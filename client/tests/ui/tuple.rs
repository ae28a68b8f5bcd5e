use pgcapture::Row;

#[derive(Row)]
#[pgcapture(table = "orders")]
struct Order(i64);

fn main() {}
