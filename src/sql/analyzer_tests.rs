use super::*;
use crate::sql::facts::Route;

#[test]
fn texts_that_differ_in_literals_share_their_facts() {
    let analyzer = Analyzer::new();
    let one = analyzer.facts(b"select a from t where id = 1", true);
    let two = analyzer.facts(b"SELECT a FROM t WHERE id = 22 -- y", true);
    assert!(Arc::ptr_eq(&one, &two));
}

#[test]
fn facts_that_depend_on_a_literal_are_told_apart() {
    let analyzer = Analyzer::new();
    for (text, name) in [
        ("select set_config('a', 'x', false)", "a"),
        ("select set_config('b', 'x', false)", "b"),
        ("select set_config('a', 'x', false)", "a"),
    ] {
        let facts = analyzer.facts(text.as_bytes(), true);
        assert_eq!(facts.statements[0].effects, [Effect::Set(name.into())], "{text}");
    }
    let local = analyzer.facts(b"select set_config('a', 'x', true)", true);
    assert_eq!(local.statements[0].effects, [Effect::SetLocal("a".into())]);
}

#[test]
fn a_literal_may_say_whether_explain_runs_its_statement() {
    let analyzer = Analyzer::new();
    for (text, class) in [
        ("explain (analyze 0) delete from t", Class::Utility),
        ("explain (analyze 1) delete from t", Class::Write),
        ("explain (analyze 'off') delete from t", Class::Utility),
        ("explain (analyze 'on') delete from t", Class::Write),
        ("explain (\"analyze\") delete from t", Class::Write),
        ("explain (\"analyze\" off) delete from t", Class::Utility),
    ] {
        assert_eq!(analyzer.facts(text.as_bytes(), true).class(), class, "{text}");
    }
}

#[test]
fn statements_do_not_nest_however_often_a_text_says_so() {
    let run = || {
        let analyzer = Analyzer::new();
        for opening in ["explain ", "explain (verbose) ", "prepare a as ", "declare a cursor for ", "copy ("] {
            let text = opening.repeat(50_000);
            assert_eq!(analyzer.facts(text.as_bytes(), true).statements.len(), 1, "{opening}");
        }
    };
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(run).expect("a thread");
    thread.join().expect("no overflow");
}

#[test]
fn a_cursor_may_be_called_cursor() {
    for (name, effect) in [("c", Effect::HoldCursor), ("cursor", Effect::HoldCursor)] {
        let facts = Analyzer::new().facts(format!("declare {name} cursor with hold for select 1").as_bytes(), true);
        assert_eq!(facts.statements[0].effects, [effect], "{name}");
    }
}

#[test]
fn hints_belong_to_the_text_that_holds_them() {
    let analyzer = Analyzer::new();
    let plain = analyzer.facts(b"select 1", true);
    let hinted = analyzer.facts(b"/* pgherd: cache=off route=replica */ select 1", true);
    assert_eq!(plain.hint.cache, None);
    assert_eq!((hinted.hint.cache, hinted.hint.route), (Some(false), Some(Route::Replica)));
    assert_eq!(plain.fingerprint, hinted.fingerprint);
}

#[test]
fn a_string_of_several_statements_is_as_strong_as_its_strongest() {
    let facts = Analyzer::new().facts(b"begin; select * from t; frob; update t set a = 1; commit", true);
    assert_eq!(facts.statements.len(), 5);
    assert_eq!(facts.statements[1].class, Class::Read);
    assert_eq!(facts.statements[3].class, Class::Write);
    assert_eq!(facts.class(), Class::Opaque);
    assert_eq!(Analyzer::new().facts(b" ; -- nothing", true).class(), Class::Empty);
}

#[test]
fn the_memo_stays_within_its_bytes() {
    let analyzer = Analyzer::with_memo_bytes(16 * 1024);
    for i in 0..1_000 {
        analyzer.facts(format!("select c{i} from t{i}").as_bytes(), true);
    }
    analyzer.memo.run_pending_tasks();
    assert!(analyzer.memo.weighted_size() <= 16 * 1024);
}

#[test]
fn long_chains_are_read_on_a_small_stack() {
    let run = || {
        let analyzer = Analyzer::new();
        for repeat in ["1 + ", "x is null or ", "not ", "1 union select ", "a and b = 1 and ", "x::int::", "f(", "- "] {
            for count in [10, 600, 1_900, 3_900, 50_000] {
                analyzer.facts(format!("select {} 1", repeat.repeat(count)).as_bytes(), true);
            }
        }
    };
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(run).expect("a thread");
    thread.join().expect("no overflow");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(select|from|with|insert into|update|set|copy|explain|declare|prepare|reset|\\(|\\)|,|;|=|'a'|\\$1|t|\\.|to|as|for| |begin|table){0,25}") {
        Analyzer::with_memo_bytes(1 << 16).facts(text.as_bytes(), true);
    }

    #[test]
    fn no_bytes_make_it_panic(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100)) {
        Analyzer::with_memo_bytes(1 << 16).facts(&text, false);
    }
}
