#!/usr/bin/env python3
"""pgweir beside a direct connection and PgBouncer, taking turns in one run: `make show-speed`.

Prints medians and, what counts, their ratios to PgBouncer in the same run. Everything it needs it starts and stops
itself: a scratch PostgreSQL, PgBouncer (from PATH, or the program that PGBOUNCER names; 1.21 or newer for prepared
statements), pgweir from target/release. Every process gets a session of its own, because Linux shares the processor by
session (sched_autogroup): a pooler in the session of its load generator would be measured with half of it.

    benches/compare.py [--seconds 5] [--rounds 3] [--cells simple/1,simple/16,...] [--idle 10000] [--csv FILE]
"""
import argparse, csv, os, pathlib, pwd, re, resource, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CELLS = "simple/1,simple/16,prepared/1,prepared/16,prepared/64,prepared/500,connect/8"
TICKS = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def find(program):
    if path := shutil.which(program):
        return path
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    if not found:
        sys.exit(f"{program} is missing: install PostgreSQL (Debian: apt-get install postgresql)")
    return str(found[-1])


def unprivileged():
    """PostgreSQL and PgBouncer refuse to run as root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Bench:
    def __init__(self, folder, pool_size):
        self.folder, self.pool_size, self.processes = folder, pool_size, []

    def start(self, name, command, port, **options):
        log = open(self.folder / f"{name}.log", "w")
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.processes.append(process)
        deadline = time.time() + 30
        while time.time() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return process.pid
            except OSError:
                time.sleep(0.05)
        sys.exit(f"{name} did not start:\n" + (self.folder / f"{name}.log").read_text()[-2000:])

    def postgres(self):
        self.port, data = free_port(), self.folder / "data"
        subprocess.run([find("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **unprivileged())
        settings = ["fsync=off", "max_connections=700", "shared_buffers=512MB", f"unix_socket_directories={self.folder}", "listen_addresses=127.0.0.1"]
        command = [find("postgres"), "-D", data, "-p", str(self.port)]
        self.start("postgres", command + [part for setting in settings for part in ("-c", setting)], self.port, cwd=self.folder, **unprivileged())
        subprocess.run([find("pgbench"), "-i", "-q", "-s", "10", "postgres"], env=self.env(self.port), check=True, stderr=subprocess.DEVNULL)

    def pgbouncer(self):
        program = os.environ.get("PGBOUNCER") or shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if not program:
            print("PgBouncer is not installed: only direct connections and pgweir are compared", flush=True)
            return None
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        print(f"beside {version}", flush=True)
        major, minor = map(int, re.search(r"(\d+)\.(\d+)", version).groups())
        port, ini = free_port(), self.folder / "pgbouncer.ini"
        prepared = "max_prepared_statements=200\n" if (major, minor) >= (1, 21) else ""
        ini.write_text(f"[databases]\n* = host=127.0.0.1 port={self.port} user=postgres\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n"
                       f"auth_type=any\npool_mode=transaction\ndefault_pool_size={self.pool_size}\nmax_client_conn=20000\nignore_startup_parameters=extra_float_digits\nlog_connections=0\nlog_disconnections=0\n{prepared}")
        copy = self.folder / "pgbouncer"
        shutil.copy(program, copy)
        return "pgbouncer", port, self.start("pgbouncer", [copy, ini], port, cwd=self.folder, **unprivileged()), bool(prepared)

    def pgweir(self, lanes):
        port, program = free_port(), ROOT / "target/release/pgweir"
        command = [program, "run", "--primary", f"postgres://127.0.0.1:{self.port}", "--listen", f"127.0.0.1:{port}", "--http", "off", "--auth", "trust",
                   "--pool-size", str(self.pool_size), "--set", f"pool.lanes={lanes}", "--set", "general.max_client_conn=20000"]
        name = "pgweir" if lanes else "pgweir, no lanes"
        return name, port, self.start(name.replace(", ", "-").replace(" ", "-"), command, port), True

    def env(self, port):
        return dict(os.environ, PGHOST="127.0.0.1", PGPORT=str(port), PGUSER="postgres", PGSSLMODE="disable")

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def pgbench(bench, port, mode, clients, seconds, folder):
    log = folder / "latency"
    protocol = "simple" if mode == "connect" else mode
    command = [find("pgbench"), "-n", "-S", "-M", protocol, "-c", str(clients), "-j", "2" if clients > 200 else "1", "-T", str(seconds), "-l", "--sampling-rate=0.2", f"--log-prefix={log}"]
    out = subprocess.run(command + (["-C"] if mode == "connect" else []) + ["postgres"], env=bench.env(port), capture_output=True, text=True, start_new_session=True)
    tps = re.search(r"tps = ([\d.]+)", out.stdout)
    if not tps or "aborted" in out.stderr:
        return None
    latencies = []
    for file in folder.glob("latency.*"):
        latencies += [int(line.split()[2]) for line in file.read_text().splitlines()]
        file.unlink()
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)] if latencies else 0
    return float(tps[1]), p99, int(re.search(r"actually processed: (\d+)", out.stdout)[1])


def load(bench, targets, cell, seconds, rounds):
    mode, clients = cell.split("/")
    rows = {name: [] for name, *_ in targets}
    for _ in range(rounds):
        for name, port, pid, has_prepared in targets:
            if mode == "prepared" and not has_prepared:
                continue
            before = cpu_seconds(pid) if pid else 0
            measured = pgbench(bench, port, mode, int(clients), seconds, bench.folder)
            if measured:
                tps, p99, count = measured
                rows[name].append((tps, p99, (cpu_seconds(pid) - before) / count * 1e6 if pid else 0))
    return {name: [statistics.median(column) for column in zip(*measured)] for name, measured in rows.items() if measured}


def ratio(a, b):
    return f"{a / b:.2f}" if a and b else "-"


def memory_kb(pid):
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))


def until_ready(s):
    data = b""
    while not data.endswith(b"Z\0\0\0\x05I"):
        piece = s.recv(65536)
        if not piece:
            sys.exit(f"connection closed: {data!r}")
        data += piece


def idle(targets, wanted):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = min(wanted, (hard - 200) // 1)
    if clients < wanted:
        print(f"open files are limited to {hard} here: {clients} clients instead of {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    body = struct.pack(">I", 196608) + b"user\0postgres\0database\0postgres\0\0"
    for name, port, pid, _ in targets:
        if not pid:
            continue
        before, sockets = memory_kb(pid), []
        for _ in range(clients):
            s = socket.create_connection(("127.0.0.1", port))
            s.settimeout(30)
            s.sendall(struct.pack(">I", len(body) + 4) + body)
            until_ready(s)
            s.sendall(b"Q\0\0\0\x0dselect 1\0")
            until_ready(s)
            sockets.append(s)
        time.sleep(1)
        print(f"{name:18} {(memory_kb(pid) - before) / clients:6.2f} kB for each of {clients} idle clients that have run a query", flush=True)
        for s in sockets:
            s.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", default=CELLS, help="MODE/CLIENTS,...; connect is simple with a connection for each transaction")
    parser.add_argument("--pool-size", type=int, default=20)
    parser.add_argument("--idle", type=int, default=0, help="also measure the memory of so many idle clients")
    parser.add_argument("--csv", help="write the figures to this file too")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-compare-"))
    folder.chmod(0o777)
    bench, table = Bench(folder, options.pool_size), []
    try:
        bench.postgres()
        targets = [("direct", bench.port, None, True), bench.pgbouncer(), bench.pgweir(0), bench.pgweir(2)]
        targets = [target for target in targets if target]
        print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors; throughput, p99 and CPU a transaction; ratios to PgBouncer, and throughput to direct")
        for cell in filter(None, options.cells.split(",")):
            medians = load(bench, targets, cell, options.seconds, options.rounds)
            bouncer, direct = medians.get("pgbouncer", [0, 0, 0]), medians.get("direct", [0, 0, 0])
            for name, (tps, p99, cpu) in medians.items():
                print(f"{cell:14} {name:18} tps {tps:8.0f} ({ratio(tps, bouncer[0]):>5}; {ratio(tps, direct[0]):>5} of direct)  p99 {p99 / 1000:7.2f} ms ({ratio(p99, direct[1]):>5} of direct)"
                      + (f"  cpu {cpu:6.2f} us ({ratio(cpu, bouncer[2])})" if cpu else ""), flush=True)
                table.append([cell, name, round(tps), p99, round(cpu, 2), ratio(tps, bouncer[0]), ratio(tps, direct[0]), ratio(cpu, bouncer[2])])
        if options.idle:
            idle(targets, options.idle)
    finally:
        bench.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if options.csv:
        with open(options.csv, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["cell", "target", "tps", "p99_us", "cpu_us", "tps_to_pgbouncer", "tps_to_direct", "cpu_to_pgbouncer"])
            writer.writerows(table)


if __name__ == "__main__":
    main()
