//! A cursor over rows of several shards: the rows are shipped into the transaction of one coordinator connection, which then keeps
//! the cursor as PostgreSQL keeps any.

use futures_util::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::ship::{Shipped, without_position};
use super::{
    Leg, Run, bind, cancelled, describe_first, make_tables, may_be_a_conditions, of_pgherds_own, open_all,
    set_exact_texts, ship_all,
};
use crate::error::Error;
use crate::exec::fanout::{Failure, line_of};
use crate::exec::two_phase::TwoPhase;
use crate::wire::writer;

/// The transaction that a cursor is declared in.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// What begins it on the coordinator; empty where it has begun there.
    pub begin: &'a [&'a str],
    /// Whether it is to be READ ONLY from then on.
    pub read_only: bool,
    /// A number that no other cursor of the transaction has: its tables are called after it.
    pub serial: u64,
}

/// Declares the cursor: legs as for [`super::run`]; the coordinator is within the transaction afterwards, and after an error in
/// one that it did not begin. Also returns the legs that cannot be used again.
pub async fn declare<L: Leg>(
    run: &Run<'_>,
    opening: Opening<'_>,
    legs: &mut [L],
    cancel: &CancellationToken,
    two_phase: Option<&TwoPhase>,
) -> (Result<(), Failure>, Vec<usize>) {
    let mut lines: Vec<Line<'_, L>> = legs.iter_mut().map(Line::new).collect();
    let Some((coordinator, shards)) = lines.split_last_mut() else {
        return (Err(Failure::Own(Error::internal("a cursor has a coordinator"))), Vec::new());
    };
    // What a condition fails on FETCH is to tell, if it ever comes there: such a cursor is declared over whole tables. In a
    // transaction that has begun there is no second try.
    let is_new = !opening.begin.is_empty();
    let mut result =
        attempt(run, opening, shards, coordinator, cancel, How { with_conditions: is_new, two_phase }).await;
    if let Err(Failure::Server(frame)) = &result
        && is_new
        && may_be_a_conditions(frame)
        && coordinator.is_at_rest()
        && shards.iter().all(Line::is_at_rest)
    {
        result = attempt(run, opening, shards, coordinator, cancel, How { with_conditions: false, two_phase }).await;
    }
    let mut broken: Vec<usize> = (0..shards.len()).filter(|&at| !shards[at].is_at_rest()).collect();
    let is_fit = if result.is_ok() || !is_new { coordinator.has_stopped() } else { coordinator.is_at_rest() };
    if !is_fit {
        broken.push(shards.len());
    }
    (result, broken)
}

/// How rows are read.
#[derive(Clone, Copy)]
struct How<'a> {
    /// Whether the shards apply the query's conditions to what they ship.
    with_conditions: bool,
    two_phase: Option<&'a TwoPhase>,
}

async fn attempt<L: Leg>(
    run: &Run<'_>,
    opening: Opening<'_>,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    cancel: &CancellationToken,
    how: How<'_>,
) -> Result<(), Failure> {
    let result = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Own(cancelled())),
        result = steps(run, opening, shards, coordinator, how) => result,
    };
    if result.is_err() {
        let rest = join_all(shards.iter_mut().map(Line::bring_to_rest));
        let own = async {
            if opening.begin.is_empty() {
                coordinator.come_to_a_stop().await
            } else {
                coordinator.bring_to_rest().await
            }
        };
        // Who is not idle by then is reported as broken.
        let _ = tokio::time::timeout(run.drain_timeout, futures_util::future::join(rest, own)).await;
    }
    result
}

async fn steps<L: Leg>(
    run: &Run<'_>,
    opening: Opening<'_>,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
    how: How<'_>,
) -> Result<(), Failure> {
    if opening.begin.is_empty() {
        check_writable(coordinator).await?;
    }
    opening.begin.iter().for_each(|sql| coordinator.query(sql));
    tokio::try_join!(describe_first(run, shards), make_tables(run, coordinator, " ON COMMIT DROP"))?;
    let left = open_all(shards, how.two_phase).await?;
    set_exact_texts(run, shards).await?;
    let mut sum = Shipped::default();
    ship_all(run, shards, coordinator, &mut sum, how.with_conditions).await?;
    shards.iter_mut().for_each(|line| line.query("ROLLBACK"));
    try_join_all(shards.iter_mut().map(|line| line.settle(|_| {}))).await?;
    if let Some(left) = left {
        left.verdict().await.map_err(Failure::Own)?;
    }
    let out = coordinator.out();
    writer::parse(out, b"", run.plan.sql.as_bytes(), run.types);
    bind(out, run);
    writer::execute(out, b"", 0);
    coordinator.sync();
    coordinator.settle(|_| {}).await.map_err(|failure| match failure {
        Failure::Server(frame) if !run.plan.is_verbatim => Failure::Server(without_position(&frame)),
        other => other,
    })?;
    // The next cursor of the transaction ships rows of its own under the same names.
    for (at, shipment) in run.plan.shipments.iter().enumerate() {
        let (name, serial) = (&shipment.name, opening.serial);
        coordinator.query(&format!("ALTER TABLE pg_temp.{name} RENAME TO \"pgherd cursor {serial} table {at}\""));
    }
    for (at, view) in run.plan.views.iter().enumerate() {
        let (name, serial) = (&view.name, opening.serial);
        coordinator.query(&format!("ALTER VIEW pg_temp.{name} RENAME TO \"pgherd cursor {serial} view {at}\""));
    }
    if opening.read_only {
        coordinator.query("SET TRANSACTION READ ONLY");
    }
    coordinator.settle(|_| {}).await.map_err(of_pgherds_own)
}

/// A transaction that is READ ONLY already makes no tables, not even temporary ones.
async fn check_writable<L: Leg>(coordinator: &mut Line<'_, L>) -> Result<(), Failure> {
    coordinator.query("SHOW transaction_read_only");
    let mut is_read_only = false;
    coordinator.settle(|frame| is_read_only |= line_of(frame).is_some_and(|value| value == "on")).await?;
    if !is_read_only {
        return Ok(());
    }
    let error = Error::refused("a cursor over several shards in a READ ONLY transaction that has a server already");
    Err(Failure::Own(error.hint("Declare it first in its transaction, and no other there.")))
}
