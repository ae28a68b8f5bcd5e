# shellcheck shell=bash
#
# What the machine must have, and how it gets it: Rust, a C compiler (the crate `ring` builds
# assembler and C, and rustc links through cc), PostgreSQL's server programs.
#
# With everything there nothing is installed and nobody needs to be root. On Debian and its
# relatives the missing packages come through apt, as root or through sudo, and the command is
# printed before it runs. On any other system the packages are named and the script ends with 1.

# The oldest Rust that compiles the workspace, as in Cargo.toml; rustup reads rust-toolchain.toml.
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
# pgoutput's options that we rely on, and TID range scans, came with this major.
oldest_postgres=14

# postgres_bin: prints the directory of the server programs: PGCAPTURE_PG_BIN, else what stands on
# the PATH, else the newest in the places of the usual packages; returns 1 when there are none.
postgres_bin() {
    local candidate
    if [[ -n ${PGCAPTURE_PG_BIN:-} ]]; then
        printf '%s\n' "$PGCAPTURE_PG_BIN"
        return 0
    fi
    while read -r candidate; do
        if [[ -x $candidate/initdb && -x $candidate/postgres ]]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done < <(
        tr ':' '\n' <<<"$PATH"
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin |
            sort -rV
        printf '%s\n' /usr/local/pgsql/bin
    )
    return 1
}

check_postgres_bin() {
    [[ -z ${PGCAPTURE_PG_BIN:-} || -x $PGCAPTURE_PG_BIN/initdb ]] ||
        fail 1 "PGCAPTURE_PG_BIN is $PGCAPTURE_PG_BIN, which has no initdb" \
            "point it to the directory with initdb and postgres, or unset it"
}

# postgres_major DIRECTORY: prints the major version of the programs in it.
postgres_major() {
    "$1/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/'
}

check_rust() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null ||
        fail 1 "Rust is missing" \
            "install it with rustup (https://rustup.rs), open a new shell, and try again"
    local have
    have=$(rustc --version | cut -d' ' -f2) ||
        fail 1 "rustc does not run" "rustup toolchain install"
    if [[ $(printf '%s\n' "$rust_needed" "$have" | sort -V | head -n 1) != "$rust_needed" ]]; then
        fail 1 "Rust $have is older than $rust_needed" \
            "rustup update, or install rustup (https://rustup.rs): it takes the version from rust-toolchain.toml"
    fi
}

# missing_packages: prints the Debian packages that the machine lacks, one a line.
missing_packages() {
    command -v cc >/dev/null || printf '%s\n' gcc libc6-dev
    postgres_bin >/dev/null || printf '%s\n' postgresql
}

has_apt() {
    command -v apt-get >/dev/null && [[ -r /etc/os-release ]] &&
        grep -Eq '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release
}

# as_root COMMAND…: runs it as root, through sudo when we are not.
as_root() {
    if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo -- "$@"; fi
}

apt_install() {
    local how=""
    if ! has_apt; then
        fail 1 "missing: $* (names of Debian packages), and this system is not one the script knows" \
            "install a C compiler and PostgreSQL's server ($oldest_postgres or newer) with your package manager \
(Fedora: gcc postgresql-server; Arch: gcc postgresql; macOS: brew install postgresql), or set \
PGCAPTURE_PG_BIN to the directory that has initdb; then try again"
    fi
    if [[ $(id -u) -ne 0 ]]; then
        command -v sudo >/dev/null ||
            fail 1 "missing: $*, and installing needs root, and there is no sudo" \
                "as root: apt-get update && apt-get install --no-install-recommends $*"
        how="sudo "
    fi
    say "missing on this machine: $*"
    say "running: ${how}apt-get update && ${how}apt-get install --no-install-recommends $*"
    keep_default_cluster_away "$@"
    # Without a terminal apt must not ask; its locks are waited for, not fought over.
    local quiet=(-o DPkg::Lock::Timeout=300 -qq)
    as_root apt-get "${quiet[@]}" update >&2 ||
        fail 1 "apt-get update failed" "repair the package sources (messages above) and try again"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get "${quiet[@]}" install -y --no-install-recommends "$@" >&2 ||
        fail 1 "apt-get install failed" "repair what the messages above name and try again"
}

# Debian's package creates and starts a cluster of its own. Nobody asked for one here: every server
# that pgcapture needs is a throw-away one. Only where nobody has decided otherwise.
keep_default_cluster_away() {
    local settings=/etc/postgresql-common/createcluster.conf
    [[ " $* " == *" postgresql "* && ! -e $settings ]] || return 0
    say "writing $settings: create_main_cluster = false (no server is started by the package)"
    as_root mkdir -p "${settings%/*}"
    printf 'create_main_cluster = false\n' | as_root tee "$settings" >/dev/null
}

# install_missing: everything that `run` needs. A second call finds nothing to do.
install_missing() {
    check_rust
    check_postgres_bin
    local packages directory major
    mapfile -t packages < <(missing_packages)
    if ((${#packages[@]} > 0)); then
        apt_install "${packages[@]}"
    fi
    directory=$(postgres_bin) ||
        fail 1 "PostgreSQL's initdb is still not to be found" \
            "set PGCAPTURE_PG_BIN to the directory that has initdb"
    major=$(postgres_major "$directory")
    if ((major < oldest_postgres)); then
        fail 1 "PostgreSQL $major in $directory is older than $oldest_postgres" \
            "install a newer one, or set PGCAPTURE_PG_BIN to its directory"
    fi
    # The program looks by itself; this way both have the same answer.
    export PGCAPTURE_PG_BIN=$directory
    say "PostgreSQL $major in $directory, $(rustc --version)"
}
