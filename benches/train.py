#!/usr/bin/env python3
"""What pgweir's release build is optimised for: run by benches/release.sh on a program that writes down what it does.

    PGWEIR=PROGRAM benches/train.py

What is never run here is taken by the compiler to be rare, and is made small instead of fast. So everything that clients
do often is run: all three protocol modes, with lanes and without, transactions that write, pipelines, statements by the
thousand, connections, TLS, COPY, large results, both kinds of runtime, and the demo's load with its replicas.
"""
import os, pathlib, signal, subprocess, sys, time, urllib.request

import scratch

PIPELINE = "\\startpipeline\n" + "\\set aid random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n" * 5 + "\\endpipeline\n"
DISTINCT = "\\set n random(1, 5000)\nSELECT abalance AS a_:n FROM pgbench_accounts WHERE aid = :n;\n"
TPCB = """\\set aid random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""
SESSION = "SET application_name = 'train';\nSELECT abalance FROM pgbench_accounts WHERE aid = 1;\nSHOW search_path;\nRESET application_name;\n"
# Mode, clients, transactions of each, script.
READS = [("simple", 1, 8000, None), ("simple", 16, 600, None), ("prepared", 1, 4000, None), ("prepared", 16, 600, None), ("extended", 4, 800, None)]
LANES = [("simple", 64, 200, None), ("prepared", 64, 300, None), ("prepared", 300, 50, None)]
REST = [("connect", 8, 800, None), ("simple", 4, 400, TPCB), ("prepared", 4, 400, TPCB), ("extended", 4, 200, TPCB), ("extended", 4, 300, PIPELINE), ("prepared", 4, 300, PIPELINE),
        ("simple", 4, 1500, DISTINCT), ("simple", 4, 200, SESSION), ("extended", 4, 200, SESSION)]
SERVE_SECONDS = 10


def work(bench, target, cells, sslmode="disable"):
    for number, (mode, clients, transactions, text) in enumerate(cells):
        script = bench.folder / f"script-{number}"
        script.write_text(text or "")
        if not scratch.pgbench(bench, target, mode, clients, transactions=transactions, script=script if text else None, sslmode=sslmode):
            sys.exit("pgbench failed")


def large(target, folder, sslmode="disable"):
    """Results and COPY of some megabytes, both ways; and errors."""
    copied = folder / "copied"
    texts = ["SELECT i, repeat('x', 200) FROM generate_series(1, 100000) AS i", f"\\copy pgbench_accounts TO {copied}",
             "CREATE TEMP TABLE kept (LIKE pgbench_accounts)", f"\\copy kept FROM {copied}"]
    psql(target, sslmode, texts, check=True)
    psql(target, sslmode, ["SELECT 1 / 0", "SELECT"], check=False)


def psql(target, sslmode, texts, check):
    commands = [part for text in texts for part in ("-c", text)]
    command = [scratch.find("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-o", os.devnull, *commands, "postgres"]
    subprocess.run(command, env=scratch.env(target.port, sslmode), check=check, stderr=None if check else subprocess.DEVNULL)


def demo(folder):
    """The demo serves its own load: tables of an exchange, a primary, and two replicas."""
    listen, http = scratch.free_port(), scratch.free_port()
    command = [scratch.PGWEIR, "demo", "--listen", f"127.0.0.1:{listen}", "--http", f"127.0.0.1:{http}"]
    with open(folder / "demo.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        until_it_serves(process, http)
        # For how long is what is asked for: it is no wait for anything.
        time.sleep(SERVE_SECONDS)
        process.send_signal(signal.SIGINT)
        ended_well(process.wait(60))
    finally:
        # Its servers have a guardian that stops them.
        process.kill()
        process.wait()


def ended_well(code):
    """What a process did is written down when it ends by itself."""
    if code:
        sys.exit(f"pgweir ended with {code}")


def until_it_serves(process, http):
    deadline = time.time() + 120
    # Nothing that the environment says about proxies is about it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(f"http://127.0.0.1:{http}/ready", timeout=2).close()
            return
        except OSError:
            if process.poll() is not None or time.time() > deadline:
                sys.exit("the demo did not start")
            time.sleep(0.1)


def main():
    with scratch.scratch() as bench:
        bench.postgres(1, tls=True)
        for target, cells, sslmode in [
            (bench.pgweir(2), READS + LANES + REST, "disable"),
            (bench.pgweir(0, settings=["general.workers=2"]), READS + REST, "disable"),
            (bench.pgweir(2, settings=["general.workers=2"]), READS + LANES, "disable"),
            (bench.pgweir(2, tls=True), READS[:4] + REST[:3], "require"),
        ]:
            work(bench, target, cells, sslmode)
            large(target, bench.folder, sslmode)
            ended_well(bench.stop(target.pid))
        demo(bench.folder)


if __name__ == "__main__":
    main()
