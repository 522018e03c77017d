#!/usr/bin/env python3
"""What replicas behind pgweir are good for: `make show-failover`, `make show-reads`.

    benches/replicas.py failover [--fault stop|kill] [--promote now|wait] [--seconds 20] [--clients 16]
    benches/replicas.py reads [--seconds 5] [--rounds 3] [--clients 48]

Everything is started and stopped here: scratch servers, pgweir from target/release, and PgBouncer if it is installed.

failover: pgbench reads and single-statement writes, outside transactions, while the primary goes away and a replica is
promoted with pg_promote(). Fails if a statement failed through pgweir, or if an acknowledged write is missing or one is
there twice. (pgbench does not count what is under way when its time is up; such rows are more than it says.) PgBouncer does not look for a primary: it is pointed at the promoted server by RELOAD at the moment it takes
writes, as a failover manager's hook would, so no time to find out is counted against it. (Around a planned change,
PAUSE and RESUME spare PgBouncer's clients the errors.)

reads: the same reads through pgweir with the primary alone, and with two replicas, taking turns in one run. All servers
share one machine here, so a replica adds nothing by itself. What it adds is measured by giving each server what it would
have as a machine of its own: a fixed share of a processor (cgroups' cpu quota, as root), small enough for pgbench and
pgweir never to be short of theirs, and reads that cost the server some time; and besides by reads that only hold
connections, of which each server has the same number. Both fail below 1.6 times. Reads by key without any limit are
measured too, for what they show: there the machine is the limit, and replicas only cost.
"""
import argparse, atexit, pathlib, os, re, shutil, signal, statistics, subprocess, sys, threading, time

from scratch import PGWEIR, env, find, find_pgbouncer as pgbouncer, free_port, scratch, unprivileged

READ = "\\set id random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :id;\n"
# Every write has a name of its own, so that one that is there twice or missing shows.
WRITE = "\\set n :n + 1\nINSERT INTO written VALUES (:run, :client_id, :n);\n"
TWICE = "SELECT count(*) FROM (SELECT FROM written GROUP BY run, client, n HAVING count(*) > 1) AS s"
MISSING = "SELECT coalesce(sum(missing), 0) FROM (SELECT max(n) - count(DISTINCT n) AS missing FROM written GROUP BY run, client) AS s"


class Cluster:
    """A primary and its streaming replicas on loopback."""

    def __init__(self, bench, name, replicas):
        self.bench, self.name, self.servers = bench, name, []
        first = self.folder(0)
        subprocess.run([find("initdb"), "-D", first, "-A", "trust", "-U", "postgres", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=bench.folder, **unprivileged())
        self.run_server(0)
        for place in range(1, replicas + 1):
            command = [find("pg_basebackup"), "-D", self.folder(place), "-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-p", str(self.servers[0][0]), "-U", "postgres"]
            subprocess.run(command, check=True, cwd=bench.folder, **unprivileged())
            self.run_server(place)
        subprocess.run([find("pgbench"), "-i", "-q", "-s", "1", "postgres"], env=env(self.servers[0][0]), check=True, stderr=subprocess.DEVNULL)
        self.sql(0, "CREATE TABLE written (run int, client int, n int)")
        self.until("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn()", str(replicas))

    def folder(self, place):
        return self.bench.folder / f"{self.name}-{place}"

    def run_server(self, place):
        port = free_port()
        settings = ["fsync=off", "max_connections=300", f"unix_socket_directories={self.bench.folder}", "listen_addresses=127.0.0.1", "wal_keep_size=256MB"]
        command = [find("postgres"), "-D", self.folder(place), "-p", str(port)] + [part for setting in settings for part in ("-c", setting)]
        self.bench.start(f"{self.name}-{place}", command, port, cwd=self.bench.folder, **unprivileged())
        self.servers.append((port, self.bench.processes[-1]))
        while self.sql(place, "SELECT 1", check=False) != "1":
            time.sleep(0.05)

    def sql(self, place, text, check=True):
        done = subprocess.run([find("psql"), "-XAtqc", text, "postgres"], env=env(self.servers[place][0]), capture_output=True, text=True)
        if check and done.returncode:
            sys.exit(f"{text}: {done.stderr}")
        return done.stdout.strip()

    def until(self, text, value):
        deadline = time.time() + 30
        while self.sql(0, text) != value:
            if time.time() > deadline:
                sys.exit(f"waited too long for {text}")
            time.sleep(0.05)

    def fail_over(self, fault, promote):
        """The primary goes away and the replica takes its place. Returns when each had happened."""
        process = self.servers[0][1]
        gone = time.time()
        if fault == "kill":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGINT)  # pg_ctl stop -m fast
        process.wait(60)
        # With its default to wait, pg_promote's own snapshot may hold up the replay it waits for.
        self.sql(1, "SELECT pg_promote(false)" if promote == "now" else "SELECT pg_promote()")
        deadline = time.time() + 60
        while self.sql(1, "SELECT pg_is_in_recovery()") == "t":
            if time.time() > deadline:
                sys.exit("the replica was not promoted")
        return gone, time.time()


