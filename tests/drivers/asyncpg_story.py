"""The common story in asyncpg."""

import asyncio
import datetime
import decimal
import io
import os
import ssl
import time

import asyncpg

UTC = datetime.timezone.utc


async def connect():
    context = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
    return await asyncpg.connect(ssl=context)


def step(number, text):
    print(f"asyncpg {number}: {text}", flush=True)


def expect(found, wanted):
    assert found == wanted, f"expected {wanted!r}, found {found!r}"


async def main():
    conn = await connect()
    expect(await conn.fetchval("select 1"), 1)
    step(1, "login by SCRAM over TLS")

    insert = await conn.prepare("insert into story_items (id, name, price, at, data) values ($1, $2, $3, $4, $5)")
    at = datetime.datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=UTC)
    for item in range(1, 9):
        data = None if item == 3 else bytes([0, item, 255])
        await insert.fetch(item, f"item {item} é", decimal.Decimal(item) / 4, at, data)
    by_id = await conn.prepare("select name from story_items where id = $1")
    for _ in range(3):
        for item in range(1, 9):
            expect(await by_id.fetchval(item), f"item {item} é")
    step(2, "prepared statements")

    rows = [tuple(row) for row in await conn.fetch("select id, name, price, at, data from story_items order by id")]
    expect(len(rows), 8)
    expect(rows[0], (1, "item 1 é", decimal.Decimal("0.25"), at, b"\x00\x01\xff"))
    expect(rows[2][4], None)
    step(3, "binary results")

    count = "select count(*) from story_items"
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("insert into story_items (id, name) values (100, 'gone')")
    expect(await conn.fetchval(count), 9)
    try:
        async with conn.transaction():
            await conn.execute("insert into story_items (id, name) values (100, 'twice')")
    except asyncpg.UniqueViolationError:
        pass
    expect(await conn.fetchval(count), 9)
    async with conn.transaction():
        ids = [row["id"] async for row in conn.cursor("select id from story_items order by id", prefetch=3)]
    expect(ids, [1, 2, 3, 4, 5, 6, 7, 8, 100])
    await transaction.rollback()
    expect(await conn.fetchval(count), 8)
    step(4, "a transaction rolled back, with a savepoint and a cursor")

    items = [(item, f"copied {item}") for item in range(1000, 3000)]
    expect(await conn.copy_records_to_table("story_items", records=items, columns=["id", "name"]), "COPY 2000")
    out = io.BytesIO()
    await conn.copy_from_query("select id, name from story_items where id >= 1000 order by id", output=out)
    lines = out.getvalue().decode().splitlines()
    expect((len(lines), lines[0], lines[-1]), (2000, "1000\tcopied 1000", "2999\tcopied 2999"))
    step(5, "COPY in and out")

    began = time.monotonic()
    try:
        # asyncpg turns its own timeout into a cancel request.
        await conn.execute("select pg_sleep(30)", timeout=0.5)
        raise AssertionError("the sleep was not cancelled")
    except asyncio.TimeoutError:
        pass
    expect(await conn.fetchval("select 2"), 2)
    assert time.monotonic() - began < 15
    step(6, "cancel")

    for _ in range(3):
        try:
            await conn.fetchval("select 1 / $1::int", 0)
            raise AssertionError("a division by zero passed")
        except asyncpg.DivisionByZeroError:
            pass
        expect(await conn.fetchval("select 10 / $1::int", 5), 2)
    step(7, "an error, and reuse after it")

    await conn.executemany("update story_items set name = $2 where id = $1", [(item, f"many {item}") for item in range(1000, 1200)])
    expect(await conn.fetchval("select count(*) from story_items where name like 'many %'"), 200)
    try:
        await conn.executemany("insert into story_items (id, name) values ($1, $2)", [(5000, "a"), (5001, "b"), (5000, "c")])
        raise AssertionError("a duplicate passed")
    except asyncpg.UniqueViolationError:
        pass
    expect(await conn.fetchval("select count(*) from story_items where id >= 5000"), 0)
    step(8, "batches, which asyncpg sends as pipelines")

    grouped = "select region, count(*), sum(amount) from story_events group by region order by region"
    for _ in range(4):
        rows = [tuple(row) for row in await conn.fetch(grouped)]
        expect(rows, [(0, 10, 2200), (1, 10, 1900), (2, 10, 2000), (3, 10, 2100)])
    await conn.execute("insert into story_events (customer_id, region, amount) values ($1, $2, $3)", 41, 1, 5)
    rows = [tuple(row) for row in await conn.fetch(grouped)]
    expect(rows, [(0, 10, 2200), (1, 11, 1905), (2, 10, 2000), (3, 10, 2100)])
    expect(await conn.fetchval("select amount from story_events where customer_id = $1", 41), 5)
    step(9, "aggregates over spread rows, fresh after a write")

    await conn.execute("set timezone to 'Asia/Tokyo'")
    for _ in range(3):
        text = await conn.fetchval("select at::text from story_items where id = 1")
        expect(text, "2026-11-23 21:30:15.123456+09")
    other = await connect()
    assert await other.fetchval("select at::text from story_items where id = 1") != text
    step(10, "a setting that stays with the session")

    heard = asyncio.Queue()
    await conn.add_listener("story", lambda _conn, _pid, channel, payload: heard.put_nowait((channel, payload)))
    async with other.transaction():
        await other.execute("notify story, 'told é'")
        await other.execute("select pg_notify('story', $1)", "and again")
    for payload in ("told é", "and again"):
        expect(await asyncio.wait_for(heard.get(), 20), ("story", payload))
    await conn.reset()
    step(11, "notifications")
    await other.close()
    await conn.close()


if __name__ == "__main__":
    asyncio.run(main())
