# Thin names for what deploy/quickstart and cargo do. `just` alone lists them.

_default:
    @just --list

# Everything that CI checks, on the system's PostgreSQL. Writes nothing but the build directory.
verify:
    deploy/quickstart test

# Format, and apply what clippy can repair by itself.
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# The tests alone; `just test --pg 14,18` adds other majors.
test *options:
    deploy/quickstart test --fast {{options}}

# Measure, with the peer beside it: capture, latency, sessions, log.
bench kind="capture" *options:
    cargo run --release -p pgcapture-node -- bench {{kind}} {{options}}

# Kill the node under load and compare the stream with what was committed.
chaos *options:
    cargo build --release -p pgcapture-node
    cargo run --release -p pgcapture-chaos-tests -- {{options}}

# A throw-away cluster with a sample shop.
up *options:
    deploy/quickstart run {{options}}
