use pgcapture::Row;

#[derive(Row)]
#[pgcapture(table = "orders")]
struct Order {
    #[pgcapture(jsn)]
    id: i64,
}

fn main() {}
