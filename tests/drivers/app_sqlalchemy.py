"""An application that uses all of a session at once, by SQLAlchemy. Arguments: DSN, clients, rounds."""

import sys
import threading

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, func, insert, select, text


def use(engine, number, rounds):
    with engine.connect() as connection:
        channel = f"sqlalchemy_{number}"
        connection.execute(text(f"SET work_mem = '{3000 + number}kB'"))
        connection.execute(text("SELECT set_config('app.client', :name, false)"), {"name": channel})
        connection.execute(text(f"LISTEN {channel}"))
        connection.commit()
        for round_number in range(rounds):
            one_round(connection, number, channel)
            connection.execute(select(func.pg_notify(channel, str(round_number))))
            connection.commit()
            driver = connection.connection.driver_connection
            heard = list(driver.notifies(timeout=30, stop_after=1))
            assert [notify.payload for notify in heard] == [str(round_number)]
            connection.rollback()


def one_round(connection, number, channel):
    def value(statement):
        return connection.execute(statement).scalar_one()

    assert value(text("SHOW work_mem")) == f"{3000 + number}kB"
    assert value(select(func.current_setting("app.client"))) == channel
    for factor in range(3):
        assert value(text("SELECT :factor * 2").bindparams(factor=factor)) == factor * 2
    connection.execute(text("PREPARE twice (int) AS SELECT $1 * 2"))
    assert value(text("EXECUTE twice(21)")) == 42
    connection.execute(text("DEALLOCATE twice"))
    mine = Table("mine", MetaData(), Column("a", Integer), prefixes=["TEMPORARY"])
    mine.create(connection)
    connection.execute(insert(mine), [{"a": row} for row in range(number, number + 100)])
    assert value(select(func.sum(mine.c.a))) == sum(range(number, number + 100))
    connection.commit()
    assert value(select(func.count()).select_from(mine)) == 100
    mine.drop(connection)
    connection.commit()
    series = text(f"SELECT generate_series({number}, {number + 49})")
    rows = connection.execute(series, execution_options={"yield_per": 10})
    assert [row[0] for row in rows] == list(range(number, number + 50))
    connection.commit()
    key = number % 5
    connection.execute(select(func.pg_advisory_lock(key)))
    connection.commit()
    counters = Table("counters", MetaData(), Column("key", Integer), Column("value", Integer))
    before = value(select(counters.c.value).where(counters.c.key == key))
    connection.execute(counters.update().where(counters.c.key == key).values(value=before + 1))
    connection.commit()
    assert value(select(func.pg_advisory_unlock(key)))
    connection.commit()


def main():
    dsn, clients, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = create_engine(
        dsn.replace("postgres://", "postgresql+psycopg://"), pool_size=clients, pool_timeout=300
    )
    failures = []

    def run(number):
        try:
            use(engine, number, rounds)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"sqlalchemy: {len(failures)} of {clients} clients failed")
    print(f"sqlalchemy: {clients} clients, {rounds} rounds each")


main()
