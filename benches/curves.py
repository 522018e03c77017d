#!/usr/bin/env python3
"""How throughput, latency and CPU a transaction change with one thing at a time: `make show-curves`.

    benches/curves.py [--seconds 3] [--curves clients,pool_size,...] [--quick] [--into benches/results]

Writes one CSV for all curves, with the command that made it, and a picture of each (with matplotlib, see
benches/requirements.txt; without it only the CSV). At the end it says for each curve how the CPU a transaction at its last
point compares with the least, and exits with an error where that must not grow: with clients, pools and distinct statements.
"""
import argparse, collections, csv, os, pathlib, socket, sys, time

import scratch
from scratch import query, startup_packet, until_ready

COLUMNS = ["curve", "x", "target", "tps", "p50_us", "p99_us", "cpu_us"]
TITLES = {
    "clients": "clients, prepared, 20 server connections",
    "pool_size": "server connections, prepared, 64 clients",
    "result_bytes": "bytes of a result, prepared, 8 clients",
    "statements": "statements in a transaction, prepared, 16 clients",
    "distinct": "distinct statements, simple, 16 clients",
    "met": "distinct statements that have run before, simple, 16 clients",
    "workers": "clients with one worker and two, prepared",
    "pools": "pools with a client, prepared, 16 clients in one of them",
}
# CPU a transaction at the end of a curve, to its least: what may not grow, and by how much it may seem to.
MUST_NOT_GROW = {"clients": 1.5, "distinct": 1.5, "met": 1.5, "pools": 1.3}
# How often each statement of the curve `met` has run when it is measured.
MEETINGS = 24
# Whose cost grows with caches that no longer hold everything, not with pgweir's tables.
LOADED = 16
# From as many clients on, connecting is a large part of a run, and CPU is measured without it.
MANY = 1000


