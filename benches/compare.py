#!/usr/bin/env python3
"""pgweir beside a direct connection and PgBouncer, taking turns in one run: `make show-speed`.

Prints medians and, what counts, their ratios to PgBouncer and to direct connections in the same run, then what each
cell is to reach and whether it did; exits with an error if one did not. Everything it needs it starts and stops itself:
a scratch PostgreSQL, PgBouncer (1.21 or newer for prepared statements), and the pgweir that PGWEIR names.

Poolers are started anew for each round, and take turns by the second where there are few clients: what a transaction costs
one process differs from another of the same program by where its memory happens to be, and from one minute to the next by
what else the machine does. Ratios are medians of those of each turn.

A cell is MODE/CLIENTS or MODE/CLIENTS/POOL_SIZE; mode `connect` is simple with a connection for each transaction.

    benches/compare.py [--seconds 4] [--rounds 4] [--cells simple/1,prepared/64/2,...] [--targets direct,pgbouncer,pgweir]
                       [--idle 10000] [--idle-tls 2000] [--csv FILE] [--no-goals]
"""
import argparse, csv, os, socket, ssl, statistics, sys, time

import scratch
from scratch import query, startup_packet, until_ready

CELLS = "simple/1,simple/16,prepared/1,prepared/16,prepared/500,connect/8"
LANES = "simple/64,simple/500,prepared/64,prepared/200,prepared/500,prepared/64/2,prepared/500/2,prepared/200/5"
TARGETS = "direct,pgbouncer,pgweir without lanes,pgweir"

# The relay: CPU a transaction at most, and throughput at least, as ratios to PgBouncer.
RELAY = {"simple/1": (1.0, 1.0), "simple/16": (0.95, 1.1), "prepared/16": (0.85, 1.15), "prepared/500": (0.9, 1.15), "connect/8": (1.0, 1.0)}
# Lanes, prepared, 64 clients and more: throughput to direct's best and to PgBouncer's, CPU to PgBouncer's, p99 to direct's.
BEST, BOUNCER, CPU, P99 = 1.3, 2.5, 0.5, 1.0
IDLE_KB = 2.0


def parts(seconds, clients):
    """A round's seconds, one at a time where connecting takes nothing of it: what else the machine does changes too."""
    return [1] * seconds if clients <= 16 else [seconds]


def paired(turns, one, other):
    """Medians of what one took to what another took in the same turn; `None` where there is no such turn, or nothing to divide by."""
    both = [list(zip(turn[one], turn[other])) for turn in turns if turn.get(one) and turn.get(other)]
    columns = [[a / b for a, b in column if b] for column in zip(*both)] or [[]] * 3
    return [statistics.median(column) if column else None for column in columns]


