//! What the messages of a flight up to one Execute say of each other.

use crate::wire::frame::Frame;
use crate::wire::frontend;

/// Whether the unnamed portal is used once more before another takes its name.
pub(super) fn executes_again(behind: &[Frame]) -> bool {
    let next = behind.iter().find(|frame| match frame.tag() {
        b'B' | b'E' => true,
        b'D' => frame.body().first() == Some(&b'P'),
        _ => false,
    });
    next.is_some_and(|frame| frame.tag() != b'B')
}

/// Whether a portal is described that is not the one which the unit executes, or not any more.
pub(super) fn describes_another(unit: &[Frame]) -> bool {
    let Some(executed) = unit.last().filter(|frame| frame.tag() == b'E') else { return false };
    let Ok(executed) = frontend::execute(executed.body()).map(|execute| execute.portal) else { return false };
    let binds = |frame: &Frame| {
        frame.tag() == b'B' && frontend::bind_names(frame.body()).is_some_and(|(portal, _)| portal == executed)
    };
    let bound_at = unit.iter().rposition(binds).unwrap_or(0);
    unit.iter().enumerate().filter(|(_, frame)| frame.tag() == b'D').any(|(at, frame)| {
        let portal = frontend::target(frame.body()).ok().filter(|target| target.is_portal);
        portal.is_some_and(|portal| portal.name != executed || at < bound_at)
    })
}

/// The statement that a Bind or a Describe names.
pub(super) fn statement_of(frame: &Frame) -> Option<&[u8]> {
    match frame.tag() {
        b'B' => frontend::bind_names(frame.body()).map(|(_, statement)| statement),
        b'D' => frontend::target(frame.body()).ok().filter(|target| !target.is_portal).map(|target| target.name),
        _ => None,
    }
}

/// The statement that a Parse makes, or a Describe names.
pub(super) fn subject_of(frame: &Frame) -> Option<&[u8]> {
    match frame.tag() {
        b'P' => frontend::parse_names(frame.body()).map(|(name, _)| name),
        b'D' => statement_of(frame),
        _ => None,
    }
}

/// The statement that decides where a unit goes, and the place of its Bind if it is bound in it: what is executed, else what is bound last,
/// else what is prepared or described last.
pub(super) fn decides(unit: &[Frame]) -> (Option<&[u8]>, usize) {
    let executed = unit.last().filter(|frame| frame.tag() == b'E');
    let executed = executed.and_then(|frame| frontend::execute(frame.body()).ok()).map(|execute| execute.portal);
    let is_bound = |frame: &Frame| {
        let names =
            Some(frame).filter(|frame| frame.tag() == b'B').and_then(|frame| frontend::bind_names(frame.body()));
        names.is_some_and(|(portal, _)| executed.is_none_or(|executed| executed == portal))
    };
    match unit.iter().rposition(is_bound) {
        Some(at) => (statement_of(&unit[at]), at),
        None if executed.is_some() => (None, unit.len()),
        None => (unit.iter().rev().find_map(subject_of), unit.len()),
    }
}

/// How many messages in front of a unit can be seen to before it, if they are to be: Parses, Describes and Closes, where there are others
/// of them than of the one statement that is executed.
pub(super) fn front(unit: &[Frame]) -> usize {
    let is_of_statement = |frame: &Frame| matches!(frame.tag(), b'P' | b'C') || subject_of(frame).is_some();
    let len = unit.iter().position(|frame| !is_of_statement(frame)).unwrap_or(unit.len());
    let (own, bound_at) = decides(unit);
    let has_others = unit[..len].iter().filter_map(subject_of).any(|name| own != Some(name));
    // What is answered out of order would have been told before anybody has looked at it.
    let is_told_first =
        bound_at < unit.len() && unit[..len].iter().any(|frame| frame.tag() == b'P') && !asks_one_portal(unit);
    if has_others || is_told_first { len } else { 0 }
}

/// Whether it is a Parse that gives a statement that name.
pub(super) fn prepares(frame: &Frame, name: &[u8]) -> bool {
    frame.tag() == b'P' && frontend::parse_names(frame.body()).is_some_and(|(prepared, _)| prepared == name)
}

/// Whether a unit is (Parse), Bind, (Describe), Execute of one statement and the unnamed portal.
pub(super) fn asks_one_thing(unit: &[Frame]) -> bool {
    let bind = unit.iter().find(|frame| frame.tag() == b'B').and_then(|frame| frontend::bind_names(frame.body()));
    bind.is_some_and(|(portal, _)| portal.is_empty()) && asks_one_portal(unit)
}

/// The same of whatever portal.
pub(super) fn asks_one_portal(unit: &[Frame]) -> bool {
    // A Close at the front is of something else, and answered first.
    let order = unit.iter().map(Frame::tag).skip_while(|&tag| tag == b'C').filter(|&tag| tag != b'D');
    if !order.clone().eq(*b"PBE") && !order.eq(*b"BE") {
        return false;
    }
    let bind = unit.iter().find(|frame| frame.tag() == b'B').and_then(|frame| frontend::bind_names(frame.body()));
    let Some((portal, statement)) = bind else { return false };
    unit.iter().all(|frame| match frame.tag() {
        b'P' => frontend::parse(frame.body()).is_ok_and(|parse| parse.name == statement),
        b'D' => frontend::target(frame.body())
            .is_ok_and(|describe| describe.name == if describe.is_portal { portal } else { statement }),
        b'E' => frontend::execute(frame.body()).is_ok_and(|execute| execute.portal == portal),
        _ => true,
    })
}
