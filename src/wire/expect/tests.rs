mod model;

use super::*;

fn expect(requests: &[Request]) -> Expect {
    let mut expect = Expect::default();
    for &request in requests {
        expect.push(Owed::new(request, For::Client));
    }
    expect
}

fn receive(expect: &mut Expect, tags: &[u8]) {
    for &tag in tags {
        expect
            .receive(tag)
            .unwrap_or_else(|error| panic!("{error} in {expect:?}"));
    }
}

#[test]
fn a_pipeline_is_at_rest_only_after_its_last_ready_for_query() {
    use Request as R;
    let mut e = expect(&[
        R::Parse,
        R::Bind,
        R::DescribePortal,
        R::Execute,
        R::Sync,
        R::Query,
    ]);
    receive(&mut e, b"12TDDCZ");
    assert!(!e.is_at_rest());
    receive(&mut e, b"TDCZ");
    assert!(e.is_at_rest());
}

#[test]
fn what_was_answered_in_part_has_begun() {
    let mut e = expect(&[Request::Query]);
    receive(&mut e, b"NE");
    assert!(!e.has_begun());
    for tag in *b"TCIHG" {
        receive(&mut e, b"Z");
        e.push(Owed::new(Request::Query, For::Client));
        assert!(!e.has_begun());
        receive(&mut e, &[tag, b'E']);
        assert!(e.has_begun());
    }
    receive(&mut e, b"Z");
    for request in [Request::Execute, Request::Sync] {
        e.push(Owed::new(request, For::Client));
    }
    receive(&mut e, b"DC");
    assert!(!e.has_begun());
}

#[test]
fn an_error_skips_to_the_next_sync() {
    use Request as R;
    let mut e = expect(&[
        R::Parse,
        R::Bind,
        R::Execute,
        R::Sync,
        R::Bind,
        R::Execute,
        R::Sync,
    ]);
    receive(&mut e, b"1E");
    let mut skipped = Vec::new();
    e.skip_to_sync(|owed| skipped.push(owed.request));
    assert_eq!(skipped, [R::Bind, R::Execute]);
    receive(&mut e, b"Z2CZ");
    assert!(e.is_at_rest());
}

#[test]
fn of_a_query_whose_needs_have_failed_only_the_end_is_the_clients() {
    use Request as R;
    let mut e = Expect::default();
    e.push(Owed::new(R::Parse, For::Reparse));
    e.push(Owed::new(R::Bind, For::Reparse));
    e.push(Owed::new(R::Sync, For::Reparse));
    e.push(Owed::new(R::Query, For::Client));
    e.push(Owed::new(R::Query, For::Client));
    receive(&mut e, b"E");
    let mut skipped = Vec::new();
    e.skip_to_sync(|owed| skipped.push(owed.request));
    assert_eq!(skipped, [R::Parse, R::Bind]);
    let mut to = |tag| e.receive(tag).unwrap().owed.to;
    assert_eq!(to(b'Z'), For::Reparse);
    assert_eq!(to(b'E'), For::Answered);
    assert_eq!(to(b'Z'), For::Answered);
    assert_eq!(to(b'C'), For::Client);
    receive(&mut e, b"Z");
    assert!(e.is_at_rest());
}

#[test]
fn an_error_in_a_simple_query_waits_for_its_ready_for_query() {
    let mut e = expect(&[Request::Query]);
    receive(&mut e, b"TDE");
    e.skip_to_sync(|owed| panic!("{owed:?} is not skipped"));
    receive(&mut e, b"Z");
    assert!(e.is_at_rest());
}

#[test]
fn syncs_before_the_end_of_copy_data_are_not_answered() {
    use Request as R;
    let mut e = expect(&[R::Bind, R::Execute, R::Sync]);
    receive(&mut e, b"2G");
    assert_eq!(e.copy(), Copy::In);
    e.push(Owed::new(R::Sync, For::Client));
    e.push(Owed::new(R::CopyEnd, For::Client));
    e.push(Owed::new(R::Sync, For::Client));
    receive(&mut e, b"CZ");
    assert!(e.is_at_rest());
}

#[test]
fn copy_data_sent_ahead_of_the_answer_counts_the_same() {
    use Request as R;
    let mut e = expect(&[R::Bind, R::Execute, R::Sync, R::CopyEnd, R::Sync]);
    receive(&mut e, b"2GCZ");
    assert!(e.is_at_rest());
}

#[test]
fn an_answer_nothing_asked_for_is_refused() {
    let mut e = expect(&[Request::Parse]);
    assert_eq!(e.receive(b'2'), Err(Unexpected(b'2')));
    assert_eq!(Expect::default().receive(b'Z'), Err(Unexpected(b'Z')));
}

#[test]
fn local_answers_wait_for_their_turn() {
    use Request as R;
    let mut e = expect(&[R::Bind]);
    e.push(Owed::new(R::Close, For::Local));
    e.push(Owed::new(R::Sync, For::Client));
    assert_eq!(e.take_local(), None);
    receive(&mut e, b"2");
    assert_eq!(e.take_local(), Some(R::Close));
    receive(&mut e, b"Z");
    assert!(e.is_at_rest());
}

#[test]
fn changes_of_earlier_exchanges_are_uncertain_until_they_are_answered() {
    use Request as R;
    let parse = |statement| Owed {
        statement,
        ..Owed::new(R::Parse, For::Client)
    };
    let mut e = Expect::default();
    e.push(parse(1));
    e.push(Owed::new(R::Bind, For::Client));
    assert!(!e.is_changing());
    e.push(Owed::new(R::Sync, For::Client));
    assert!(e.is_changing());
    e.push(parse(UNNAMED));
    receive(&mut e, b"1");
    assert!(!e.is_changing());
    e.push(Owed::new(R::Sync, For::Client));
    receive(&mut e, b"2ZE");
    e.skip_to_sync(|_| {});
    assert!(!e.is_changing());
}
