"""An application that uses all of a session at once, by asyncpg. Arguments: DSN, clients, rounds."""

import asyncio
import sys

import asyncpg


async def use(dsn, number, rounds):
    connection = await asyncpg.connect(dsn, timeout=300)
    channel = f"asyncpg_{number}"
    heard = asyncio.Queue()
    await connection.execute(f"SET work_mem = '{2100 + number}kB'")
    await connection.fetchval("SELECT set_config('app.client', $1, false)", channel)
    await connection.add_listener(channel, lambda *notify: heard.put_nowait(notify[3]))
    double = await connection.prepare("SELECT $1::int * 2")
    for round_number in range(rounds):
        await one_round(connection, number, channel, double)
        await connection.execute("SELECT pg_notify($1, $2)", channel, str(round_number))
        assert await asyncio.wait_for(heard.get(), 30) == str(round_number)
    assert heard.empty()
    await connection.close()


async def one_round(connection, number, channel, double):
    value = connection.fetchval
    assert await value("SHOW work_mem") == f"{2100 + number}kB"
    assert await value("SELECT current_setting('app.client')") == channel
    for factor in range(3):
        assert await double.fetchval(factor) == factor * 2
    await connection.execute("PREPARE twice AS SELECT current_setting('app.client')")
    assert await value("EXECUTE twice") == channel
    await connection.execute("DEALLOCATE twice")
    await connection.execute("CREATE TEMP TABLE mine (a int)")
    rows = [(row,) for row in range(number, number + 100)]
    await connection.copy_records_to_table("mine", records=rows)
    assert await value("SELECT sum(a) FROM mine") == sum(range(number, number + 100))
    await connection.execute("DROP TABLE mine")
    async with connection.transaction():
        rows = connection.cursor("SELECT generate_series($1::int, $2::int)", number, number + 49, prefetch=10)
        assert [row[0] async for row in rows] == list(range(number, number + 50))
    key = number % 5
    await value("SELECT pg_advisory_lock($1)", key)
    before = await value("SELECT value FROM counters WHERE key = $1", key)
    await connection.execute("UPDATE counters SET value = $1 WHERE key = $2", before + 1, key)
    assert await value("SELECT pg_advisory_unlock($1)", key)


async def main():
    dsn, clients, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    await asyncio.gather(*(use(dsn, number, rounds) for number in range(clients)))
    print(f"asyncpg: {clients} clients, {rounds} rounds each")


asyncio.run(main())
