//! What an SQLSTATE means and what is usually done about it.

/// SQLSTATE or class, its name in the words of PostgreSQL's manual, and what to do.
type Entry = (&'static str, &'static str, &'static str);

const SQLSTATES: [Entry; 18] = [
    (
        "23505",
        "unique_violation",
        "If the row may be there already, say so: INSERT … ON CONFLICT.",
    ),
    (
        "23503",
        "foreign_key_violation",
        "Write the referenced row first, in the same transaction, or delete the referring ones first.",
    ),
    (
        "23514",
        "check_violation",
        "Check the value before it is written, or put the condition into the WHERE of the UPDATE.",
    ),
    (
        "23502",
        "not_null_violation",
        "Give the column a value or a default.",
    ),
    (
        "40001",
        "serialization_failure",
        "Run the transaction again: it was rolled back as a whole.",
    ),
    (
        "40P01",
        "deadlock_detected",
        "Lock rows in the same order everywhere, such as by ORDER BY id FOR UPDATE, and run the transaction again.",
    ),
    (
        "42P01",
        "undefined_table",
        "Application and schema differ: a migration is missing, or search_path is.",
    ),
    (
        "42703",
        "undefined_column",
        "Application and schema differ: a migration is missing, or came too early.",
    ),
    (
        "42883",
        "undefined_function",
        "An extension is missing, or an argument has another type: cast it.",
    ),
    (
        "42501",
        "insufficient_privilege",
        "GRANT the role what it needs, or run it as another.",
    ),
    (
        "25P02",
        "in_failed_sql_transaction",
        "An earlier statement failed: look for that one. The application goes on without ROLLBACK.",
    ),
    (
        "25006",
        "read_only_sql_transaction",
        "A write went to a read-only transaction or server.",
    ),
    (
        "53300",
        "too_many_connections",
        "A limit on connections is reached: see the pools' advice.",
    ),
    (
        "55P03",
        "lock_not_available",
        "Another transaction holds the lock: see who under Lock waits.",
    ),
    (
        "57014",
        "query_canceled",
        "A timeout, or the client itself, ended it: make it faster, or allow it more time \
             (timeouts.query_timeout, statement_timeout).",
    ),
    (
        "57P01",
        "admin_shutdown",
        "The server, or somebody by pg_terminate_backend, ended the connection.",
    ),
    (
        "25P03",
        "idle_in_transaction_session_timeout",
        "The application keeps transactions open while it does something else.",
    ),
    (
        "0A000",
        "feature_not_supported",
        "The message says what is not supported, and where.",
    ),
];

const CLASSES: [Entry; 10] = [
    (
        "08",
        "connection_exception",
        "A connection broke: look at the server's log and the network.",
    ),
    (
        "22",
        "data_exception",
        "A value does not fit: check it before it is sent.",
    ),
    (
        "23",
        "integrity_constraint_violation",
        "A constraint says no: check before writing.",
    ),
    (
        "28",
        "invalid_authorization_specification",
        "Check user, password and pg_hba.conf.",
    ),
    (
        "42",
        "syntax_error_or_access_rule_violation",
        "The statement does not fit the schema, or is misspelt.",
    ),
    (
        "53",
        "insufficient_resources",
        "The server is out of memory, disk or connections.",
    ),
    (
        "54",
        "program_limit_exceeded",
        "The statement is too large: split it.",
    ),
    (
        "57",
        "operator_intervention",
        "Somebody, or a shutdown, ended it.",
    ),
    (
        "58",
        "system_error",
        "Look at the server's log: its disk or operating system fails.",
    ),
    (
        "XX",
        "internal_error",
        "Look at the server's log: this may be damage, or a bug.",
    ),
];

/// Its name and what to do; `None` for one that says nothing by itself.
pub fn about(sqlstate: &str) -> Option<(&'static str, &'static str)> {
    let find = |table: &'static [Entry], key: &str| {
        let found = table.iter().find(|(code, ..)| *code == key);
        found.map(|(_, name, action)| (*name, *action))
    };
    find(&SQLSTATES, sqlstate).or_else(|| find(&CLASSES, sqlstate.get(..2)?))
}
