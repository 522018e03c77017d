"""A psycopg application through a failover. Usage: failover_psycopg.py DSN

Threads write outside transactions, and in transactions that they run again when they are told to. Prints `running` once
all have written, goes on until a line comes in, then until all have written more, and checks what is there. Sessions that
rest meanwhile go on with their settings and prepared statements, on the connections that they had.
"""

import queue
import sys
import threading
import time

import psycopg

WORKERS = 4
MORE = 20


class Pool:
    """As simple as a pool gets: connections that broke are not taken back."""

    def __init__(self, dsn):
        self.dsn, self.idle = dsn, queue.SimpleQueue()

    def take(self):
        try:
            return self.idle.get_nowait()
        except queue.Empty:
            return psycopg.connect(self.dsn, autocommit=True)

    def give(self, connection):
        if connection.closed or connection.broken:
            connection.close()
        else:
            self.idle.put(connection)


class Worker(threading.Thread):
    def __init__(self, pool, name):
        super().__init__()
        self.pool, self.key, self.done, self.again, self.failed, self.ended = pool, name, 0, 0, None, False

    def run(self):
        try:
            while not self.ended:
                self.step(self.done + 1)
                self.done += 1
        except Exception as error:  # noqa: BLE001 - told by the main thread
            self.failed = error


class Outside(Worker):
    """No error at all is to reach it."""

    def step(self, number):
        connection = self.pool.take()
        connection.execute("INSERT INTO written VALUES (%s, %s)", (self.key, number))
        row = connection.execute("SELECT max(n) FROM written WHERE who = %s", (self.key,)).fetchone()
        assert row == (number,), (row, number)
        self.pool.give(connection)


class Inside(Worker):
    """Runs a transaction again whose session ends, as the error says it may."""

    def step(self, number):
        while True:
            connection = self.pool.take()
            try:
                with connection.transaction():
                    found = connection.execute("SELECT count(*) FROM written WHERE who = %s AND n = %s", (self.key, number)).fetchone()
                    # An earlier attempt whose COMMIT was not answered.
                    if found == (0,):
                        connection.execute("INSERT INTO written VALUES (%s, %s)", (self.key, number))
                return
            except psycopg.OperationalError as error:
                assert error.sqlstate in ("57P01", "08006", "08007", None), error.sqlstate
                self.again += 1
            finally:
                self.pool.give(connection)


def rest(dsn, place):
    """A session with something of its own, that is then left alone."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute(f"SET work_mem = '{place + 1}MB'")
    resume(connection, place, 0)
    return connection


def resume(connection, place, before):
    key = f"resting {place}"
    row = connection.execute("SELECT count(*), current_setting('work_mem') FROM written WHERE who = %s", (key,), prepare=True).fetchone()
    assert row == (before, f"{place + 1}MB"), row
    connection.execute("INSERT INTO written VALUES (%s, %s)", (key, before + 1), prepare=True)


def until(workers, count):
    goals = [worker.done + count for worker in workers]
    deadline = time.monotonic() + 60
    while not all(worker.done >= goal for worker, goal in zip(workers, goals)):
        for worker in workers:
            if worker.failed:
                raise worker.failed
        assert time.monotonic() < deadline, [worker.done for worker in workers]
        time.sleep(0.01)


def main(dsn):
    pool = Pool(dsn)
    resting = [rest(dsn, place) for place in range(WORKERS)]
    workers = [kind(pool, f"{kind.__name__} {place}") for place in range(WORKERS) for kind in (Outside, Inside)]
    for worker in workers:
        worker.start()
    until(workers, MORE)
    print("running", flush=True)
    sys.stdin.readline()
    until(workers, MORE)
    for worker in workers:
        worker.ended = True
    for worker in workers:
        worker.join()
        if worker.failed:
            raise worker.failed
    for place, connection in enumerate(resting):
        resume(connection, place, 1)
    connection = pool.take()
    for worker in workers:
        row = connection.execute("SELECT count(*), count(DISTINCT n), max(n) FROM written WHERE who = %s", (worker.key,)).fetchone()
        assert row == (worker.done,) * 3, (worker.key, row, worker.done)
    again = sum(worker.again for worker in workers)
    print(f"psycopg {psycopg.__version__}: {sum(worker.done for worker in workers)} writes, 0 errors outside transactions, {again} transactions run again, {len(resting)} sessions that rested went on")


main(sys.argv[1])