class Share:
    """A share of one processor for the processes of a server; `None` of them where the machine gives no quotas."""

    PERIOD = 20_000
    ROOTS = [pathlib.Path("/sys/fs/cgroup/cpu"), pathlib.Path("/sys/fs/cgroup")]

    @classmethod
    def of(cls, pid, name, part):
        quota = int(cls.PERIOD * part)
        for root in cls.ROOTS:
            group = root / f"pgweir-{os.getpid()}-{name}"
            try:
                if (root / "cgroup.subtree_control").exists():
                    (root / "cgroup.subtree_control").write_text("+cpu")
                elif not (root / "cpu.cfs_quota_us").exists():
                    continue
                group.mkdir()
                atexit.register(cls.remove, group)
                if (group / "cpu.max").exists():
                    (group / "cpu.max").write_text(f"{quota} {cls.PERIOD}")
                else:
                    (group / "cpu.cfs_period_us").write_text(str(cls.PERIOD))
                    (group / "cpu.cfs_quota_us").write_text(str(quota))
                children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for process in [str(pid), *children]:
                    (group / "cgroup.procs").write_text(process)
                return cls(group, quota)
            except OSError:
                continue
        return None

    def __init__(self, group, quota):
        self.group, self.quota = group, quota

    def lift(self):
        """The server has the whole machine again."""
        if (self.group / "cpu.max").exists():
            (self.group / "cpu.max").write_text("max")
        else:
            (self.group / "cpu.cfs_quota_us").write_text("-1")

    @staticmethod
    def remove(group):
        for _ in range(100):
            try:
                return group.rmdir()
            except OSError:
                time.sleep(0.05)


class Through:
    """A pooler in front of the cluster."""

    def __init__(self, bench, name, cluster):
        self.bench, self.name, self.cluster, self.port = bench, name, cluster, free_port()

    def start(self):
        if self.name == "pgweir":
            urls = [f"postgres://127.0.0.1:{port}" for port, _ in self.cluster.servers]
            command = [PGWEIR, "run", "--primary", urls[0], "--listen", f"127.0.0.1:{self.port}", "--http", "off", "--auth", "trust", "--pool-size", "20"]
            self.bench.start("pgweir", command + [part for url in urls[1:] for part in ("--replica", url)], self.port)
        else:
            (self.bench.folder / "users").write_text('"postgres" ""\n')
            self.point(0)
            copy = self.bench.folder / "pgbouncer"
            shutil.copy(pgbouncer(), copy)
            self.bench.start("pgbouncer", [copy, self.ini()], self.port, cwd=self.bench.folder, **unprivileged())

    def ini(self):
        return self.bench.folder / "pgbouncer.ini"

    def point(self, place):
        port = self.cluster.servers[place][0]
        self.ini().write_text(f"[databases]\npostgres = host=127.0.0.1 port={port}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\nunix_socket_dir=\nauth_type=trust\n"
                              f"auth_file={self.bench.folder}/users\nadmin_users=postgres\npool_mode=transaction\ndefault_pool_size=20\n")

    def moved(self):
        """The replica is the primary now. pgweir finds out by itself."""
        if self.name != "pgweir":
            self.point(1)
            subprocess.run([find("psql"), "-XAtqc", "RELOAD", "pgbouncer"], env=env(self.port), check=True, stdout=subprocess.DEVNULL)


