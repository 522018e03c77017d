#!/usr/bin/env python3
"""pgweir beside PgBouncer with TLS on both sides, taking turns: `make show-tls`.

    benches/tls.py [--seconds 5] [--rounds 3] [--cells simple/1,simple/16,...]

Exits with an error if pgweir's throughput is not at least 1.2 times PgBouncer's in each cell. `connect` is a connection
with its handshake for each transaction.
"""
import argparse, sys

import scratch
from scratch import ratio

CELLS = "simple/1,simple/16,prepared/16,prepared/64,connect/8"
LEAST = 1.2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", default=CELLS)
    options = parser.parse_args()
    misses = []
    with scratch.scratch() as folder:
        folder.postgres(tls=True)
        targets = [folder.direct, folder.pgbouncer(tls=True), folder.pgweir(0, tls=True, name="pgweir without lanes"), folder.pgweir(tls=True)]
        targets = [target for target in targets if target]
        for cell in options.cells.split(","):
            mode, clients = cell.split("/")
            rows = {target.name: [] for target in targets}
            for turn in range(options.rounds):
                for target in targets[turn % len(targets):] + targets[:turn % len(targets)]:
                    before = target.cpu()
                    load = scratch.pgbench(folder, target, mode, int(clients), options.seconds, sslmode="require")
                    if load:
                        rows[target.name].append((load.tps, load.p99, (target.cpu() - before) / load.count * 1e6))
            medians = {name: scratch.medians(measured) for name, measured in rows.items() if measured}
            bouncer = medians.get("pgbouncer", [0, 0, 0])
            for name, (tps, p99, cpu) in medians.items():
                print(f"{cell:12} {name:20} tps {tps:8.0f} ({ratio(tps, bouncer[0]):>5} of PgBouncer's)  p99 {p99 / 1000:7.2f} ms  cpu {cpu:7.2f} us ({ratio(cpu, bouncer[2])})", flush=True)
            if bouncer[0] and medians["pgweir"][0] / bouncer[0] < LEAST:
                misses.append(f"{cell}: {medians['pgweir'][0] / bouncer[0]:.2f}, at least {LEAST}")
    if misses:
        sys.exit("throughput to PgBouncer's not reached:\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
