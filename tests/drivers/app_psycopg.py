"""An application that uses all of a session at once, by psycopg. Arguments: DSN, clients, rounds."""

import sys
import threading

import psycopg


def use(dsn, number, rounds):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.prepare_threshold = 1
        channel = f"psycopg_{number}"
        connection.execute(f"SET work_mem = '{1100 + number}kB'")
        connection.execute("SELECT set_config('app.client', %s, false)", (channel,))
        connection.execute(f"LISTEN {channel}")
        for round_number in range(rounds):
            one_round(connection, number, channel, round_number)
        connection.execute("UNLISTEN *")


def one_round(connection, number, channel, round_number):
    def value(text, parameters=()):
        return connection.execute(text, parameters).fetchone()[0]

    assert value("SHOW work_mem") == f"{1100 + number}kB"
    assert value("SELECT current_setting('app.client')") == channel
    for factor in range(3):
        assert value("SELECT %s::int * 2", (factor,)) == factor * 2
    connection.execute("PREPARE twice (int) AS SELECT $1 * 2, current_setting('app.client')", prepare=False)
    assert connection.execute("EXECUTE twice(21)", prepare=False).fetchone() == (42, channel)
    connection.execute("DEALLOCATE twice", prepare=False)
    connection.execute("CREATE TEMP TABLE mine (a int)")
    with connection.cursor() as cursor, cursor.copy("COPY mine FROM STDIN") as copy:
        for row in range(number, number + 100):
            copy.write_row((row,))
    assert value("SELECT sum(a) FROM mine") == sum(range(number, number + 100))
    connection.execute("DROP TABLE mine")
    with connection.transaction(), connection.cursor(name="rows") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT generate_series(%s::int, %s::int)", (number, number + 49))
        assert [row[0] for row in cursor] == list(range(number, number + 50))
    with connection.cursor(name="held", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 20)")
        assert len(cursor.fetchmany(5)) == 5
        assert value("SELECT current_setting('app.client')") == channel
        assert len(cursor.fetchall()) == 15
    key = number % 5
    connection.execute("SELECT pg_advisory_lock(%s)", (key,))
    before = value("SELECT value FROM counters WHERE key = %s", (key,))
    connection.execute("UPDATE counters SET value = %s WHERE key = %s", (before + 1, key))
    assert value("SELECT pg_advisory_unlock(%s)", (key,))
    connection.execute("SELECT pg_notify(%s, %s)", (channel, str(round_number)))
    heard = list(connection.notifies(timeout=30, stop_after=1))
    assert [notify.payload for notify in heard] == [str(round_number)]


def main():
    dsn, clients, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    failures = []

    def run(number):
        try:
            use(dsn, number, rounds)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"psycopg: {len(failures)} of {clients} clients failed")
    print(f"psycopg: {clients} clients, {rounds} rounds each")


main()
