"""What the measuring scripts share: a scratch PostgreSQL, the poolers in front of it, load, and what processes cost.

Every process gets a session of its own, because Linux shares the processor by session (sched_autogroup): a pooler in
the session of its load generator would be measured with half of it.
"""
import contextlib, os, pathlib, pwd, re, resource, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PGWEIR = pathlib.Path(os.environ.get("PGWEIR") or ROOT / "target/release/pgweir").resolve()


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


def find_pgbouncer():
    """The program that PGBOUNCER names, the one that benches/newer_pgbouncer.sh has made, or the machine's own."""
    made = ROOT / "target/pgbouncer/pgbouncer"
    return os.environ.get("PGBOUNCER") or (str(made) if made.exists() else None) or shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def unprivileged():
    """PostgreSQL and PgBouncer refuse to run as root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Target:
    """Something that speaks PostgreSQL's protocol on a port; `pid` is `None` where there is no pooler."""

    def __init__(self, name, port, pid=None, has_prepared=True):
        self.name, self.port, self.pid, self.has_prepared = name, port, pid, has_prepared

    def cpu(self):
        return cpu_seconds(self.pid) if self.pid else 0


class Scratch:
    """Servers and poolers in a folder of their own, stopped and removed at the end."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        # The PgBouncer that was spoken of.
        self.beside = None

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

    def postgres(self, scale=10, tls=False):
        self.port, data = free_port(), self.folder / "data"
        subprocess.run([find("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **unprivileged())
        settings = ["fsync=off", "max_connections=700", "shared_buffers=512MB", "max_wal_size=4GB", f"unix_socket_directories={self.folder}", "listen_addresses=127.0.0.1"]
        if tls:
            certificate, key = self.certificate()
            settings += ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}"]
        command = [find("postgres"), "-D", data, "-p", str(self.port)]
        pid = self.start("postgres", command + [part for setting in settings for part in ("-c", setting)], self.port, cwd=self.folder, **unprivileged())
        if scale:
            subprocess.run([find("pgbench"), "-i", "-q", "-s", str(scale), "postgres"], env=env(self.port), check=True, stderr=subprocess.DEVNULL)
        self.direct = Target("direct", self.port)
        return pid

    def certificate(self):
        """A certificate for TLS on all sides, and its key."""
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        if not key.exists():
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                            "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)
            key.chmod(0o600)
            if os.getuid() == 0:
                user = pwd.getpwnam("postgres")
                os.chown(key, user.pw_uid, user.pw_gid)
        return certificate, key

    def pgbouncer(self, pool_size=20, tls=False, before=()):
        """PgBouncer, or `None` if there is none on this machine; `before` stands in front of its command line."""
        program = find_pgbouncer()
        if not program:
            print("PgBouncer is not installed: pgweir is measured without it", flush=True)
            return None
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        if version != self.beside:
            print(f"beside {version}", flush=True)
            self.beside = version
        major, minor = map(int, re.search(r"(\d+)\.(\d+)", version).groups())
        port = free_port()
        ini, copy = self.folder / f"pgbouncer-{port}.ini", self.folder / f"pgbouncer-{port}"
        has_prepared = (major, minor) >= (1, 21)
        lines = ["[databases]", f"* = host=127.0.0.1 port={self.port} user=postgres", "[pgbouncer]", "listen_addr=127.0.0.1", f"listen_port={port}", "unix_socket_dir=",
                 "auth_type=any", "pool_mode=transaction", f"default_pool_size={pool_size}", "max_client_conn=20000", "ignore_startup_parameters=extra_float_digits",
                 "log_connections=0", "log_disconnections=0"] + ["max_prepared_statements=200"] * has_prepared
        if tls:
            certificate, key = self.certificate()
            lines += ["client_tls_sslmode=require", f"client_tls_cert_file={certificate}", f"client_tls_key_file={key}", "server_tls_sslmode=require"]
        ini.write_text("\n".join(lines) + "\n")
        shutil.copy(program, copy)
        return Target("pgbouncer", port, self.start(copy.name, [*before, copy, ini], port, cwd=self.folder, **unprivileged()), has_prepared)

    def pgweir(self, lanes=2, pool_size=20, tls=False, name=None, before=(), settings=()):
        """pgweir; `before` stands in front of its command line, such as a tracer's."""
        if not PGWEIR.exists():
            sys.exit(f"{PGWEIR} is missing: make build, or make release")
        port, name = free_port(), name or ("pgweir" if lanes else "pgweir, no lanes")
        command = [*before, PGWEIR, "run", "--primary", f"postgres://127.0.0.1:{self.port}", "--listen", f"127.0.0.1:{port}", "--http", "off", "--auth", "trust",
                   "--pool-size", str(pool_size)]
        settings = [f"pool.lanes={lanes}", "general.max_client_conn=20000", "log.log_connections=false", "log.log_disconnections=false", *settings]
        if tls:
            certificate, key = self.certificate()
            settings += ["tls.client.sslmode=require", f"tls.client.cert_file={certificate}", f"tls.client.key_file={key}", "tls.server.sslmode=require"]
        else:
            settings.append("tls.server.sslmode=disable")
        command += [part for setting in settings for part in ("--set", setting)]
        return Target(name, port, self.start(f'{re.sub(r"[^a-z0-9]+", "-", name)}-{port}', command, port))

    def stop(self, pid):
        """Stops one of them and waits for its end; its exit code, which is negative if it had to be killed."""
        process = next(process for process in self.processes if process.pid == pid)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)
        return process.returncode

    def stop_all(self):
        while self.processes:
            self.stop(self.processes[-1].pid)


