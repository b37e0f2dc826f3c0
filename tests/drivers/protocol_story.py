"""libpq 18 with protocol 3.2 (max_protocol_version): longer cancel secrets, and nothing else is another. Arguments: conninfo, and
the version that the server speaks, as PQfullProtocolVersion has it."""
import sys
import threading

import psycopg

conninfo, newest = sys.argv[1], int(sys.argv[2])
if psycopg.pq.version() < 180000:
    print("libpq is older than 18: it knows no other protocol than 3.0")
    sys.exit(0)

asked = {"": 30000, "max_protocol_version=3.0": 30000, "max_protocol_version=3.2": newest, "max_protocol_version=latest": newest}
for option, wanted in asked.items():
    with psycopg.connect(f"{conninfo} {option}", autocommit=True) as connection:
        spoken = connection.pgconn.full_protocol_version
        assert spoken == wanted, f"{option!r}: {spoken}, not {wanted}"
        assert connection.execute("select 1").fetchone() == (1,)
        # The secret is good for a cancel, whichever its length.
        timer = threading.Timer(0.2, connection.cancel_safe)
        timer.start()
        try:
            connection.execute("select pg_sleep(30)")
            raise AssertionError("nothing was cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        timer.join()
        assert connection.execute("select 2").fetchone() == (2,)

if newest < 30002:
    try:
        psycopg.connect(f"{conninfo} min_protocol_version=3.2 max_protocol_version=3.2")
        raise AssertionError("3.2 was promised")
    except psycopg.OperationalError:
        pass
print("told")
