//! Carrying a plan out.

pub mod capture;
pub mod coordinator;
pub mod copy_in;
pub mod explain;
pub mod fanout;
pub mod insert_select;
pub mod key_move;
pub mod merge;
pub mod readonly;
pub mod relay;
pub mod scatter;
pub mod two_phase;
