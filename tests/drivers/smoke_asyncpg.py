"""What an application does with asyncpg, checked. Usage: smoke_asyncpg.py DSN"""

import asyncio
import sys

import asyncpg

CONNECTIONS = 20
LIMIT = 30


async def transactions(connection):
    async with connection.transaction():
        await connection.executemany("INSERT INTO ledger VALUES ($1, $2)", [(1, 100), (2, 0)])
    try:
        async with connection.transaction():
            await connection.execute("UPDATE ledger SET amount = amount - 50 WHERE id = $1", 1)
            async with connection.transaction():
                await connection.execute("UPDATE ledger SET amount = amount - 1 WHERE id = $1", 2)
            raise KeyError("roll back")
    except KeyError:
        pass
    rows = await connection.fetch("SELECT id, amount FROM ledger ORDER BY id")
    assert [tuple(row) for row in rows] == [(1, 100), (2, 0)], rows


async def prepared_statements(connection):
    statement = await connection.prepare("SELECT $1::int + 1")
    for value in range(10):
        assert await statement.fetchval(value) == value + 1


async def copies(connection):
    await connection.execute("CREATE TABLE copied_async (id int, label text)")
    records = [(number, f"label {number}") for number in range(10_000)]
    status = await connection.copy_records_to_table("copied_async", records=records)
    assert status == "COPY 10000", status
    chunks = []

    async def keep(chunk):
        chunks.append(chunk)

    status = await connection.copy_from_query("SELECT * FROM copied_async", output=keep)
    assert status == "COPY 10000", status
    assert b"".join(chunks).count(b"\n") == 10_000


async def server_side_cursor(connection):
    total = 0
    async with connection.transaction():
        async for row in connection.cursor("SELECT * FROM generate_series(1, 1000)", prefetch=100):
            total += row[0]
    assert total == 500_500, total


async def failures(connection):
    try:
        await connection.fetch("SELECT 1/0")
        raise AssertionError("a division by zero passed")
    except asyncpg.DivisionByZeroError:
        pass
    try:
        await connection.execute("INSERT INTO ledger VALUES ($1, $2)", 1, 1)
        raise AssertionError("a duplicate key passed")
    except asyncpg.UniqueViolationError as error:
        assert error.constraint_name == "ledger_pkey", error.constraint_name
    assert await connection.fetchval("SELECT 1") == 1


async def cancel(connection, observer):
    sleeper = asyncio.create_task(connection.fetch("SELECT pg_sleep(62)"))
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(62)%' AND wait_event = 'PgSleep'"
    while await observer.fetchval(query) == 0:
        await asyncio.sleep(0.01)
    # asyncpg sends a cancel request for a cancelled task and waits for its effect.
    sleeper.cancel()
    try:
        await sleeper
        raise AssertionError("a cancelled statement ended well")
    except asyncio.CancelledError:
        pass
    assert await connection.fetchval("SELECT 2") == 2
    assert await observer.fetchval(query) == 0


async def notifications(dsn, connection):
    listener = await asyncpg.connect(dsn)
    heard = asyncio.get_running_loop().create_future()
    await listener.add_listener("news_async", lambda _c, _pid, channel, payload: heard.set_result((channel, payload)))
    await connection.execute("SELECT pg_notify('news_async', 'hello')")
    assert await heard == ("news_async", "hello")
    await listener.close()


async def many_connections(dsn):
    async def work(number):
        connection = await asyncpg.connect(dsn)
        for step in range(20):
            token = f"{number}:{step}"
            assert await connection.fetchval("SELECT $1::text", token) == token
        await connection.close()

    await asyncio.gather(*(work(number) for number in range(CONNECTIONS)))


async def main(dsn):
    connection = await asyncpg.connect(dsn)
    observer = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE ledger (id int PRIMARY KEY, amount int NOT NULL)")
    await transactions(connection)
    await prepared_statements(connection)
    await copies(connection)
    await server_side_cursor(connection)
    await failures(connection)
    await cancel(connection, observer)
    await notifications(dsn, connection)
    await many_connections(dsn)
    await connection.close()
    await observer.close()
    print(f"asyncpg {asyncpg.__version__}: all passed, {CONNECTIONS} connections at once")


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 4 * LIMIT))
