use std::fmt::Write as _;

use super::*;
use crate::sql::LexOptions;
use crate::sql::classify::classify;
use crate::sql::functions::Behaviour;
use crate::sql::hints::route_hint;

/// Functions beginning with `reads_` read, those with `writes_` write, PostgreSQL's own are known by name.
fn calls(function: &FunctionName) -> Calls {
    let name = function.name.as_str().unwrap();
    if name.starts_with("reads_") {
        Calls::Reads
    } else if name.starts_with("writes_") {
        Calls::Writes
    } else if function.behaviour == Behaviour::Unknown {
        Calls::Unknown
    } else {
        Calls::Reads
    }
}

fn of(texts: &[&str], defaults: Defaults) -> Intent {
    let mut proof = Proof::new(defaults);
    for text in texts {
        let options = LexOptions::default();
        let class = classify(text.as_bytes(), options);
        let hint = route_hint(text.as_bytes(), options);
        let text = Text {
            class: &class,
            hint,
            refused: false,
            hides_write: false,
        };
        proof.add(text, calls);
    }
    proof.intent()
}

fn intent(texts: &[&str]) -> Intent {
    let defaults = Defaults {
        read_only: false,
        serializable: Some(false),
    };
    of(texts, defaults)
}

#[test]
fn only_proved_reads_are_reads() {
    use Intent::{Primary, Read};
    let rows: [(&[&str], Intent); 24] = [
        (&["SELECT 1"], Read),
        (&["SELECT 1", "SELECT now()"], Read),
        (&["SELECT 1; TABLE t"], Read),
        (&["EXPLAIN ANALYZE SELECT 1"], Read),
        (&["SELECT reads_a(1), lower(b) FROM t"], Read),
        (&["SELECT 1; DELETE FROM t"], Primary(Reason::Write)),
        (&["SELECT 1", "DELETE FROM t"], Primary(Reason::Write)),
        (&["EXPLAIN ANALYZE DELETE FROM t"], Primary(Reason::Write)),
        (&["SELECT a FROM t FOR UPDATE"], Primary(Reason::Write)),
        (&["SELECT a FROM t FOR KEY SHARE"], Primary(Reason::Write)),
        (
            &["WITH d AS (DELETE FROM t RETURNING 1) TABLE d"],
            Primary(Reason::Write),
        ),
        (&["SELECT 1 INTO t"], Primary(Reason::Write)),
        (&["SELECT nextval('s')"], Primary(Reason::Write)),
        (&["SELECT pg_advisory_lock(1)"], Primary(Reason::Write)),
        (
            &["SELECT pg_try_advisory_xact_lock(1)"],
            Primary(Reason::Write),
        ),
        (&["SELECT pg_notify('a', 'b')"], Primary(Reason::Write)),
        (&["SELECT writes_a()"], Primary(Reason::Function)),
        (&["SELECT f(1)"], Primary(Reason::UnknownFunction)),
        (&["SELECT f(1), writes_a()"], Primary(Reason::Function)),
        (
            &["SELECT pg_is_in_recovery()"],
            Primary(Reason::ServerState),
        ),
        (&["SHOW work_mem"], Primary(Reason::ServerState)),
        (&["COPY t TO STDOUT"], Primary(Reason::Copy)),
        (&["SELEC 1"], Primary(Reason::Write)),
        (&[";"], Primary(Reason::Write)),
    ];
    for (texts, expected) in rows {
        assert_eq!(intent(texts), expected, "{texts:?}");
    }
}

#[test]
fn read_only_transactions_are_known_by_their_beginning() {
    use Intent::{Primary, Read, ReadOnlyTransaction};
    let rows: [(&[&str], Intent); 11] = [
        (&["BEGIN READ ONLY"], ReadOnlyTransaction),
        (
            &["START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"],
            ReadOnlyTransaction,
        ),
        (&["BEGIN READ ONLY", "SELECT 1"], ReadOnlyTransaction),
        (&["BEGIN READ ONLY", "SELECT 1", "COMMIT"], Read),
        (
            &["BEGIN READ ONLY", "SELECT f()"],
            Primary(Reason::UnknownFunction),
        ),
        (
            &["BEGIN READ ONLY", "COMMIT", "SELECT 1"],
            Primary(Reason::Transaction),
        ),
        (&["BEGIN"], Primary(Reason::Transaction)),
        (&["BEGIN READ WRITE"], Primary(Reason::Transaction)),
        (&["BEGIN READ ONLY; SELECT 1"], Primary(Reason::Write)),
        (
            &["BEGIN READ ONLY ISOLATION LEVEL SERIALIZABLE"],
            Primary(Reason::Serializable),
        ),
        (
            &["SELECT 1", "BEGIN READ ONLY"],
            Primary(Reason::Transaction),
        ),
    ];
    for (texts, expected) in rows {
        assert_eq!(intent(texts), expected, "{texts:?}");
    }
}

