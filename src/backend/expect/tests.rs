use super::*;

fn expects(list: impl IntoIterator<Item = Expect>) -> Expects {
    let mut expects = Expects::default();
    list.into_iter().for_each(|expect| expects.push(expect));
    expects
}

#[test]
fn an_error_skips_everything_up_to_the_sync() {
    let name = Bytes::from_static(b"s1");
    let parse = Expect::Parse { hidden: false, statement: None, client_name: Some((name.clone(), 1)) };
    let mut owed = expects([Expect::Bind(About::default()), parse, Expect::Execute, Expect::Sync { hidden: false }]);
    let mut consequences = Consequences::default();
    assert_eq!(owed.answer(b'E', &mut consequences), Ok(Verdict::Forward));
    assert_eq!(consequences.lost_names, [LostName { name, serial: 1, is_skipped: true }]);
    assert!(consequences.lost_unnamed);
    assert!(!owed.is_skipping());
    assert_eq!(owed.answer(b'Z', &mut consequences), Ok(Verdict::Forward));
    assert!(owed.is_empty());
}

#[test]
fn a_parse_of_what_the_server_holds_is_answered_behind_a_plain_answer() {
    let mut owed = expects([Expect::Execute, Expect::HeldParse(Bytes::from_static(b"s1"), 1)]);
    assert!(owed.is_plain_answer(b'C') && owed.note_plain_answer(b'C'));
    assert_eq!(owed.take_injection().as_deref(), Some(PARSE_COMPLETE));
}

#[test]
fn a_parse_may_be_skipped_where_a_sync_stands_behind_it() {
    let parse = || Expect::HeldParse(Bytes::from_static(b"s1"), 7);
    let sync = || Expect::Sync { hidden: false };
    assert!(expects([Expect::Execute, parse(), sync()]).may_skip(7));
    assert!(!expects([Expect::Execute, parse(), sync()]).may_skip(8));
    assert!(!expects([sync(), Expect::Execute, parse()]).may_skip(7), "what follows is skipped with it");
}

#[test]
fn an_error_without_a_sync_behind_it_leaves_the_server_skipping() {
    let mut owed = expects([Expect::Bind(About::default()), Expect::Execute]);
    assert_eq!(owed.answer(b'E', &mut Consequences::default()), Ok(Verdict::Forward));
    assert!(owed.is_skipping());
    owed.push(Expect::Sync { hidden: false });
    assert!(!owed.is_skipping());
}

#[test]
fn what_pgherd_asked_for_never_reaches_the_client() {
    let mut owed = expects([
        Expect::HiddenQuery,
        Expect::Parse { hidden: true, statement: None, client_name: None },
        Expect::Bind(About::default()),
    ]);
    let mut consequences = Consequences::default();
    for (tag, verdict) in [(b'C', Verdict::Swallow), (b'Z', Verdict::Swallow), (b'1', Verdict::Swallow)] {
        assert_eq!(owed.answer(tag, &mut consequences), Ok(verdict));
    }
    assert_eq!(owed.answer(b'2', &mut consequences), Ok(Verdict::Forward));
}

#[test]
fn what_stands_behind_a_begin_that_fails_is_skipped() {
    let mut owed = expects([Expect::HiddenBegin, Expect::Query]);
    assert!(owed.is_hidden() && !owed.is_unsynced());
    let mut consequences = Consequences::default();
    assert_eq!(owed.answer(b'1', &mut consequences), Ok(Verdict::Swallow));
    assert_eq!(owed.answer(b'E', &mut consequences), Ok(Verdict::Swallow));
    assert!(owed.is_empty() && owed.is_skipping());
    let mut owed = expects([Expect::HiddenBegin, Expect::Query]);
    for tag in *b"12C3" {
        assert_eq!(owed.answer(tag, &mut consequences), Ok(Verdict::Swallow));
    }
    assert_eq!(owed.answer(b'Z', &mut consequences), Ok(Verdict::Forward));
    assert!(owed.is_empty());
}

#[test]
fn a_message_that_answers_nothing_is_unexpected() {
    let mut owed = expects([Expect::Bind(About::default())]);
    assert_eq!(owed.answer(b'D', &mut Consequences::default()), Err(Unexpected(b'D')));
    assert_eq!(Expects::default().answer(b'Z', &mut Consequences::default()), Err(Unexpected(b'Z')));
}

