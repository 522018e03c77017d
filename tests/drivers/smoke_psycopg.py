"""What an application does with psycopg 3, checked. Usage: smoke_psycopg.py DSN"""

import sys
import threading
import time

import psycopg
from psycopg import errors

CONNECTIONS = 20


def transactions(connection):
    with connection.transaction():
        connection.execute("INSERT INTO accounts VALUES (1, 100), (2, 0)")
    try:
        with connection.transaction():
            connection.execute("UPDATE accounts SET amount = amount - 50 WHERE id = 1")
            raise KeyError("roll back")
    except KeyError:
        pass
    rows = connection.execute("SELECT id, amount FROM accounts ORDER BY id").fetchall()
    assert rows == [(1, 100), (2, 0)], rows


def prepared_statements(connection):
    # Prepared from the first execution on, instead of from the sixth.
    for value in range(10):
        row = connection.execute("SELECT %s::int + 1", (value,), prepare=True).fetchone()
        assert row == (value + 1,), row


def copies(connection):
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE copied (id int, label text)")
        with cursor.copy("COPY copied FROM STDIN") as copy:
            for number in range(10_000):
                copy.write_row((number, f"label {number}"))
        assert cursor.rowcount == 10_000, cursor.rowcount
        with cursor.copy("COPY (SELECT * FROM copied ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "text"])
            rows = list(copy.rows())
        assert len(rows) == 10_000 and rows[-1] == (9999, "label 9999"), rows[-1]


def server_side_cursor(connection):
    with connection.transaction(), connection.cursor(name="walk") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT * FROM generate_series(1, 1000)")
        assert sum(row[0] for row in cursor) == 500_500


def failures(connection):
    try:
        connection.execute("SELECT 1/0")
        raise AssertionError("a division by zero passed")
    except errors.DivisionByZero:
        connection.rollback()
    try:
        with connection.transaction():
            connection.execute("INSERT INTO accounts VALUES (1, 1)")
        raise AssertionError("a duplicate key passed")
    except errors.UniqueViolation as error:
        assert error.diag.constraint_name == "accounts_pkey", error.diag.constraint_name
    assert connection.execute("SELECT 1").fetchone() == (1,)


def cancel(connection, observer):
    def cancel_when_it_sleeps():
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(61)%' AND wait_event = 'PgSleep'"
        while observer.execute(query).fetchone() == (0,):
            time.sleep(0.01)
        connection.cancel()

    canceller = threading.Thread(target=cancel_when_it_sleeps)
    canceller.start()
    try:
        connection.execute("SELECT pg_sleep(61)")
        raise AssertionError("a cancelled statement ended well")
    except errors.QueryCanceled:
        connection.rollback()
    canceller.join()


def pipeline(connection):
    with connection.pipeline(), connection.cursor() as cursor:
        cursors = [connection.execute("SELECT %s::int", (number,)) for number in range(50)]
        cursor.execute("SELECT 'last'")
        assert [c.fetchone() for c in cursors] == [(number,) for number in range(50)]
        assert cursor.fetchone() == ("last",)
    try:
        with connection.pipeline() as batch:
            connection.execute("SELECT 1/0")
            connection.execute("SELECT 1")
            batch.sync()
        raise AssertionError("a division by zero passed in a pipeline")
    except errors.DivisionByZero:
        connection.rollback()
    assert connection.execute("SELECT 2").fetchone() == (2,)


def notifications(dsn, connection):
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN news")
        connection.execute("SELECT pg_notify('news', 'hello')")
        connection.commit()
        found = next(listener.notifies(timeout=30, stop_after=1))
        assert (found.channel, found.payload) == ("news", "hello"), found


def many_connections(dsn):
    failed = []

    def work(number):
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for step in range(20):
                    token = f"{number}:{step}"
                    answer = connection.execute("SELECT %s::text", (token,)).fetchone()
                    assert answer == (token,), (answer, token)
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def main(dsn):
    with psycopg.connect(dsn) as connection, psycopg.connect(dsn, autocommit=True) as observer:
        connection.execute("CREATE TABLE accounts (id int PRIMARY KEY, amount int NOT NULL)")
        connection.commit()
        transactions(connection)
        prepared_statements(connection)
        copies(connection)
        server_side_cursor(connection)
        connection.commit()
        failures(connection)
        cancel(connection, observer)
        pipeline(connection)
        connection.commit()
        notifications(dsn, connection)
    many_connections(dsn)
    print(f"psycopg {psycopg.__version__}: all passed, {CONNECTIONS} connections at once")


main(sys.argv[1])
