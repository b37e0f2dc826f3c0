use super::*;
use crate::sql::Analyzer;

fn doing_of(text: &str, failed: bool) -> Result<Option<Doing>, Error> {
    doing(&Analyzer::new().facts(text.as_bytes(), true), failed)
}

fn after(texts: &[&str]) -> Vec<String> {
    let (mut channels, mut done): (Vec<Channel>, Vec<Step>) = (vec!["old".into()], Vec::new());
    for text in texts {
        let Some(doing) = doing_of(text, false).expect(text) else { continue };
        doing.steps.into_iter().for_each(|step| take_step(&mut done, step));
        match doing.ending {
            Some(Ending::Commit) => done.drain(..).for_each(|step| carry_out(&mut channels, &step)),
            Some(Ending::Rollback) => done.clear(),
            None => {}
        }
    }
    channels.iter().map(|channel| channel.to_string()).collect()
}

#[test]
fn what_is_listened_to_is_what_was_committed() {
    for (texts, channels) in [
        (&["listen A", "listen \"A\"", "commit"][..], &["old", "a", "A"][..]),
        (&["listen a", "rollback"], &["old"]),
        (&["unlisten old", "rollback", "commit"], &["old"]),
        (&["unlisten *", "listen a", "commit and chain"], &["a"]),
        (&["listen a", "unlisten *", "end"], &[]),
        (&["listen a", "savepoint s", "listen b", "rollback to s", "commit"], &["old", "a"]),
        (&["listen a", "savepoint s", "listen b", "release s", "commit"], &["old", "a", "b"]),
        (&["savepoint s", "listen a", "rollback work to savepoint s", "listen b", "commit"], &["old", "b"]),
        (
            &["listen a", "savepoint S", "listen b", "savepoint s", "listen c", "rollback to \"s\"", "commit"],
            &["old", "a", "b"],
        ),
        (
            &["savepoint s", "listen a", "savepoint s", "listen b", "release s", "rollback to s", "listen c", "commit"],
            &["old", "c"],
        ),
        (&["listen a; unlisten old; listen b", "begin; listen c; commit"], &["a", "b", "c"]),
    ] {
        let mut found = after(texts);
        let mut expected: Vec<String> = channels.iter().map(|name| (*name).to_owned()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{texts:?}");
    }
}

#[test]
fn a_string_whose_parts_may_fail_apart_is_refused() {
    for text in ["listen a; commit; listen b", "savepoint s; listen a", "listen a; rollback to s", "rollback; listen a"]
    {
        assert!(doing_of(text, false).is_err(), "{text}");
    }
}

#[test]
fn in_a_failed_transaction_nothing_is_listened_to_and_commit_is_rollback() {
    assert_eq!(doing_of("listen a", true).expect("nothing"), None);
    assert_eq!(doing_of("savepoint s", true).expect("nothing"), None);
    assert_eq!(doing_of("select 1; commit", true).expect("nothing"), None);
    let ends = doing_of("commit", true).expect("an end").expect("an end");
    assert_eq!((ends.ending, ends.steps.len()), (Some(Ending::Rollback), 0));
    let back = doing_of("rollback to s", true).expect("steps").expect("steps");
    assert_eq!(back.steps, [Step::RollbackTo("s".into())]);
}

#[test]
fn names_are_cut_as_postgresql_cuts_them() {
    let long = "x".repeat(70);
    assert_eq!(truncated(&long), "x".repeat(63));
    let odd = format!("{}äb", "x".repeat(62));
    assert_eq!(truncated(&odd), "x".repeat(62), "never within a character");
    assert_eq!(truncated("a"), "a");
}

#[test]
fn the_binary_head_of_a_notification_says_nothing_about_its_text() {
    assert!(is_ascii(b"A\0\0\0\x10\xff\xff\xff\xffchannel\0\0"));
    assert!(!is_ascii("A\0\0\0\x10pid_ch\u{e4}nnel\0\0".as_bytes()));
}