class Curves:
    def __init__(self, folder, options):
        self.folder, self.options, self.rows = folder, options, []

    def point(self, curve, x, target, mode, clients, script=None, sample=0.2):
        # Those that connect one after the other are given the time for it.
        seconds = self.options.seconds + clients // 500
        before = target.cpu()
        load = scratch.pgbench(self.folder, target, mode, clients, seconds, script=script, sample=sample)
        if not load:
            return
        cpu = (target.cpu() - before) / load.count * 1e6
        if target.pid and clients >= MANY:
            steady = scratch.busy_cpu(self.folder, target, clients, seconds + 4)
            if steady is None:
                print(f"{target.name}, {clients} clients: too few seconds to measure CPU in", flush=True)
                return
            cpu = steady * 1e6
        self.rows.append([curve, x, target.name, round(load.tps), load.p50, load.p99, round(cpu, 2)])
        print(f"{curve:12} {x:>9} {target.name:16} tps {load.tps:8.0f}  p50 {load.p50 / 1000:8.2f} ms  p99 {load.p99 / 1000:8.2f} ms" + (f"  cpu {cpu:8.2f} us" if target.pid else ""), flush=True)

    def targets(self, with_direct=True, **options):
        made = [self.folder.pgbouncer(**options), self.folder.pgweir(**options)]
        return [self.folder.direct] * with_direct + [target for target in made if target]

    def stop(self, targets):
        for target in targets:
            if target.pid:
                self.folder.stop(target.pid)

    def some(self, values):
        """All of them, or with --quick the first, one amid them and the last."""
        values = list(values)
        return [values[0], values[len(values) // 2], values[-1]] if self.options.quick else values

    def script(self, text):
        path = self.folder.folder / "script.sql"
        path.write_text(text)
        return path

    def clients(self):
        targets = self.targets()
        most = scratch.raise_open_files() - 1000
        for clients in self.some([1, 4, 16, 64, 200, 500, 1000, 2000, 5000, 10000]):
            for target in targets:
                if clients <= most and (target.pid or clients <= 500):
                    self.point("clients", clients, target, "prepared", clients)
        self.stop(targets)

    def pool_size(self):
        for size in self.some([1, 2, 5, 10, 20, 50]):
            targets = self.targets(with_direct=False, pool_size=size) + [self.folder.pgweir(0, size, name="pgweir, no lanes")]
            for target in targets:
                self.point("pool_size", size, target, "prepared", 64)
            self.stop(targets)

    def result_bytes(self):
        targets = self.targets()
        for size in self.some([10**power for power in range(1, 9)]):
            # One row up to 1000 bytes, rows of 1000 from there on.
            script = self.script(f"SELECT repeat('x', {min(size, 1000)}) FROM generate_series(1, {max(1, size // 1000)});\n")
            for target in targets:
                # Of few transactions each counts.
                self.point("result_bytes", size, target, "prepared", 8, script, sample=0.2 if size < 100_000 else 1)
        self.stop(targets)

    def statements(self):
        targets = self.targets()
        for count in self.some([1, 2, 5, 10, 20, 50]):
            one = "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
            script = self.script("\\set aid random(1, 100000)\nBEGIN;\n" + one * count + "COMMIT;\n")
            for target in targets:
                self.point("statements", count, target, "prepared", 16, script)
        self.stop(targets)

    def distinct(self, curve="distinct", meetings=0):
        targets = self.targets()
        for count in self.some([1, 10, 100, 1000, 10000, 100000]):
            script = self.script(f"\\set n random(1, {count})\nSELECT abalance AS a_:n FROM pgbench_accounts WHERE aid = 4711;\n")
            for target in targets:
                if meetings and target.pid:
                    scratch.pgbench(self.folder, target, "simple", LOADED, transactions=1 + meetings * count // LOADED, script=script)
                self.point(curve, count, target, "simple", LOADED, script)
        self.stop(targets)

    def met(self):
        """The same where each statement has run so often that it is known to be short."""
        self.distinct("met", MEETINGS)

    def workers(self):
        for workers in (1, 2):
            target = self.folder.pgweir(name=f"{workers} workers", settings=[f"general.workers={workers}"])
            for clients in self.some([1, 16, 64, 200, 500]):
                self.point("workers", clients, target, "prepared", clients)
            self.stop([target])

    def pools(self):
        """A pool for each user, each with a client that has run a query; the shared cap takes their server connections back."""
        sizes = self.some([1, 10, 100, 1000])
        direct = connect(self.folder.port, "postgres")
        for number in range(max(sizes)):
            direct.sendall(query(f"CREATE ROLE pool_{number} LOGIN"))
            until_ready(direct)
        direct.close()
        for size in sizes:
            target = self.folder.pgweir(settings=["pool.max_server_connections=100"])
            clients = [connect(target.port, f"pool_{number}") for number in range(size - 1)]
            self.point("pools", size, target, "prepared", LOADED)
            for client in clients:
                client.close()
            self.stop([target])


def connect(port, user):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(60)
    s.sendall(startup_packet(user))
    until_ready(s)
    s.sendall(query("select 1"))
    until_ready(s)
    return s


def judge(rows):
    """What grew that must not: the CPU a transaction of pgweir at the last point of a curve, to the least from the first loaded point on."""
    misses = []
    for curve, most in MUST_NOT_GROW.items():
        points = [(x, cpu) for name, x, target, _, _, _, cpu in rows if name == curve and target == "pgweir"]
        # One client alone has the whole cost of each wake-up.
        points = [(x, cpu) for x, cpu in points if curve != "clients" or x >= LOADED]
        if len(points) < 2:
            continue
        least = min(cpu for _, cpu in points)
        grown = points[-1][1] / least
        print(f"{curve}: CPU a transaction at {points[-1][0]} is {grown:.2f} of the least")
        if grown > most:
            misses.append(f"{curve}: {grown:.2f}, at most {most}")
    return misses


def draw(rows, into):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("matplotlib is not installed: no pictures")
        return
    series = collections.defaultdict(lambda: collections.defaultdict(list))
    for curve, x, target, *values in rows:
        series[curve][target].append((x, *values))
    for curve, by_target in series.items():
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
        for target, points in by_target.items():
            x, tps, p50, p99, cpu = zip(*points)
            line, = axes[0].plot(x, tps, marker="o", label=target)
            axes[1].plot(x, [v / 1000 for v in p50], marker="o", color=line.get_color(), label=f"{target}, p50")
            axes[1].plot(x, [v / 1000 for v in p99], marker="^", linestyle="--", color=line.get_color(), label=f"{target}, p99")
            if any(cpu):
                axes[2].plot(x, cpu, marker="o", color=line.get_color(), label=target)
        for axis, title in zip(axes, ["transactions a second", "latency, ms", "CPU a transaction, µs"]):
            axis.set_title(title)
            axis.set_xscale("log")
            axis.set_xlabel(TITLES[curve])
            axis.grid(True, alpha=0.3)
            axis.legend(fontsize=8)
        axes[1].set_yscale("log")
        if curve == "result_bytes":
            axes[0].set_yscale("log")
            axes[2].set_yscale("log")
        else:
            axes[0].set_ylim(bottom=0)
            axes[2].set_ylim(bottom=0)
        figure.tight_layout()
        figure.savefig(into / f"{curve}.png", dpi=80)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--curves", default=",".join(TITLES))
    parser.add_argument("--quick", action="store_true", help="three points of each curve, one second each")
    parser.add_argument("--into", type=pathlib.Path, default=scratch.ROOT / "benches/results")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 1
    started = time.time()
    rows = []
    for curve in options.curves.split(","):
        # Fresh servers each, so that one curve does not pay for what another has filled.
        with scratch.scratch() as folder:
            folder.postgres()
            curves = Curves(folder, options)
            getattr(curves, curve)()
            rows += curves.rows
    options.into.mkdir(parents=True, exist_ok=True)
    with open(options.into / "curves.csv", "w", newline="") as out:
        out.write(f"# benches/curves.py {' '.join(sys.argv[1:])}".rstrip() + f"; {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}\n")
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    draw(rows, options.into)
    print(f"{len(rows)} points in {(time.time() - started) / 60:.0f} minutes, in {options.into}")
    if misses := judge(rows):
        sys.exit("grew:\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
