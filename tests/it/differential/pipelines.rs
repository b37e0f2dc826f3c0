//! Statements sent in one flight before one Sync, one of which may fail.

use pgherd::wire::writer;
use rand::Rng;
use rand::rngs::StdRng;

use super::compare::{Outcome, Pair, Tally, comparable, differ_by_order_of_sets};
use super::statements::Select;
use crate::answers::Answer;
use crate::harness::wire::{Message, WireClient, bind};

/// How one statement of a flight is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    has_name: bool,
    describes_statement: bool,
    describes_portal: bool,
    format: i16,
    flushes: bool,
}

impl Form {
    pub(super) fn random(dice: &mut StdRng, is_binary: bool) -> Self {
        let mut chance = |percent: u32| dice.random_range(0..100) < percent;
        Self {
            has_name: chance(30),
            describes_statement: chance(15),
            describes_portal: chance(85),
            format: i16::from(is_binary && chance(60)),
            flushes: chance(15),
        }
    }
}

/// What came of one statement: its messages' tags, rows counted as one, and what they say.
type Part = (String, Answer);

impl Pair {
    /// Sends all of them to both in one flight each, and notes what came of it.
    pub(super) async fn pipeline(&mut self, flight: &[Select], forms: &[Form], tally: &mut Tally) -> Outcome {
        let named = |(select, form): (&Select, &Form)| format!("in a flight, {form:?}: {}", select.text);
        self.past.extend(flight.iter().zip(forms).map(named));
        let (wanted, status) = fly(&mut self.oracle, flight, forms).await;
        if wanted.iter().any(|(_, answer)| answer.code() == Some("57014")) {
            tally.left_out += 1;
            return Outcome::Apart;
        }
        let (given, own) = fly(&mut self.client, flight, forms).await;
        let texts = || flight.iter().map(|select| select.text.as_str()).collect::<Vec<_>>().join(";\n");
        if given != wanted
            && let Some((_, refused)) = given.last().filter(|(_, answer)| answer.code() == Some("0A000"))
            && wanted.get(..given.len() - 1) == Some(&given[..given.len() - 1])
        {
            tally.refuse(refused, &texts());
            return Outcome::Apart;
        }
        if given == wanted && status == own {
            tally.equal += given.len();
            tally.of_rows += given.iter().filter(|(_, answer)| !answer.columns.is_empty()).count();
            tally.with_rows += given.iter().filter(|(_, answer)| !answer.rows.is_empty()).count();
            return Outcome::Alike;
        }
        let divides = |parts: &[Part]| parts.iter().any(|(_, answer)| answer.code() == Some("22012"));
        if divides(&given) != divides(&wanted) {
            // Of which rows a condition is asked that may divide by zero is the planner's choice.
            tally.left_out += 1;
            return Outcome::Apart;
        }
        let by_order_of_sets = |at: usize| {
            let ((told, given), (wanted_told, wanted)) = (&given[at], &wanted[at]);
            told == wanted_told && differ_by_order_of_sets(&flight[at], wanted, given)
        };
        let both = given.len().min(wanted.len());
        let differs: Vec<usize> = (0..both).filter(|&at| given[at] != wanted[at]).collect();
        let is_alike_beside = own == status && given.len() == wanted.len();
        if is_alike_beside && !differs.is_empty() && differs.iter().all(|&at| by_order_of_sets(at)) {
            tally.left_out += 1;
            return Outcome::Alike;
        }
        let at = differs.first().copied().unwrap_or(both);
        tally.wrong.push(format!(
            "in one flight {forms:?}: {}\n  statement {at}, then {own}: {:?}\n  instead of {status}: {:?}",
            texts(),
            given.get(at),
            wanted.get(at)
        ));
        Outcome::Wrong
    }
}

async fn fly(client: &mut WireClient, flight: &[Select], forms: &[Form]) -> (Vec<Part>, char) {
    client
        .say(|out| {
            for (select, form) in flight.iter().zip(forms) {
                let name = if form.has_name { "flown" } else { "" };
                if form.has_name {
                    writer::close(out, b'S', name.as_bytes());
                }
                let types: Vec<u32> = select.parameters.iter().map(|parameter| parameter.oid).collect();
                let values: Vec<Option<&str>> =
                    select.parameters.iter().map(|parameter| parameter.value.as_deref()).collect();
                writer::parse(out, name.as_bytes(), select.text.as_bytes(), &types);
                if form.describes_statement {
                    writer::describe(out, b'S', name.as_bytes());
                }
                bind(out, "", name, &values, form.format);
                if form.describes_portal {
                    writer::describe(out, b'P', b"");
                }
                writer::execute(out, b"", 0);
                if form.flushes {
                    writer::flush(out);
                }
            }
            writer::sync(out);
        })
        .await;
    let messages: Vec<Message> = client.until_ready().await;
    let status = messages.last().map_or(' ', |ready| char::from(ready.body[0]));
    let told = messages.into_iter().filter(|message| !b"NSZ".contains(&message.tag)).collect::<Vec<_>>();
    let parts = told.split_inclusive(|message| b"CsIE".contains(&message.tag)).zip(flight);
    (parts.map(|(messages, select)| part(messages, select)).collect(), status)
}

fn part(messages: &[Message], select: &Select) -> Part {
    let mut answer = comparable(select, Answer::read(messages));
    if let Some((code, message)) = &mut answer.error {
        // How many rows come before an error is chance, and what it says may name places in the text.
        if code != "0A000" {
            message.clear();
        }
        answer.rows.clear();
    }
    let failed = answer.error.is_some();
    let mut tags: Vec<char> = messages.iter().map(|message| char::from(message.tag)).collect();
    tags.dedup();
    // Whether ParseComplete and BindComplete come before an error in parse analysis is left out: pgherd tells them where a statement
    // over several shards is found to be wrong by the shards.
    tags.retain(|&tag| !failed || !"D123".contains(tag));
    (tags.into_iter().collect(), answer)
}
