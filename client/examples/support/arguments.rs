//! The arguments of the examples: `ENDPOINT STREAM [--count N]`.

use std::io::Write as _;

/// Where to read, and how much.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// Addresses of nodes, separated by commas.
    pub endpoint: String,
    /// The stream's name.
    pub stream: String,
    /// How many changes to read.
    pub count: u64,
}

impl Arguments {
    /// Reads the command line; what is missing is the `pgcapture dev` cluster.
    pub fn read() -> Self {
        let mut words: Vec<String> = std::env::args().skip(1).collect();
        let mut count = u64::MAX;
        if let Some(at) = words.iter().position(|word| word == "--count") {
            let number = words.drain(at..).nth(1);
            count = number
                .and_then(|number| number.parse().ok())
                .unwrap_or(count);
        }
        let mut words = words.into_iter();
        Self {
            endpoint: words
                .next()
                .unwrap_or_else(|| "http://127.0.0.1:7700".to_owned()),
            stream: words.next().unwrap_or_else(|| "orders".to_owned()),
            count,
        }
    }

    /// Prints a line. A reader that went away is no error of an example.
    pub fn print(&self, line: &str) {
        writeln!(std::io::stdout(), "{line}").unwrap_or(());
    }
}
