import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.time.ZoneOffset;
import java.util.Arrays;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** The common story in JDBC. */
public final class Story {
    private static final OffsetDateTime AT = OffsetDateTime.of(2026, 11, 23, 12, 30, 15, 123456000, ZoneOffset.UTC);

    private interface Action {
        void run() throws Exception;
    }

    private static Connection connect() throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "verify-full");
        properties.setProperty("sslrootcert", System.getenv("PGSSLROOTCERT"));
        // Server-side prepared statements and binary results from the first execution on.
        properties.setProperty("prepareThreshold", "-1");
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url, properties);
    }

    private static void step(int number, String text) {
        System.out.println("jdbc " + number + ": " + text);
    }

    private static void expect(Object found, Object wanted) {
        if (!(found == null ? wanted == null : found.equals(wanted))) {
            throw new AssertionError("expected " + wanted + ", found " + found);
        }
    }

    private static void fails(String sqlState, Action action) throws Exception {
        try {
            action.run();
        } catch (SQLException error) {
            expect(error.getSQLState(), sqlState);
            return;
        }
        throw new AssertionError("no error " + sqlState);
    }

    private static Object value(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    private static void run(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute(sql);
        }
    }

    private static void prepared(Connection conn) throws SQLException {
        String sql = "insert into story_items (id, name, price, at, data) values (?, ?, ?, ?, ?)";
        try (PreparedStatement insert = conn.prepareStatement(sql)) {
            for (int item = 1; item <= 8; item++) {
                insert.setInt(1, item);
                insert.setString(2, "item " + item + " é");
                insert.setBigDecimal(3, new BigDecimal(item).divide(new BigDecimal(4)));
                insert.setObject(4, AT);
                if (item == 3) {
                    insert.setNull(5, Types.BINARY);
                } else {
                    insert.setBytes(5, new byte[] {0, (byte) item, (byte) 255});
                }
                expect(insert.executeUpdate(), 1);
            }
        }
        try (PreparedStatement byId = conn.prepareStatement("select name from story_items where id = ?")) {
            for (int turn = 0; turn < 24; turn++) {
                byId.setInt(1, turn % 8 + 1);
                try (ResultSet rows = byId.executeQuery()) {
                    rows.next();
                    expect(rows.getString(1), "item " + (turn % 8 + 1) + " é");
                }
            }
        }
    }

    private static void binary(Connection conn) throws SQLException {
        String sql = "select id, name, price, at, data from story_items where id < ? order by id";
        try (PreparedStatement select = conn.prepareStatement(sql)) {
            for (int turn = 0; turn < 3; turn++) {
                select.setInt(1, 9);
                try (ResultSet rows = select.executeQuery()) {
                    rows.next();
                    expect(rows.getInt(1), 1);
                    expect(rows.getString(2), "item 1 é");
                    expect(rows.getBigDecimal(3), new BigDecimal("0.25"));
                    expect(rows.getObject(4, OffsetDateTime.class).toInstant(), AT.toInstant());
                    expect(Arrays.toString(rows.getBytes(5)), "[0, 1, -1]");
                    rows.next();
                    rows.next();
                    expect(rows.getBytes(5), null);
                }
            }
        }
    }

    private static void transaction(Connection conn) throws Exception {
        conn.setAutoCommit(false);
        run(conn, "insert into story_items (id, name) values (100, 'gone')");
        expect(value(conn, "select count(*) from story_items"), 9L);
        Savepoint savepoint = conn.setSavepoint();
        fails("23505", () -> run(conn, "insert into story_items (id, name) values (100, 'twice')"));
        fails("25P02", () -> run(conn, "select 1"));
        conn.rollback(savepoint);
        expect(value(conn, "select count(*) from story_items"), 9L);
        try (Statement statement = conn.createStatement()) {
            // A fetch size inside a transaction makes the driver use a portal with a row limit.
            statement.setFetchSize(3);
            int seen = 0;
            try (ResultSet rows = statement.executeQuery("select id from story_items order by id")) {
                while (rows.next()) {
                    seen++;
                }
            }
            expect(seen, 9);
        }
        conn.rollback();
        conn.setAutoCommit(true);
        expect(value(conn, "select count(*) from story_items"), 8L);
    }

    private static void copy(Connection conn) throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int item = 1000; item < 3000; item++) {
            lines.append(item).append("\tcopied ").append(item).append('\n');
        }
        CopyManager copies = conn.unwrap(PGConnection.class).getCopyAPI();
        expect(copies.copyIn("copy story_items (id, name) from stdin", new StringReader(lines.toString())), 2000L);
        StringWriter out = new StringWriter();
        copies.copyOut("copy (select id, name from story_items where id >= 1000 order by id) to stdout", out);
        expect(out.toString(), lines.toString());
    }

    private static void cancel(Connection conn) throws Exception {
        long began = System.nanoTime();
        try (Statement statement = conn.createStatement()) {
            Thread canceller = new Thread(() -> {
                try {
                    Thread.sleep(500);
                    statement.cancel();
                } catch (InterruptedException | SQLException error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            fails("57014", () -> statement.execute("select pg_sleep(30)"));
            canceller.join();
        }
        expect(System.nanoTime() - began < 15_000_000_000L, true);
        expect(value(conn, "select 2"), 2);
    }

    private static void errors(Connection conn) throws Exception {
        try (PreparedStatement divide = conn.prepareStatement("select 10 / ?::int")) {
            for (int turn = 0; turn < 3; turn++) {
                divide.setInt(1, 0);
                fails("22012", divide::executeQuery);
                divide.setInt(1, 5);
                try (ResultSet rows = divide.executeQuery()) {
                    rows.next();
                    expect(rows.getInt(1), 2);
                }
            }
        }
    }

    private static void batch(Connection conn) throws Exception {
        try (PreparedStatement insert = conn.prepareStatement("insert into story_items (id, name) values (?, ?)")) {
            for (int item = 4000; item < 4300; item++) {
                insert.setInt(1, item);
                insert.setString(2, "batched");
                insert.addBatch();
            }
            expect(insert.executeBatch().length, 300);
            for (int item : new int[] {5000, 5001, 5000}) {
                insert.setInt(1, item);
                insert.setString(2, "twice");
                insert.addBatch();
            }
            conn.setAutoCommit(false);
            try {
                insert.executeBatch();
                throw new AssertionError("a duplicate passed");
            } catch (BatchUpdateException error) {
                expect(error.getSQLState(), "23505");
            }
            conn.rollback();
            conn.setAutoCommit(true);
        }
        expect(value(conn, "select count(*) from story_items where id >= 4000"), 300L);
    }

    private static String grouped(Connection conn) throws SQLException {
        StringBuilder found = new StringBuilder();
        String sql = "select region, count(*), sum(amount) from story_events group by region order by region";
        try (PreparedStatement statement = conn.prepareStatement(sql); ResultSet rows = statement.executeQuery()) {
            while (rows.next()) {
                found.append(rows.getInt(1)).append(' ').append(rows.getLong(2)).append(' ').append(rows.getLong(3)).append(';');
            }
        }
        return found.toString();
    }

    private static void spread(Connection conn) throws SQLException {
        for (int turn = 0; turn < 4; turn++) {
            expect(grouped(conn), "0 10 2200;1 10 1900;2 10 2000;3 10 2100;");
        }
        try (PreparedStatement insert = conn.prepareStatement("insert into story_events (customer_id, region, amount) values (?, ?, ?)")) {
            insert.setInt(1, 41);
            insert.setInt(2, 1);
            insert.setInt(3, 5);
            expect(insert.executeUpdate(), 1);
        }
        expect(grouped(conn), "0 10 2200;1 11 1905;2 10 2000;3 10 2100;");
        expect(value(conn, "select amount from story_events where customer_id = 41"), 5);
    }

    private static void setting(Connection conn) throws SQLException {
        String sql = "select at::text from story_items where id = 1";
        run(conn, "set timezone to 'Asia/Tokyo'");
        for (int turn = 0; turn < 3; turn++) {
            expect(value(conn, sql), "2026-11-23 21:30:15.123456+09");
        }
        try (Connection other = connect()) {
            run(other, "set timezone to 'UTC'");
            expect(value(other, sql), "2026-11-23 12:30:15.123456+00");
            expect(value(conn, sql), "2026-11-23 21:30:15.123456+09");
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection conn = connect()) {
            expect(value(conn, "select 1"), 1);
            step(1, "login by SCRAM over TLS");
            prepared(conn);
            step(2, "prepared statements");
            binary(conn);
            step(3, "binary results");
            transaction(conn);
            step(4, "a transaction rolled back, with a savepoint and a portal with a row limit");
            copy(conn);
            step(5, "COPY in and out");
            cancel(conn);
            step(6, "cancel");
            errors(conn);
            step(7, "an error, and reuse after it");
            batch(conn);
            step(8, "batches, which the driver sends as pipelines");
            spread(conn);
            step(9, "aggregates over spread rows, fresh after a write");
            setting(conn);
            step(10, "a setting that stays with the session");
        }
    }
}
