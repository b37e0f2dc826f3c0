//! What a session can see of itself, asked of the server after every step, and two sides' answers compared.

use bytes::BytesMut;
use pgherd::wire::writer;
use rand::Rng;
use rand::rngs::StdRng;

use super::dice::Step;
use super::line::{Answer, Line, Until};
use crate::harness::wire::{Message, bind};

/// Settings that are looked at, with the two that only hidden code sets at the end.
pub(super) const LOOKED_AT: [&str; 22] = [
    "work_mem",
    "search_path",
    "application_name",
    "timezone",
    "datestyle",
    "intervalstyle",
    "extra_float_digits",
    "bytea_output",
    "statement_timeout",
    "lock_timeout",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "client_encoding",
    "standard_conforming_strings",
    "row_security",
    "enable_seqscan",
    "role",
    "app.me",
    "app.tenant",
    "app.other",
    "app.hidden",
    "enable_hashjoin",
];
/// How many at the end of [`LOOKED_AT`] only code sets that nobody sees: such a value may be lost, but never be another's.
const HIDDEN: usize = 2;

/// What else there is to see, each as text.
const SEEN: [&str; 7] = [
    "current_user",
    "session_user",
    "(select string_agg(objid::text, ',' order by objid) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory')",
    "(select string_agg(relname, ',' order by relname) from pg_class where relnamespace = pg_my_temp_schema())",
    "(select string_agg(name, ',' order by name) from pg_cursors where is_holdable)",
    "(select string_agg(channel, ',' order by channel) from pg_listening_channels() channel)",
    "(select count(*) || ' ' || coalesce(sum(n), 0) from rows where owner = current_setting('app.me', true))",
];

/// The question, with a mark that nobody else's answer has.
fn question(mark: &str) -> String {
    // A setting with a dot in its name, once set and reset, is empty where it was NULL before: that much a server remembers.
    let settings = LOOKED_AT.map(|name| format!("coalesce(current_setting('{name}', true), '')"));
    format!("select {mark}, {}, {}", SEEN.map(|it| format!("{it}::text")).join(", "), settings.join(", "))
}

/// Asks for everything, by one protocol or another.
pub(super) fn look(random: &mut StdRng, nonce: &str, has_prepared: &mut bool) -> Step {
    let mut said = BytesMut::new();
    match random.random_range(0..4) {
        0 => {
            writer::parse(&mut said, b"", question("$1::text").as_bytes(), &[]);
            bind(&mut said, "", "", &[Some(nonce)], 0);
            writer::describe(&mut said, b'P', b"");
            writer::execute(&mut said, b"", 0);
            writer::sync(&mut said);
        }
        1 => {
            if !*has_prepared {
                writer::close(&mut said, b'S', b"look");
                writer::parse(&mut said, b"look", question("$1::text").as_bytes(), &[25]);
            }
            *has_prepared = true;
            bind(&mut said, "", "look", &[Some(nonce)], 0);
            writer::execute(&mut said, b"", 0);
            writer::sync(&mut said);
        }
        _ => writer::query(&mut said, question(&format!("'{nonce}'")).as_bytes()),
    }
    Step { name: "look".to_owned(), said, until: Until::Ready(1), may_be_refused: true, pins: false, cancels: false }
}

/// ParameterStatus counts by its last word, a notification comes when it comes, and a notice about a text that is refused for its
/// name already is not given.
const NOT_COMPARED: [u8; 3] = *b"SAN";

/// How two sides' answers compare.
#[derive(Debug)]
pub(super) enum Verdict {
    /// They are equal.
    Same,
    /// pgherd lost its server, and said so.
    Lost,
    /// pgherd refused where it may.
    Refused,
    /// They differ, or somebody else's mark came.
    Wrong(String),
}

/// What a killed server, or a wait for one, may be told as.
fn is_loss(message: &Message) -> bool {
    let code = message.field(b'C').unwrap_or_default();
    // With a FATAL of 08P01 pgherd says that it has lost count of a server's answers; PostgreSQL's own says ERROR.
    let lost_count = code == "08P01" && message.field(b'V').is_some_and(|severity| severity == "FATAL");
    let is_lost = code.starts_with("08") || code.starts_with("57P") || code == "53300";
    message.tag == b'E' && is_lost && !lost_count
}

/// Whether marks of another client's stand in a message: `me_` and seven digits.
fn foreign_mark(message: &Message, own: &str) -> Option<String> {
    let bytes = &message.body;
    let found = bytes.windows(own.len()).filter(|window| window.starts_with(b"me_"));
    let digits = |window: &[u8]| window[3..].iter().all(u8::is_ascii_digit);
    let mut foreign = found.filter(|window| digits(window) && *window != own.as_bytes());
    foreign.next().map(|window| String::from_utf8_lossy(window).into_owned())
}

