"""The common story in psycopg 3."""

import datetime
import decimal
import os
import threading
import time

import psycopg

UTC = datetime.timezone.utc


def connect():
    # Host, port, user, password, database and the authority come from the environment, as libpq reads them.
    return psycopg.connect(sslmode="verify-full", autocommit=True)


def step(number, text):
    print(f"psycopg {number}: {text}", flush=True)


def expect(found, wanted):
    assert found == wanted, f"expected {wanted!r}, found {found!r}"


def main():
    conn = connect()
    assert conn.pgconn.ssl_in_use and conn.pgconn.used_password
    expect(conn.execute("select 1").fetchone(), (1,))
    step(1, "login by SCRAM over TLS")

    insert = "insert into story_items (id, name, price, at, data) values (%s, %s, %s, %s, %s)"
    at = datetime.datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=UTC)
    for item in range(1, 9):
        data = None if item == 3 else bytes([0, item, 255])
        conn.execute(insert, (item, f"item {item} é", decimal.Decimal(item) / 4, at, data), prepare=True)
    for _ in range(3):
        for item in range(1, 9):
            row = conn.execute("select name from story_items where id = %s", (item,), prepare=True).fetchone()
            expect(row, (f"item {item} é",))
    step(2, "prepared statements")

    with conn.cursor(binary=True) as cursor:
        cursor.execute("select id, name, price, at, data from story_items order by id")
        rows = cursor.fetchall()
    expect(len(rows), 8)
    expect(rows[0], (1, "item 1 é", decimal.Decimal("0.25"), at, b"\x00\x01\xff"))
    expect(rows[2][4], None)
    step(3, "binary results")

    count = "select count(*) from story_items"
    try:
        with conn.transaction():
            conn.execute("insert into story_items (id, name) values (100, 'gone')")
            expect(conn.execute(count).fetchone(), (9,))
            try:
                with conn.transaction():
                    conn.execute("insert into story_items (id, name) values (100, 'twice')")
            except psycopg.errors.UniqueViolation:
                pass
            expect(conn.execute(count).fetchone(), (9,))
            raise psycopg.Rollback()
    except psycopg.Rollback:
        pass
    expect(conn.execute(count).fetchone(), (8,))
    step(4, "a transaction rolled back, with a savepoint")

    with conn.cursor() as cursor:
        with cursor.copy("copy story_items (id, name) from stdin") as copy:
            for item in range(1000, 3000):
                copy.write_row((item, f"copied {item}"))
        with cursor.copy("copy (select id, name from story_items where id >= 1000 order by id) to stdout") as copy:
            copied = list(copy.rows())
    expect((len(copied), copied[0], copied[-1]), (2000, ("1000", "copied 1000"), ("2999", "copied 2999")))
    step(5, "COPY in and out")

    began = time.monotonic()
    cancelled = []
    timer = threading.Timer(0.5, lambda: cancelled.append(conn.cancel_safe()))
    timer.start()
    try:
        conn.execute("select pg_sleep(30)")
        raise AssertionError("the sleep was not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    timer.join()
    expect(cancelled, [None])
    assert time.monotonic() - began < 15
    expect(conn.execute("select 2").fetchone(), (2,))
    step(6, "cancel")

    for _ in range(3):
        try:
            conn.execute("select 1 / %s", (0,), prepare=True)
            raise AssertionError("a division by zero passed")
        except psycopg.errors.DivisionByZero:
            pass
        expect(conn.execute("select 10 / %s", (5,), prepare=True).fetchone(), (2,))
    step(7, "an error, and reuse after it")

    with conn.pipeline() as pipeline:
        cursors = [conn.execute("select %s::int * 2", (number,)) for number in range(50)]
        pipeline.sync()
        expect([cursor.fetchone()[0] for cursor in cursors], [number * 2 for number in range(50)])
        failing = conn.execute("select 1 / 0")
        try:
            pipeline.sync()
            failing.fetchone()
            raise AssertionError("a division by zero passed")
        except psycopg.errors.DivisionByZero:
            pass
    expect(conn.execute("select 3").fetchone(), (3,))
    step(8, "a pipeline, with an error in it")

    grouped = "select region, count(*), sum(amount) from story_events group by region order by region"
    for binary in (False, True, False, True):
        rows = conn.cursor(binary=binary).execute(grouped).fetchall()
        expect(rows, [(0, 10, 2200), (1, 10, 1900), (2, 10, 2000), (3, 10, 2100)])
    conn.execute("insert into story_events (customer_id, region, amount) values (%s, %s, %s)", (41, 1, 5))
    rows = conn.execute(grouped).fetchall()
    expect(rows, [(0, 10, 2200), (1, 11, 1905), (2, 10, 2000), (3, 10, 2100)])
    expect(conn.execute("select amount from story_events where customer_id = %s", (41,)).fetchall(), [(5,)])
    step(9, "aggregates over spread rows, fresh after a write")

    conn.execute("set timezone to 'Asia/Tokyo'")
    for _ in range(3):
        text = conn.execute("select at::text from story_items where id = 1").fetchone()
        expect(text, ("2026-11-23 21:30:15.123456+09",))
    other = connect()
    assert other.execute("select at::text from story_items where id = 1").fetchone() != text
    step(10, "a setting that stays with the session")

    conn.execute("listen story")
    with other.transaction():
        other.execute("notify story, 'told é'")
        other.execute("select pg_notify('story', %s)", ("and again",))
    told = conn.notifies()
    heard = [next(told) for _ in range(2)]
    told.close()
    expect([(it.channel, it.payload) for it in heard], [("story", "told é"), ("story", "and again")])
    conn.execute("unlisten *")
    step(11, "notifications")


if __name__ == "__main__":
    assert os.environ.get("PGSSLROOTCERT"), "PGSSLROOTCERT is not set"
    main()