class Load:
    """pgbench for so many seconds; begun again if all its clients have given up, as an application would connect again."""

    def __init__(self, bench, port, clients, seconds):
        self.bench, self.aborted, self.failed, self.times, self.counts, self.errors, self.runs = bench, 0, 0, [[], []], [0, 0], {}, 0
        self.until = time.time() + seconds
        self.thread = threading.Thread(target=self.run, args=(port, clients))
        self.thread.start()

    def run(self, port, clients):
        scripts = [self.bench.folder / "read.sql", self.bench.folder / "write.sql"]
        for path, text in zip(scripts, (READ, WRITE)):
            path.write_text(text)
        log, environment = self.bench.folder / "log", env(port)
        while (left := self.until - time.time()) > 0.5:
            self.runs += 1
            command = [find("pgbench"), "-n", "-c", str(clients), "-j", "2", "-T", str(round(left)), "-D", f"run={self.runs}", "-D", "n=0", "-f", f"{scripts[0]}@1", "-f", f"{scripts[1]}@1", "-l", f"--log-prefix={log}", "postgres"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
            self.aborted += len(re.findall(r"client \d+ .*aborted", done.stderr))
            for error in re.findall(r"(?:ERROR|FATAL):  (.*)", done.stderr):
                self.errors[error] = self.errors.get(error, 0) + 1
            self.failed += sum(map(int, re.findall(r"^number of failed transactions: (\d+)", done.stdout, re.M)))
            for file in self.bench.folder.glob("log.*"):
                for line in file.read_text().splitlines():
                    fields = line.split()
                    if fields[2] != "failed":
                        self.times[int(fields[3])].append(int(fields[4]) + int(fields[5]) / 1e6)
                        # pgbench's own counts by script are not exact with more than one thread.
                        self.counts[int(fields[3])] += 1
                file.unlink()
            time.sleep(0.05)

    def gap(self, place):
        times = sorted(self.times[place])
        return max((b - a for a, b in zip(times, times[1:])), default=0)


def fail_over_through(name, options, bench):
    cluster = Cluster(bench, name, 1)
    if options.fault == "kill":
        # What was acknowledged is to survive a primary that says nothing any more.
        cluster.sql(0, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        cluster.sql(0, "SELECT pg_reload_conf()")
    through = Through(bench, name, cluster)
    through.start()
    load = Load(bench, through.port, options.clients, options.seconds)
    time.sleep(options.seconds / 3)
    gone, promoted = cluster.fail_over(options.fault, options.promote)
    through.moved()
    load.thread.join()
    total, twice, missing = (int(cluster.sql(1, text)) for text in ("SELECT count(*) FROM written", TWICE, MISSING))
    reads, writes = load.counts
    print(f"{name:10} {reads} reads and {writes} writes answered; failed statements: {load.failed + load.aborted}"
          f"{' (each ends a client of pgbench)' if load.aborted else ''}; {total} rows, {twice} there twice, {missing} missing")
    print(f"{'':10} the primary was away for {promoted - gone:.2f} s; longest time without an answered write {load.gap(1):.2f} s, without an answered read {load.gap(0):.2f} s")
    for error, count in sorted(load.errors.items()):
        print(f"{'':10} {count} times: {error}")
    sys.stdout.flush()
    return load, writes, total, twice + missing


def failover(options, bench):
    print(f"{'PostgreSQL is stopped (fast)' if options.fault == 'stop' else 'All processes of the primary are killed'}, the replica is promoted; {options.clients} clients, {options.seconds} s")
    load, writes, total, wrong = fail_over_through("pgweir", options, bench)
    if pgbouncer():
        version = subprocess.run([pgbouncer(), "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        print(f"beside {version}")
        fail_over_through("pgbouncer", options, bench)
    else:
        print("PgBouncer is not installed: pgweir alone")
    unknown = load.failed + load.aborted
    if options.fault == "stop" and unknown:
        sys.exit("statements failed")
    if wrong or not writes <= total <= writes + unknown + options.clients:
        sys.exit("the rows are not what was acknowledged")


RANGE = "\\set id random(1, 90000)\nSELECT sum(abalance) FROM pgbench_accounts WHERE aid BETWEEN :id AND :id + 5000;\n"
# A function of its own would do too; pg_sleep says what it is.
WAIT = "\\set id random(1, 100000)\n/* pgweir: replica */ SELECT abalance FROM pgbench_accounts, (SELECT pg_sleep(0.2) OFFSET 0) AS s WHERE aid = :id;\n"
PART = 0.2
GAIN_MIN = 1.6


def compare(options, bench, ports, title, text):
    """Reads a second through the primary alone and with two replicas: medians of rounds that take turns."""
    script = bench.folder / "reads.sql"
    script.write_text(text)
    rates = {name: [] for name in ports}
    # The first round opens the connections, and does not count.
    for round in range(options.rounds + 1):
        for name, port in ports.items():
            command = [find("pgbench"), "-n", "-M", "prepared", "-c", str(options.clients), "-T", str(options.seconds), "-f", script, "postgres"]
            done = subprocess.run(command, env=env(port), capture_output=True, text=True, start_new_session=True)
            rate = re.search(r"tps = ([\d.]+)", done.stdout)
            if not rate or "aborted" in done.stderr:
                sys.exit(done.stderr)
            if round > 0:
                rates[name].append(float(rate[1]))
    alone, shared = (statistics.median(rates[name]) for name in ports)
    print(f"{title}\n  primary alone {alone:.0f}/s, with two replicas {shared:.0f}/s: {shared / alone:.2f} times", flush=True)
    return shared / alone


def reads(options, bench):
    cluster = Cluster(bench, "servers", 2)
    ports = {}
    for name, count in (("primary alone", 1), ("with two replicas", 3)):
        ports[name] = free_port()
        urls = [f"postgres://127.0.0.1:{port}" for port, _ in cluster.servers[:count]]
        command = [PGWEIR, "run", "--primary", urls[0], "--listen", f"127.0.0.1:{ports[name]}", "--http", "off", "--auth", "trust", "--pool-size", "8"]
        bench.start(name.replace(" ", "-"), command + [part for url in urls[1:] for part in ("--replica", url)], ports[name])
    time.sleep(2)
    gains = []
    shares = [Share.of(process.pid, place, PART) for place, (_, process) in enumerate(cluster.servers)]
    if all(shares):
        gains.append(compare(options, bench, ports, f"sums of 5,000 rows, {PART:.0%} of a processor for each server", RANGE))
    else:
        print("no cpu quotas here (they need root and cgroups' cpu controller): reads that cost the server time are not measured")
    for share in filter(None, shares):
        share.lift()
    gains.append(compare(options, bench, ports, "reads that hold a connection for 200 ms (pg_sleep), 8 connections a server", WAIT))
    compare(options, bench, ports, f"reads by key, no limits: this machine's {os.cpu_count()} processors are the limit, and only the primary alone has lanes", READ)
    print(f"wanted: at least {GAIN_MIN} times, where what is limited is each server's own")
    if min(gains) < GAIN_MIN:
        sys.exit("two replicas should answer nearly twice as much as the primary alone")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["failover", "reads"])
    parser.add_argument("--fault", choices=["stop", "kill"], default="stop")
    parser.add_argument("--promote", choices=["now", "wait"], default="now")
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int)
    options = parser.parse_args()
    is_reads = options.what == "reads"
    options.seconds = options.seconds or (5 if is_reads else 20)
    options.clients = options.clients or (48 if is_reads else 16)
    with scratch() as bench:
        (reads if is_reads else failover)(options, bench)


if __name__ == "__main__":
    main()