/// Compares what pgherd said with what a PostgreSQL of the client's own said.
pub(super) fn compare(
    step: &Step,
    own: &str,
    through: &Answer,
    straight: &Answer,
    lines: (&Line, &Line),
    has_failed: bool,
) -> Verdict {
    for message in &through.messages {
        if let Some(mark) = foreign_mark(message, own) {
            return Verdict::Wrong(format!("FOREIGN: {mark} in {message:?}"));
        }
    }
    if through.silent || straight.silent || straight.ended {
        return Verdict::Wrong(format!("SILENCE: {through:?}\nPostgreSQL: {straight:?}"));
    }
    if through.ended || through.messages.iter().any(is_loss) {
        return Verdict::Lost;
    }
    let refused = |answer: &Answer| answer.messages.iter().any(|it| it.field(b'C').as_deref() == Some("0A000"));
    if step.may_be_refused && refused(through) && !refused(straight) {
        return Verdict::Refused;
    }
    if has_failed && [through, straight].iter().all(|it| it.messages.iter().any(|message| message.tag == b'E')) {
        // Which of its errors a failed transaction gives depends on what the server connection holds.
        return Verdict::Same;
    }
    if is_lost_unnamed(through) {
        return Verdict::Refused;
    }
    let shown = |answer: &Answer| -> Vec<String> {
        answer.messages.iter().filter(|message| !NOT_COMPARED.contains(&message.tag)).map(show).collect()
    };
    let (ours, theirs) = (shown(through), shown(straight));
    if ours != theirs
        && !is_lost_where_hidden(&through.messages, &straight.messages)
        && !is_a_date_read_again(&through.messages, &straight.messages)
    {
        return Verdict::Wrong(difference(through, straight));
    }
    let (line, twin) = lines;
    if line.told != twin.told {
        let differ: Vec<_> = line.told.iter().filter(|(name, value)| twin.told.get(*name) != Some(*value)).collect();
        return Verdict::Wrong(format!("TOLD {differ:?} where PostgreSQL told {:?}", twin.told));
    }
    Verdict::Same
}

/// The first message that differs, and in a row the values that do.
fn difference(through: &Answer, straight: &Answer) -> String {
    let told = |answer: &Answer| -> Vec<Message> {
        answer.messages.iter().filter(|message| !NOT_COMPARED.contains(&message.tag)).cloned().collect()
    };
    let (ours, theirs) = (told(through), told(straight));
    let tags = |messages: &[Message]| messages.iter().map(|it| char::from(it.tag)).collect::<String>();
    let at = ours.iter().zip(&theirs).take_while(|(a, b)| show(a) == show(b)).count();
    let (a, b) = (ours.get(at), theirs.get(at));
    let place = format!("DIFFERS in message {at} of {} where PostgreSQL sent {}", tags(&ours), tags(&theirs));
    match (a, b) {
        (Some(a), Some(b)) if a.tag == b'D' && b.tag == b'D' => {
            let (a, b) = (a.values(), b.values());
            let names = ["nonce"]
                .into_iter()
                .chain(SEEN)
                .chain(LOOKED_AT)
                .map(|name| name.chars().take(40).collect::<String>());
            let values = names
                .zip(a.iter().zip(&b))
                .filter(|(_, (a, b))| a != b)
                .map(|(name, (a, b))| format!("{name}: {a:?} for {b:?}"));
            format!("{place}: {}", values.collect::<Vec<_>>().join("; "))
        }
        _ => format!("{place}\n     pgherd: {a:?}\n PostgreSQL: {b:?}"),
    }
}

/// Of an unnamed statement whose successor was skipped behind an error pgherd says that it does not exist, where PostgreSQL runs it.
fn is_lost_unnamed(through: &Answer) -> bool {
    let message = through.messages.iter().find(|message| message.tag == b'E').and_then(|it| it.field(b'M'));
    message.as_deref() == Some("unnamed prepared statement does not exist")
}

/// Whether two rows differ in nothing but the day and the month of the dice's own date. A constant in a prepared statement has the
/// meaning of the settings it was prepared under, until PostgreSQL throws its plans away (as every session's when it falls behind
/// with what it must hear of other sessions' DDL) and reads the text again under those of the moment.
fn is_a_date_read_again(ours: &[Message], theirs: &[Message]) -> bool {
    let row = |messages: &[Message]| messages.iter().find(|message| message.tag == b'D').map(Message::values);
    let swapped = |date: &str| date.replace("01", "MM").replace("02", "01").replace("MM", "02");
    let is_same = |(ours, theirs): (&Option<String>, &Option<String>)| match (ours, theirs) {
        (Some(a), Some(b)) => a == b || (a.len() == 10 && a.contains("2003") && swapped(a) == *b),
        (a, b) => a == b,
    };
    let tags = |messages: &[Message]| {
        messages.iter().map(|message| message.tag).filter(|tag| !NOT_COMPARED.contains(tag)).collect::<Vec<_>>()
    };
    let (Some(a), Some(b)) = (row(ours), row(theirs)) else { return false };
    tags(ours) == tags(theirs) && a.len() == b.len() && a.iter().zip(&b).all(is_same)
}

/// Whether two looks differ in nothing but hidden settings that pgherd has gone back to their defaults with.
fn is_lost_where_hidden(ours: &[Message], theirs: &[Message]) -> bool {
    let row = |messages: &[Message]| messages.iter().find(|message| message.tag == b'D').map(Message::values);
    let (Some(ours), Some(theirs)) = (row(ours), row(theirs)) else { return false };
    if ours.len() != 1 + SEEN.len() + LOOKED_AT.len() || theirs.len() != ours.len() {
        return false;
    }
    let seen = ours.len() - HIDDEN;
    let is_default = |value: &Option<String>| value.as_deref().is_none_or(|value| value.is_empty() || value == "on");
    ours[..seen] == theirs[..seen] && ours[seen..].iter().zip(&theirs[seen..]).all(|(a, b)| a == b || is_default(a))
}

/// A message without what differs by nature: tables' OIDs, and where in PostgreSQL's source an error comes from.
fn show(message: &Message) -> String {
    let mut message = message.clone();
    match message.tag {
        b'E' | b'N' => {
            let fields = message.body.split(|&byte| byte == 0);
            let fields = fields.filter(|field| !matches!(field.first(), Some(b'F' | b'L' | b'R' | b'H' | b'W')));
            message.body = fields.collect::<Vec<_>>().join(&0);
        }
        b'T' => {
            let mut at = 2;
            while let Some(end) = message.body[at..].iter().position(|&byte| byte == 0) {
                message.body[at + end + 1..at + end + 5].fill(0);
                at += end + 19;
            }
        }
        _ => {}
    }
    format!("{message:?}")
}