#[test]
fn settings_of_the_session_count_where_a_transaction_says_nothing() {
    let read_only = Defaults {
        read_only: true,
        serializable: Some(false),
    };
    assert_eq!(of(&["BEGIN"], read_only), Intent::ReadOnlyTransaction);
    assert_eq!(
        of(&["BEGIN READ WRITE"], read_only),
        Intent::Primary(Reason::Transaction)
    );
    let serializable = Defaults {
        read_only: true,
        serializable: Some(true),
    };
    let primary = Intent::Primary(Reason::Serializable);
    assert_eq!(of(&["SELECT 1"], serializable), primary);
    assert_eq!(of(&["BEGIN"], serializable), primary);
    assert_eq!(
        of(&["BEGIN ISOLATION LEVEL READ COMMITTED"], serializable),
        Intent::ReadOnlyTransaction
    );
    // Where nobody knows, a read is run elsewhere if it fails; a transaction is not, once it was told to have begun.
    let unknown = Defaults {
        read_only: true,
        serializable: None,
    };
    assert_eq!(of(&["SELECT 1"], unknown), Intent::Read);
    assert_eq!(of(&["BEGIN"], unknown), primary);
    assert_eq!(
        of(&["BEGIN ISOLATION LEVEL READ COMMITTED"], unknown),
        Intent::ReadOnlyTransaction
    );
}

#[test]
fn a_read_only_transaction_stays_on_its_replica_for_what_can_run_there() {
    let reason = |text: &str| {
        let options = LexOptions::default();
        let class = classify(text.as_bytes(), options);
        within(&class, route_hint(text.as_bytes(), options), calls)
    };
    for text in [
        "SELECT 1",
        "COMMIT",
        "ROLLBACK AND CHAIN",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "SET LOCAL statement_timeout = 1",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SHOW work_mem",
        "FETCH 1 FROM c",
        "DECLARE c CURSOR FOR SELECT 1",
        "COPY (SELECT 1) TO STDOUT",
    ] {
        assert_eq!(reason(text), None, "{text}");
    }
    for (text, expected) in [
        ("SET TRANSACTION READ WRITE", Reason::Write),
        ("SET transaction_read_only = off", Reason::Transaction),
        (
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            Reason::Write,
        ),
        ("SET TRANSACTION SNAPSHOT 'x'", Reason::Write),
        ("SELECT pg_advisory_xact_lock(1)", Reason::Write),
        ("SELECT f()", Reason::UnknownFunction),
        ("SELECT pg_export_snapshot()", Reason::Write),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Reason::Write),
        ("COMMIT; DELETE FROM t", Reason::Write),
        ("LISTEN a", Reason::Write),
        ("/* pgweir: primary */ SELECT 1", Reason::HintPrimary),
    ] {
        assert_eq!(reason(text), Some(expected), "{text}");
    }
}

#[test]
fn hints_send_reads_either_way_and_writes_nowhere_else() {
    assert_eq!(
        intent(&["SELECT 1", "/* pgweir: primary */ SELECT 1"]),
        Intent::Primary(Reason::HintPrimary)
    );
    assert_eq!(intent(&["/* pgweir: replica */ SELECT f()"]), Intent::Read);
    assert_eq!(
        intent(&["/* pgweir: replica */ SELECT nextval('s')"]),
        Intent::Primary(Reason::Write)
    );
    assert_eq!(
        intent(&["/* pgweir: primary */ BEGIN READ ONLY"]),
        Intent::Primary(Reason::HintPrimary)
    );
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/routes.txt");

/// Each statement is followed by where it goes on a line that begins with `  => `; `\n` in a statement is a newline.
/// `UPDATE_GOLDEN=1` writes the file anew. What is said to go to a replica, `it::routing` runs on one.
#[test]
fn golden_statements_go_where_they_belong() {
    let golden = std::fs::read_to_string(GOLDEN).unwrap();
    let mut found = String::new();
    for line in golden.lines().filter(|line| !line.starts_with("  => ")) {
        writeln!(found, "{line}").unwrap();
        if line.starts_with("# ") {
            continue;
        }
        match intent(&[&line.replace("\\n", "\n")]) {
            Intent::Read => writeln!(found, "  => replica"),
            Intent::ReadOnlyTransaction => writeln!(found, "  => replica, the transaction"),
            Intent::Primary(reason) => writeln!(found, "  => primary: {}", reason.as_str()),
        }
        .unwrap();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &found).unwrap();
        return;
    }
    for (index, (expected, found)) in golden.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "line {}", index + 1);
    }
    assert_eq!(golden.lines().count(), found.lines().count());
}
