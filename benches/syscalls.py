#!/usr/bin/env python3
"""System calls of a transaction, counted by strace: `make show-syscalls`.

    benches/syscalls.py [--transactions 4000] [--cells simple/1,simple/16,...] [--pgbouncer] [--detail]

Each load runs twice, the second time three times as long; what the difference has called is that of the transactions
alone, without starting and connecting. Exits with an error if pgweir needs more than 6 a transaction with one client, or
4.5 with 16. Counts do not depend on what else the machine does, except that a pooler which is slow, such as a traced one,
finds more to do each time it looks (epoll_wait).
"""
import argparse, re, shutil, signal, subprocess, sys

import scratch

CELLS = "simple/1,simple/16,prepared/1,prepared/16,connect/8"
MOST = {"1": 6.0, "16": 4.5}
# What is done by the clock, in parts of a call.
NOISE = 0.05


def mode_of(cell):
    return cell.split("/")[0]


def child_of(pid):
    return int(open(f"/proc/{pid}/task/{pid}/children").read().split()[0])


def counts(path):
    """Calls by name from strace's table."""
    found = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line):
            found[match[2]] = int(match[1])
    found.pop("total", None)
    return found


def run(folder, name, start, cell, each):
    """Calls by name of a load from start to end, and its transactions."""
    mode, clients = cell.split("/")
    table = folder.folder / "strace"
    tracer, target = start(["strace", "-c", "-f", "-qq", "-o", str(table)])
    load = scratch.pgbench(folder, target, mode, int(clients), transactions=each)
    subprocess.run(["kill", "-TERM" if name == "pgweir" else "-QUIT", str(child_of(tracer))], check=True)
    process = next(process for process in folder.processes if process.pid == tracer)
    process.wait(30)
    folder.processes.remove(process)
    if not load:
        sys.exit(f"{name} failed")
    found = counts(table)
    table.unlink()
    return found, load.count


def measure(folder, name, start, cell, transactions):
    """Calls by name for each transaction."""
    each = max(1, transactions // 2 // int(cell.split("/")[1]))
    (once, few), (thrice, many) = run(folder, name, start, cell, each), run(folder, name, start, cell, 3 * each)
    return {call: (thrice.get(call, 0) - once.get(call, 0)) / (many - few) for call in thrice}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=8000)
    parser.add_argument("--cells", default=CELLS)
    parser.add_argument("--pgbouncer", action="store_true", help="count PgBouncer's too")
    parser.add_argument("--detail", action="store_true", help="each call")
    options = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("strace is missing (Debian: apt-get install strace)")
    misses = []
    with scratch.scratch() as folder:
        folder.postgres(scale=1)

        def pgweir(lanes):
            def start(before):
                target = folder.pgweir(lanes, before=before)
                return target.pid, target
            return start

        def pgbouncer(before):
            target = folder.pgbouncer(before=before)
            return target.pid, target

        subjects = [("pgweir", "pgweir without lanes", pgweir(0)), ("pgweir", "pgweir", pgweir(2))]
        if options.pgbouncer and scratch.find_pgbouncer():
            subjects.insert(0, ("pgbouncer", "pgbouncer", pgbouncer))
        for cell in options.cells.split(","):
            for program, name, start in subjects:
                calls = measure(folder, program, start, cell, options.transactions)
                total = sum(calls.values())
                print(f"{cell:12} {name:22} {total:6.2f} system calls a transaction", flush=True)
                if options.detail:
                    print("    " + ", ".join(f"{call} {count:.2f}" for call, count in sorted(calls.items(), key=lambda item: -item[1]) if count >= 0.005), flush=True)
                most = MOST.get(cell.split("/")[1])
                if program == "pgweir" and mode_of(cell) != "connect" and most and total > most + NOISE:
                    misses.append(f"{cell}, {name}: {total:.2f}, at most {most}")
    if misses:
        sys.exit("more than wanted:\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
