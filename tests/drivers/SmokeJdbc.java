// What an application does with pgJDBC, checked. Usage: java -cp postgresql.jar SmokeJdbc.java JDBC-URL

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

public final class SmokeJdbc {
    private static final int CONNECTIONS = 20;
    private static final int LIMIT_MS = 30_000;

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private interface Work {
        void run() throws Exception;
    }

    private static void fails(String state, Work work) throws Exception {
        try {
            work.run();
        } catch (SQLException error) {
            check(state.equals(error.getSQLState()), "expected " + state + ", got " + error.getSQLState());
            return;
        }
        throw new AssertionError("expected " + state);
    }

    private static long number(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    private static void transactions(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO purses VALUES (?, ?)")) {
            for (int id = 1; id <= 100; id++) {
                insert.setInt(1, id);
                insert.setInt(2, 10);
                insert.addBatch();
            }
            check(insert.executeBatch().length == 100, "a batch of 100");
        }
        connection.commit();
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate("UPDATE purses SET amount = 0");
        }
        connection.rollback();
        check(number(connection, "SELECT sum(amount) FROM purses") == 1000, "the rollback held");
        connection.commit();
        connection.setAutoCommit(true);
    }

    private static void preparedStatements(Connection connection) throws SQLException {
        // The driver names a statement on the server from its fifth execution on.
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int + 1")) {
            for (int value = 0; value < 20; value++) {
                statement.setInt(1, value);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    check(rows.getInt(1) == value + 1, "prepared " + value);
                }
            }
        }
    }

    private static void copies(Connection connection) throws Exception {
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder lines = new StringBuilder();
        for (int number = 0; number < 10_000; number++) {
            lines.append(number).append("\tlabel\n");
        }
        long count = copy.copyIn("COPY copied_jdbc FROM STDIN", new StringReader(lines.toString()));
        check(count == 10_000, "rows copied in");
        StringWriter out = new StringWriter();
        copy.copyOut("COPY (SELECT * FROM copied_jdbc ORDER BY id) TO STDOUT", out);
        check(lines.toString().equals(out.toString()), "rows copied out");
    }

    private static void cursor(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        long total = 0;
        try (Statement statement = connection.createStatement()) {
            // Inside a transaction this makes a portal that is read by Execute with a row limit.
            statement.setFetchSize(100);
            try (ResultSet rows = statement.executeQuery("SELECT * FROM generate_series(1, 1000)")) {
                while (rows.next()) {
                    total += rows.getInt(1);
                }
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
        check(total == 500_500, "the sum over a portal");
    }

    private static void failures(Connection connection) throws Exception {
        fails("22012", () -> number(connection, "SELECT 1/0"));
        fails("23505", () -> {
            try (PreparedStatement insert = connection.prepareStatement("INSERT INTO purses VALUES (?, 0)")) {
                insert.setInt(1, 1);
                insert.addBatch();
                insert.executeBatch();
            } catch (BatchUpdateException error) {
                throw error.getNextException() == null ? error : error.getNextException();
            }
        });
        check(number(connection, "SELECT 1") == 1, "a statement after errors");
    }

    private static void cancel(Connection connection, Connection observer) throws Exception {
        try (Statement statement = connection.createStatement()) {
            Thread canceller = new Thread(() -> {
                String asleep = "SELECT count(*) FROM pg_stat_activity"
                        + " WHERE query LIKE '%sleep(64)%' AND wait_event = 'PgSleep'";
                try {
                    while (number(observer, asleep) == 0) {
                        Thread.sleep(10);
                    }
                    statement.cancel();
                } catch (SQLException | InterruptedException error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            fails("57014", () -> statement.execute("SELECT pg_sleep(64)"));
            canceller.join();
        }
        check(number(connection, "SELECT 2") == 2, "a statement after a cancel");
    }

    private static void notifications(String url, Connection connection) throws SQLException {
        try (Connection listener = DriverManager.getConnection(url)) {
            try (Statement statement = listener.createStatement()) {
                statement.execute("LISTEN news_jdbc");
            }
            try (Statement statement = connection.createStatement()) {
                statement.execute("SELECT pg_notify('news_jdbc', 'hello')");
            }
            PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(LIMIT_MS);
            check(heard != null && heard.length == 1, "one notification");
            check("hello".equals(heard[0].getParameter()), "the payload");
        }
    }

    private static void manyConnections(String url) throws Exception {
        var threads = Executors.newFixedThreadPool(CONNECTIONS);
        List<Future<?>> work = new ArrayList<>();
        for (int i = 0; i < CONNECTIONS; i++) {
            int token = i * 1000;
            work.add(threads.submit(() -> {
                try (Connection connection = DriverManager.getConnection(url)) {
                    for (int step = 0; step < 20; step++) {
                        check(number(connection, "SELECT " + (token + step)) == token + step, "its own answer");
                    }
                }
                return null;
            }));
        }
        threads.shutdown();
        for (Future<?> one : work) {
            one.get();
        }
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        String version;
        try (Connection connection = DriverManager.getConnection(url);
                Connection observer = DriverManager.getConnection(url)) {
            version = connection.getMetaData().getDriverVersion();
            try (Statement statement = connection.createStatement()) {
                statement.execute("CREATE TABLE purses (id int PRIMARY KEY, amount int NOT NULL)");
                statement.execute("CREATE TABLE copied_jdbc (id int, label text)");
            }
            transactions(connection);
            preparedStatements(connection);
            copies(connection);
            cursor(connection);
            failures(connection);
            cancel(connection, observer);
            notifications(url, connection);
        }
        manyConnections(url);
        System.out.println("pgJDBC " + version + ": all passed, " + CONNECTIONS + " connections at once");
    }
}