#[test]
fn a_sync_sent_into_copy_in_is_never_answered() {
    let mut owed = expects([Expect::Execute, Expect::Sync { hidden: false }]);
    owed.copy_in_started();
    assert_eq!(owed.answer(b'C', &mut Consequences::default()), Ok(Verdict::Forward));
    assert!(owed.is_empty());
    assert!(owed.is_unsynced(), "its implicit transaction is still open");
}

#[test]
fn a_query_behind_a_failed_pipeline_is_skipped_too() {
    let mut owed = expects([Expect::Bind(About::default()), Expect::Query]);
    assert_eq!(owed.answer(b'E', &mut Consequences::default()), Ok(Verdict::Forward));
    assert!(owed.is_empty() && owed.is_skipping() && owed.is_unsynced());
}

#[test]
fn a_query_behind_a_pipeline_ends_its_implicit_transaction() {
    let mut owed = expects([Expect::Bind(About::default()), Expect::Query]);
    for tag in [b'2', b'C', b'Z'] {
        assert_eq!(owed.answer(tag, &mut Consequences::default()), Ok(Verdict::Forward));
    }
    assert!(owed.is_empty() && !owed.is_unsynced());
}

#[test]
fn a_poisoned_query_is_answered_by_its_own_ready() {
    let error = Bytes::from_static(b"E");
    let mut owed = expects([Expect::Poison(error.clone()), Expect::Query]);
    assert!(owed.is_poisoned() && !owed.is_unsynced());
    assert_eq!(owed.answer(b'E', &mut Consequences::default()), Ok(Verdict::Replace(error)));
    assert_eq!(owed.answer(b'Z', &mut Consequences::default()), Ok(Verdict::Forward));
    assert!(owed.is_empty() && !owed.is_unsynced());
}

#[test]
fn statements_of_pgherds_in_a_clients_string_are_not_told() {
    let mut owed = expects([Expect::Spliced(VecDeque::from([false, true, false]))]);
    let mut consequences = Consequences::default();
    let mut verdicts = String::new();
    for tag in *b"CTDCTDCZ" {
        assert_eq!(owed.hides_rows() && tag != b'Z', (1..4).contains(&verdicts.len()));
        let verdict = owed.answer(tag, &mut consequences).expect("expected");
        verdicts.push(if verdict == Verdict::Swallow { '-' } else { char::from(tag) });
    }
    assert_eq!(verdicts, "C---TDCZ");
    assert!(owed.is_empty());
}

#[test]
fn a_statement_that_the_server_holds_is_not_prepared_behind_an_error() {
    let name = Bytes::from_static(b"s1");
    let mut owed =
        expects([Expect::Bind(About::default()), Expect::HeldParse(name.clone(), 7), Expect::Sync { hidden: false }]);
    let mut consequences = Consequences::default();
    assert_eq!(owed.answer(b'E', &mut consequences), Ok(Verdict::Forward));
    assert_eq!(consequences.lost_names, [LostName { name: name.clone(), serial: 7, is_skipped: true }]);
    let mut owed = expects([Expect::Bind(About::default()), Expect::HeldParse(name, 7)]);
    assert_eq!(owed.answer(b'2', &mut consequences), Ok(Verdict::Forward));
    assert_eq!(owed.take_injection().as_deref(), Some(PARSE_COMPLETE));
}

#[test]
fn a_statement_that_is_prepared_once_more_is_lost_by_its_own_error_and_by_no_other() {
    let statement = crate::backend::statements::Registry::default().private(Bytes::from_static(b"select 1"), &[], None);
    let again = || Expect::Reparse(Arc::clone(&statement), Bytes::from_static(b"s"), 1);
    for (before, lost) in [(None, 1), (Some(Expect::Bind(About::default())), 0)] {
        let mut owed = expects(before.into_iter().chain([again(), Expect::Sync { hidden: false }]));
        let mut consequences = Consequences::default();
        assert_eq!(owed.answer(b'E', &mut consequences), Ok(Verdict::Forward));
        assert_eq!((consequences.lost_names.len(), consequences.lost_statements.len()), (1, lost));
    }
}

#[test]
fn a_close_that_was_skipped_is_known_to_be_open() {
    let mut owed =
        expects([Expect::Bind(About::default()), Expect::Close { hidden: true }, Expect::Sync { hidden: false }]);
    let mut consequences = Consequences::default();
    assert_eq!(owed.answer(b'E', &mut consequences), Ok(Verdict::Forward));
    assert!(consequences.lost_close);
}
