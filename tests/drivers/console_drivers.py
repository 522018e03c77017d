"""The console through drivers: psycopg 3 and asyncpg. Usage: console_drivers.py DSN, of pgweir's own database."""

import asyncio
import sys

import asyncpg
import psycopg
from psycopg.rows import dict_row


def with_psycopg(dsn):
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as console:
        [pool] = console.execute("SHOW POOLS").fetchall()
        assert (pool["database"], pool["user"], pool["cl_active"]) == ("postgres", "postgres", 1), pool
        [query] = console.execute("SHOW QUERIES WHERE query LIKE '%shown' ORDER BY total_time DESC").fetchall()
        assert (query["query"], query["calls"], query["rows"]) == ("SELECT $1 AS shown", 3, 3), query
        assert isinstance(query["total_time"], float) and query["total_time"] > 0, query
        # Numbers come in binary where they are asked for so.
        with console.cursor(binary=True) as cursor:
            cursor.execute("SHOW LISTS")
            lists = {row["list"]: row["items"] for row in cursor}
        assert lists["pools"] == 1, lists
        try:
            console.execute("SHOW NOTHING")
            raise AssertionError("SHOW NOTHING shows something")
        except psycopg.errors.SyntaxError:
            pass
        assert console.execute("SHOW VERSION").fetchone()["version"].startswith("PgBouncer ")
    # As most programs connect: each statement in a transaction.
    with psycopg.connect(dsn) as console:
        assert len(console.execute("SHOW STATS").fetchall()) >= 1
        console.execute("RELOAD")


async def with_asyncpg(dsn):
    console = await asyncpg.connect(dsn)
    [pool] = await console.fetch("SHOW POOLS")
    assert (pool["database"], pool["cl_active"]) == ("postgres", 1), pool
    [query] = await console.fetch("SHOW QUERIES LIKE '%shown'")
    assert query["calls"] == 3, query
    await console.execute("PAUSE postgres")
    await console.execute("RESUME postgres")
    await console.close()


with_psycopg(sys.argv[1])
asyncio.run(with_asyncpg(sys.argv[1]))
print(f"psycopg {psycopg.__version__} and asyncpg {asyncpg.__version__} work on the console")