def shown(ratio):
    return "-" if ratio is None else f"{ratio:.2f}"


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.table, self.misses = [], []
        self.best_direct = {}

    def start(self, pool_size):
        """What is measured, with this size of pool."""
        folder = self.folder
        makers = {"direct": lambda: folder.direct, "pgbouncer": lambda: folder.pgbouncer(pool_size),
                  "pgweir without lanes": lambda: folder.pgweir(0, pool_size, name="pgweir without lanes"), "pgweir": lambda: folder.pgweir(2, pool_size)}
        made = [make() for name, make in makers.items() if name in self.options.targets.split(",")]
        return [target for target in made if target]

    def cell(self, cell):
        mode, clients, *size = cell.split("/")
        clients, pool_size = int(clients), int(size[0]) if size else self.options.pool_size
        turns = []
        for number in range(self.options.rounds):
            started = self.start(pool_size)
            targets = [target for target in started if target.has_prepared or mode != "prepared"]
            for target in targets:
                # Statements are known and prepared, and known to be short.
                scratch.pgbench(self.folder, target, mode, clients, transactions=max(20, 800 // clients))
            for part, seconds in enumerate(parts(self.options.seconds, clients)):
                # Who comes first changes, so that nobody always follows the same.
                first = (number + part) % len(targets)
                measured = {target.name: self.measure(target, mode, clients, seconds) for target in targets[first:] + targets[:first]}
                turns.append({target.name: measured[target.name] for target in targets})
            for target in started:
                if target.pid:
                    self.folder.stop(target.pid)
        self.report(cell, mode, turns)
        if not self.options.no_goals:
            self.judge(cell, mode, clients, turns)

    def measure(self, target, mode, clients, seconds):
        """Throughput, p99, and CPU of a transaction; `None` if it failed."""
        before = target.cpu()
        load = scratch.pgbench(self.folder, target, mode, clients, seconds)
        return load and (load.tps, load.p99, (target.cpu() - before) / load.count * 1e6)

    def report(self, cell, mode, turns):
        for name in turns[0]:
            measured = [turn[name] for turn in turns if turn[name]]
            if not measured:
                continue
            medians = scratch.medians(measured)
            if name == "direct":
                self.best_direct[mode] = max(self.best_direct.get(mode, 0), medians[0])
            tps, p99, cpu = medians
            (tps_b, _, cpu_b), (tps_d, p99_d, _) = (paired(turns, name, other) for other in ("pgbouncer", "direct"))
            print(f"{cell:15} {name:20} tps {tps:8.0f} ({shown(tps_b):>5}; {shown(tps_d):>5} of direct)  p99 {p99 / 1000:7.2f} ms ({shown(p99_d):>5} of direct)"
                  + (f"  cpu {cpu:6.2f} us ({shown(cpu_b)})" if cpu else ""), flush=True)
            self.table.append([cell, name, round(tps), p99, round(cpu, 2), *map(shown, (tps_b, tps_d, cpu_b, p99_d))])

    def judge(self, cell, mode, clients, turns):
        if not {"pgweir", "pgbouncer"} <= turns[0].keys():
            return
        to_bouncer, to_direct = paired(turns, "pgweir", "pgbouncer"), paired(turns, "pgweir", "direct")
        if cell in RELAY:
            cpu, tps = RELAY[cell]
            self.goal(cell, "CPU to PgBouncer's", to_bouncer[2], cpu, at_most=True)
            self.goal(cell, "throughput to PgBouncer's", to_bouncer[0], tps)
        if mode in ("simple", "prepared") and clients >= 64 and "direct" in turns[0]:
            ours, best = [turn["pgweir"][0] for turn in turns if turn["pgweir"]], self.best_direct.get(mode)
            self.goal(cell, "throughput to direct's best so far", statistics.median(ours) / best if ours and best else None, BEST)
            self.goal(cell, "throughput to PgBouncer's", to_bouncer[0], BOUNCER)
            self.goal(cell, "CPU to PgBouncer's", to_bouncer[2], CPU, at_most=True)
            self.goal(cell, "p99 to direct's", to_direct[1], P99, at_most=True)

    def goal(self, cell, what, value, wanted, at_most=False):
        # What could not be measured was not reached.
        reached = value is not None and (value <= wanted if at_most else value >= wanted)
        line = f"{cell:15} {what}: {shown(value)}, {'at most' if at_most else 'at least'} {wanted}: {'reached' if reached else 'NOT REACHED'}"
        print(f"    {line}", flush=True)
        if not reached:
            self.misses.append(line)

    def idle(self, wanted, tls=False):
        """What an idle client that has run a query holds in memory."""
        clients = min(wanted, (scratch.raise_open_files() - 200))
        if clients < wanted:
            print(f"open files are limited here: {clients} clients instead of {wanted}")
        makers = [lambda: self.folder.pgbouncer(tls=tls), lambda: self.folder.pgweir(tls=tls)]
        for target in filter(None, (make() for make in makers)):
            # The pool and its buffers are there before; what is counted is the clients'.
            sockets = [connect(target.port, tls) for _ in range(50)]
            before = scratch.memory_kb(target.pid)
            sockets += [connect(target.port, tls) for _ in range(clients)]
            time.sleep(1)
            each = (scratch.memory_kb(target.pid) - before) / clients
            what = "idle clients with TLS" if tls else "idle clients"
            print(f"{target.name:20} {each:6.2f} kB for each of {clients} {what} that have run a query", flush=True)
            self.table.append([what, target.name, clients, "", round(each, 2), "", "", "", ""])
            for s in sockets:
                s.close()
            if target.name == "pgweir" and not tls and not self.options.no_goals:
                self.goal("idle", "kB for each client", each, IDLE_KB, at_most=True)
            self.folder.stop(target.pid)


def connect(port, tls):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(30)
    if tls:
        s.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        if s.recv(1) != b"S":
            sys.exit("no TLS")
        s = TLS.wrap_socket(s)
    s.sendall(startup_packet())
    until_ready(s)
    s.sendall(query("select 1"))
    until_ready(s)
    return s


TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS.check_hostname, TLS.verify_mode = False, ssl.CERT_NONE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--cells", default=f"{CELLS},{LANES}", help="MODE/CLIENTS[/POOL_SIZE],...; none for the memory alone")
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--pool-size", type=int, default=20)
    parser.add_argument("--idle", type=int, default=0, help="also measure the memory of so many idle clients")
    parser.add_argument("--idle-tls", type=int, default=0, help="the same with TLS")
    parser.add_argument("--csv", help="write the figures to this file too")
    parser.add_argument("--no-goals", action="store_true", help="print figures only")
    options = parser.parse_args()
    with scratch.scratch() as folder:
        folder.postgres()
        bench = Bench(options, folder)
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors; throughput, p99 and CPU a transaction; ratios to PgBouncer, and to direct")
        for cell in filter(lambda cell: cell not in ("", "none"), options.cells.split(",")):
            bench.cell(cell)
        if options.idle:
            bench.idle(options.idle)
    # TLS on all sides needs a server of its own.
    if options.idle_tls:
        with scratch.scratch() as folder:
            folder.postgres(scale=0, tls=True)
            bench.folder = folder
            bench.idle(options.idle_tls, tls=True)
    if options.csv:
        with open(options.csv, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["cell", "target", "tps", "p99_us", "cpu_us", "tps_to_pgbouncer", "tps_to_direct", "cpu_to_pgbouncer", "p99_to_direct"])
            writer.writerows(bench.table)
    if bench.misses:
        sys.exit("\nnot reached:\n" + "\n".join(bench.misses))


if __name__ == "__main__":
    main()
