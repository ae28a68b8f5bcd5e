# shellcheck shell=bash
#
# How the scripts talk: on stderr, one line a fact. Data goes to stdout, and nothing here writes it.

say() {
    printf '==> %s\n' "$*" >&2
}

# fail EXIT_CODE WHAT NEXT: says what is wrong and what to do about it, and ends the script.
fail() {
    printf 'error: %s\n  next: %s\n' "$2" "$3" >&2
    exit "$1"
}
