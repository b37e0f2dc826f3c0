//! The Lua scripts that read and change the shared state, each one atomic step.

use crate::cache::faults::Switches;

/// Which script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// The entry and whether it holds, or the epochs for a fill.
    Lookup,
    /// Compare and set.
    Store,
    /// Add a token to sets of doubts.
    Raise,
    /// Take tokens away and give new epochs.
    Settle,
    /// Become a member, with all open doubts.
    Register,
    /// Stay one.
    Heartbeat,
    /// Act upon what is of interest, and mark what is open of it.
    Act,
    /// Publish and retire server processes.
    Backends,
    /// What is known of a member that has lapsed.
    Suspect,
    /// Remove a dead member.
    Remove,
    /// Stop being a member.
    Leave,
    /// What may be under way that nobody answers for.
    Orphans,
}

/// Writes of a relation that nobody looks at, after which nobody is told of more.
pub(super) const WITHDRAWN_AFTER: u32 = if cfg!(test) { 8 } else { 256 };

pub(super) const COUNT: usize = 12;

/// Each script's text, in the order of [`Script`].
const TEXTS: [&str; COUNT] = [
    include_str!("lua/lookup.lua"),
    include_str!("lua/store.lua"),
    include_str!("lua/raise.lua"),
    include_str!("lua/settle.lua"),
    include_str!("lua/register.lua"),
    include_str!("lua/heartbeat.lua"),
    include_str!("lua/act.lua"),
    include_str!("lua/backends.lua"),
    include_str!("lua/suspect.lua"),
    include_str!("lua/remove.lua"),
    include_str!("lua/leave.lua"),
    include_str!("lua/orphans.lua"),
];

/// The texts as they are sent, the shared functions in front.
pub(super) fn texts(faults: Switches) -> [String; COUNT] {
    let mut prelude = format!("local WITHDRAWN_AFTER = {WITHDRAWN_AFTER}\n{}", include_str!("lua/prelude.lua"));
    if faults.no_second_raise() {
        prelude = spoiled(&prelude, "  redis.call('HDEL', H, 'e:' .. oid)\n", "");
    }
    if faults.doubt_as_flag() {
        let removal = "string.sub(set, 1, first - 1) .. string.sub(set, last + 1)";
        prelude = spoiled(&prelude, removal, "''");
    }
    if faults.serve_while_lapsed() {
        prelude = spoiled(&prelude, "  if tonumber(head[4]) < now then return 'lapsed' end\n", "");
    }
    if faults.serve_while_young() {
        prelude = spoiled(&prelude, "  if now < tonumber(head[2]) + tonumber(head[3]) then return 'young' end\n", "");
    }
    if faults.serve_before_all_act() {
        prelude = spoiled(
            &prelude,
            "return nil, table.concat(packed), pending_for,",
            "return nil, table.concat(packed), nil,",
        );
    }
    TEXTS.map(|text| format!("{prelude}\n{text}"))
}

/// The text with a fault in it. That the fault is there must be certain: a test with a fault that is not there proves nothing.
fn spoiled(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the script has changed, the fault must follow");
    text.replacen(from, to, 1)
}
