#!/usr/bin/env bash
# Compares with the Python package redis-allocator 0.7.0, which is installed under target/ and nowhere else: the same
# server, the same work, in turn. Needs Rust, Python 3 with venv, and a server (see servers.sh).
#
#   scripts/peer-bench.sh [ROUNDS [SECONDS]]   default: 7 rounds of 2 seconds each
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
target="${CARGO_TARGET_DIR:-$root/target}"
peer="$target/peer-bench"

mkdir -p "$peer"
if [[ ! -x "$peer/python/bin/python" ]]; then python3 -m venv "$peer/python"; fi
"$peer/python/bin/python" -m pip --disable-pip-version-check --quiet install --requirement "$here/peer-bench.txt"

driver="$(cd "$root" && cargo bench --package e2e --bench throughput --no-run --message-format=json |
    "$peer/python/bin/python" -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "throughput":
        print(message["executable"])')"

environment="$("$here/servers.sh" test)"
eval "$environment"
work="$(mktemp -d)"
port="$("$peer/python/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --save "" --appendonly no --maxmemory-policy noeviction --dir "$work" \
    >"$work/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in {1..100}; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    sleep 0.1
done
"$peer/python/bin/python" "$here/peer-bench.py" "$port" "$driver" "${1:-7}" "${2:-2}"
