use pgcapture::Row;

#[derive(Row)]
struct Order {
    id: i64,
}

fn main() {}
