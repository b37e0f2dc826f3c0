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

/// Whether it is a Parse that gives a statement that name.
pub(super) fn prepares(frame: &Frame, name: &[u8]) -> bool {
    frame.tag() == b'P' && frontend::parse_names(frame.body()).is_some_and(|(prepared, _)| prepared == name)
}

/// Whether a unit is (Parse), Bind, (Describe), Execute of one statement and the unnamed portal.
pub(super) fn asks_one_thing(unit: &[Frame]) -> bool {
    // A Close at the front is of something else, and answered first.
    let order = unit.iter().map(Frame::tag).skip_while(|&tag| tag == b'C').filter(|&tag| tag != b'D');
    if !order.clone().eq(*b"PBE") && !order.eq(*b"BE") {
        return false;
    }
    let bind = unit.iter().find(|frame| frame.tag() == b'B').and_then(|frame| frontend::bind_names(frame.body()));
    let Some((portal, statement)) = bind else { return false };
    portal.is_empty()
        && unit.iter().all(|frame| match frame.tag() {
            b'P' => frontend::parse(frame.body()).is_ok_and(|parse| parse.name == statement),
            b'D' => frontend::target(frame.body())
                .is_ok_and(|describe| describe.name == if describe.is_portal { portal } else { statement }),
            b'E' => frontend::execute(frame.body()).is_ok_and(|execute| execute.portal == portal),
            _ => true,
        })
}
