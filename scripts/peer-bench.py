"""Pairs of malloc and free per second, side by side with the Python package redis-allocator 0.7.0.

Run by peer-bench.sh, with the interpreter that has the package. Both use the same server, in turn within each round.
The peer is driven by its cheapest calls: malloc_key and free_keys, without its policy, which would also collect garbage.

usage: peer-bench.py PORT DRIVER ROUNDS SECONDS
  DRIVER: the benchmark `throughput`, which drives the Rust library
"""

import multiprocessing
import statistics
import subprocess
import sys
import threading
import time

from redis import Redis
from redis_allocator import RedisAllocator

SIZE = 1000
PROCESSES = 8


def allocator(port: int) -> RedisAllocator:
    return RedisAllocator(Redis(port=port, decode_responses=True), "peer", "bench")


def pairs(pool: RedisAllocator, until: float) -> int:
    done = 0
    while time.monotonic() < until:
        key = pool.malloc_key(timeout=120)
        assert key is not None, "the peer's pool is empty"
        pool.free_keys(key)
        done += 1
    return done


def threads(port: int, count: int, seconds: float) -> float:
    """Threads of this process, which share one allocator, as its users do."""
    pool = allocator(port)
    counts = [0] * count
    started = time.monotonic()

    def work(i: int) -> None:
        counts[i] = pairs(pool, started + seconds)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.monotonic() - started)


def child(port: int, seconds: float, barrier, results) -> None:
    pool = allocator(port)
    pairs(pool, time.monotonic() + 0.1)
    barrier.wait()
    started = time.monotonic()
    done = pairs(pool, started + seconds)
    results.put(done / (time.monotonic() - started))


def processes(port: int, count: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=child, args=(port, seconds, barrier, results)) for _ in range(count)]
    for worker in workers:
        worker.start()
    total = sum(results.get(timeout=60 + seconds) for _ in workers)
    for worker in workers:
        worker.join()
    return total


def rust(driver: str, port: int, count: int, tasks: int, seconds: float) -> float:
    arguments = [driver, "drive", f"redis://127.0.0.1:{port}", "bench", str(count), str(tasks), str(seconds)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def no_ops(driver: str, port: int, tasks: int, seconds: float) -> float:
    """Two scripts that do nothing in place of a pair, sent by a bare client."""
    arguments = [driver, "no-ops", f"redis://127.0.0.1:{port}", str(tasks), str(seconds)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    port, driver, rounds, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    redis = Redis(port=port, decode_responses=True)
    allocator(port).extend([f"10.0.{i >> 8}.{i & 255}:8000" for i in range(SIZE)])
    measured = {
        "peer, 1 thread": lambda: threads(port, 1, seconds),
        "peer, 8 threads": lambda: threads(port, 8, seconds),
        "peer, 64 threads": lambda: threads(port, 64, seconds),
        "peer, 8 processes": lambda: processes(port, PROCESSES, seconds),
        "this library, 1 task": lambda: rust(driver, port, 1, 1, seconds),
        "this library, 64 tasks on one connection": lambda: rust(driver, port, 1, 64, seconds),
        "two no-ops in place of a pair, 64 tasks": lambda: no_ops(driver, port, 64, seconds),
        "this library, 8 processes of 1 task": lambda: rust(driver, port, PROCESSES, 1, seconds),
        "this library, 8 processes of 8 tasks": lambda: rust(driver, port, PROCESSES, 8, seconds),
    }
    rates = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            rates[name].append(measure())
    rates["ratio: 64 tasks to the peer's best in one process (target ≥ 10)"] = [
        ours / max(peer)
        for ours, *peer in zip(
            rates["this library, 64 tasks on one connection"],
            rates["peer, 1 thread"], rates["peer, 8 threads"], rates["peer, 64 threads"],
        )
    ]
    rates["ratio: 8 processes of 1 task to the peer's 8 (target ≥ 4)"] = [
        ours / peer for ours, peer in zip(rates["this library, 8 processes of 1 task"], rates["peer, 8 processes"])
    ]
    rates["ratio: 8 processes of 8 tasks to the peer's 8 (target ≥ 4)"] = [
        ours / peer for ours, peer in zip(rates["this library, 8 processes of 8 tasks"], rates["peer, 8 processes"])
    ]
    info = redis.info("server")
    print(f"pairs of malloc and free a second: redis {info['redis_version']}, loopback TCP, {rounds} rounds of {seconds} s")
    for name, values in rates.items():
        digits = 2 if name.startswith("ratio") else 0
        print(f"  {name:<64} {statistics.median(values):>8.{digits}f}  ({min(values):.{digits}f} – {max(values):.{digits}f})")


if __name__ == "__main__":
    main()