@contextlib.contextmanager
def scratch():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pgweir-bench-"))
    folder.chmod(0o777)
    all_of_it = Scratch(folder)
    try:
        yield all_of_it
    finally:
        all_of_it.stop_all()
        shutil.rmtree(folder, ignore_errors=True)


def env(port, sslmode="disable"):
    return dict(os.environ, PGHOST="127.0.0.1", PGPORT=str(port), PGUSER="postgres", PGDATABASE="postgres", PGSSLMODE=sslmode)


def cpu_seconds(pid):
    """Processor time of a process, its own and the kernel's on its behalf, to the nanosecond (/proc has hundredths)."""
    # What clock_getcpuclockid(3) makes of a process id.
    return time.clock_gettime(~pid << 3 | 2)


def memory_kb(pid):
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:"))


def raise_open_files():
    """How many files may be open from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Load:
    """What a run of pgbench came to: transactions a second, their number, and latencies in microseconds."""

    def __init__(self, tps, count, latencies):
        self.tps, self.count = tps, count
        self.p50, self.p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def pgbench(scratch, target, mode, clients, seconds=None, transactions=None, script=None, sslmode="disable", sample=0.2):
    """Runs pgbench against `target`; `None` if it failed. Mode `connect` is simple with a connection for each transaction.
    Of the latencies a part, `sample`, is taken."""
    prefix = scratch.folder / "latency"
    threads = "1" if clients <= 200 else "2"
    command = [find("pgbench"), "-n", "-M", "simple" if mode == "connect" else mode, "-c", str(clients), "-j", threads]
    command += ["-f", script] if script else ["-S"]
    command += ["-T", str(seconds), "-l", f"--sampling-rate={sample}", f"--log-prefix={prefix}"] if seconds else ["-t", str(transactions)]
    command += ["-C"] if mode == "connect" else []
    out = subprocess.run(command + ["postgres"], env=env(target.port, sslmode), capture_output=True, text=True, start_new_session=True, cwd=scratch.folder)
    tps = re.search(r"tps = ([\d.]+)", out.stdout)
    latencies = []
    for file in scratch.folder.glob("latency.*"):
        latencies += [int(line.split()[2]) for line in file.read_text().splitlines()]
        file.unlink()
    if not tps or "aborted" in out.stderr:
        print(f"{target.name}, {mode}, {clients} clients: {out.stderr.strip()[-300:]}", flush=True)
        return None
    return Load(float(tps[1]), int(re.search(r"actually processed: (\d+)", out.stdout)[1]), sorted(latencies))


def busy_cpu(scratch, target, clients, seconds):
    """CPU seconds of a transaction (prepared, `-S`) once all clients are connected and have prepared: pgbench's own time has
    both in it, and with thousands of clients they are most of it. `None` if it failed."""
    command = [find("pgbench"), "-n", "-S", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds), "-P", "1"]
    busy = []  # Transactions a second and CPU so far, of each second.
    with subprocess.Popen(command + ["postgres"], env=env(target.port, "disable"), stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=scratch.folder) as load:
        for line in load.stderr:
            if found := re.match(r"progress: [\d.]+ s, ([\d.]+) tps", line):
                busy.append((float(found[1]), target.cpu()))
    # The seconds at either end have connecting in them, preparing, and leaving.
    middle = busy[len(busy) // 2 - 1:-1]
    if load.returncode or len(middle) < 2:
        return None
    transactions = sum(tps for tps, _ in middle[1:])
    return (middle[-1][1] - middle[0][1]) / transactions if transactions else None


def medians(rows):
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rows)]


def ratio(a, b):
    return f"{a / b:.2f}" if a and b else "-"


def startup_packet(user="postgres", database="postgres"):
    body = struct.pack(">I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack(">I", len(body) + 4) + body


def until_ready(s):
    """Reads to the end of an answer outside a transaction; its bytes."""
    data = b""
    while not data.endswith(b"Z\0\0\0\x05I"):
        piece = s.recv(65536)
        if not piece:
            sys.exit(f"connection closed: {data!r}")
        data += piece
    return data


def query(text):
    return b"Q" + struct.pack(">I", len(text) + 5) + text.encode() + b"\0"
