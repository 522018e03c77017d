#!/usr/bin/env python3
"""Large results through pgweir and PgBouncer: speed, CPU for each gigabyte, memory: `make show-large`.

    benches/large.py [--megabytes 1024] [--rounds 3] [--tls]

The same rows by SELECT and by COPY, taking turns. Then clients that read a SELECT slowly: what pgweir holds for them.
Exits with an error if pgweir is slower than PgBouncer, takes more CPU, grows with the size of the result, or holds more
than one bounded buffer for a client that reads slowly.
"""
import argparse, socket, ssl, sys, threading, time

import scratch
from scratch import query, ratio, startup_packet, until_ready

ROW = 1000
# Of noise, on a machine that does other things.
TOLERANCE = 0.05
# Growth during a large result, and for each slow client: buffers of a fixed size, not the result.
FLAT_KB, SLOW_KB = 2048, 512


def connect(port, tls=False, receive_buffer=None):
    s = socket.socket()
    if receive_buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    s.connect(("127.0.0.1", port))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        s.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        assert s.recv(1) == b"S"
        s = context.wrap_socket(s)
    s.sendall(startup_packet())
    until_ready(s)
    return s


def fetch(s, text):
    """Runs `text` and reads its whole answer; bytes."""
    s.sendall(query(text))
    buffer = bytearray(1 << 20)
    view, total, tail = memoryview(buffer), 0, b""
    while True:
        count = s.recv_into(view)
        if not count:
            sys.exit("connection closed")
        total += count
        tail = (tail + bytes(view[max(0, count - 6):count]))[-6:]
        if tail == b"Z\0\0\0\x05I":
            return total


class Watch:
    """The most memory a process has while something runs, above what it had before."""

    def __init__(self, pid):
        self.pid, self.most, self.ends = pid, 0, threading.Event()
        self.before = scratch.memory_kb(pid) if pid else 0

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while self.pid and not self.ends.wait(0.02):
            self.most = max(self.most, scratch.memory_kb(self.pid))

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()

    def grown(self):
        return max(0, self.most - self.before)


def run(target, kind, text, tls):
    """Seconds, CPU seconds for each gigabyte, and kB of memory that a result takes."""
    s = connect(target.port, tls)
    fetch(s, "select 1")
    cpu = target.cpu()
    with Watch(target.pid) as watch:
        start = time.perf_counter()
        count = fetch(s, text)
        took = time.perf_counter() - start
    s.close()
    gigabytes = count / 2**30
    return took / gigabytes, (target.cpu() - cpu) / gigabytes, watch.grown()


def slow(target, text, clients, seconds=3):
    """kB held for each of `clients` that read a large result at 20 kB/s, while each has a server connection."""
    sockets = [connect(target.port, receive_buffer=65536) for _ in range(clients)]
    for s in sockets:
        fetch(s, "select 1")
    with Watch(target.pid) as watch:
        for s in sockets:
            s.sendall(query(text))
        end = time.time() + seconds
        while time.time() < end:
            for s in sockets:
                s.recv(2048)
            time.sleep(0.1)
    for s in sockets:
        s.close()
    return watch.grown() / clients


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tls", action="store_true", help="TLS on both sides")
    options = parser.parse_args()
    rows = options.megabytes * 2**20 // ROW
    select = f"SELECT repeat('x', {ROW - 20}) FROM generate_series(1, {rows})"
    texts = {"SELECT": select, "COPY": f"COPY ({select}) TO STDOUT"}
    misses = []

    def check(what, value, most):
        if value > most:
            misses.append(f"{what}: {value:.2f}, at most {most:.2f}")

    with scratch.scratch() as folder:
        folder.postgres(scale=0, tls=options.tls)
        targets = [target for target in (folder.direct, folder.pgbouncer(tls=options.tls), folder.pgweir(tls=options.tls)) if target]
        for kind, text in texts.items():
            measured = {target.name: [] for target in targets}
            for turn in range(options.rounds):
                for target in targets[turn % len(targets):] + targets[:turn % len(targets)]:
                    measured[target.name].append(run(target, kind, text, options.tls))
            medians = {name: scratch.medians(rows) for name, rows in measured.items()}
            bouncer = medians.get("pgbouncer")
            for name, (took, cpu, grown) in medians.items():
                beside = f" ({ratio(took, bouncer[0])} of PgBouncer's)" if bouncer else ""
                cpus = f"  cpu {cpu:5.2f} s ({ratio(cpu, bouncer[1] if bouncer else 0)})  memory +{grown:.0f} kB" if name != "direct" else ""
                print(f"{kind:8} {name:12} {took:5.2f} s for each GB{beside}{cpus}", flush=True)
            ours = medians["pgweir"]
            if bouncer:
                check(f"{kind}: time to PgBouncer's", ours[0] / bouncer[0], 1 + TOLERANCE)
                check(f"{kind}: CPU to PgBouncer's", ours[1] / bouncer[1], 1 + TOLERANCE)
            check(f"{kind}: kB of growth", ours[2], FLAT_KB)
        if not options.tls:
            for target in targets[1:]:
                held = slow(target, select, 20)
                print(f"slow     {target.name:12} {held:5.0f} kB for each of 20 clients that read slowly", flush=True)
                if target.name == "pgweir":
                    check("kB for each slow client", held, SLOW_KB)
    if misses:
        sys.exit("not reached:\n" + "\n".join(misses))


if __name__ == "__main__":
    main()
