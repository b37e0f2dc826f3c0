//! EXPLAIN of a gathered statement: what the shards would ship, and how the coordinator would run the rest; with ANALYZE, how they
//! have.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::order::{KeptTo, Order};
use super::ship::{Shipped, ship};
use super::{
    Leg, READ_AS_SET, READ_EXACTLY, Run, bind, cancelled, describe_first, make_views, of_pgherds_own, of_views,
    open_all, prepare, read_texts, set_exact_texts, tune,
};
use crate::error::Error;
use crate::exec::fanout::{Failure, line_of};
use crate::plan::distribute::Shipment;
use crate::sql::Explaining;
use crate::wire::writer;

/// What is told of a gathered statement.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// One for each of the plan's shipments.
    pub shipments: Vec<ToldShipment>,
    /// What the coordinator's PostgreSQL says, line by line.
    pub statement: Vec<String>,
}

/// What is told of one table on its way.
#[derive(Debug, Clone, Default)]
pub struct ToldShipment {
    /// What each shard's PostgreSQL says of its part, line by line.
    pub plans: Vec<Vec<String>>,
    /// What each shard has shipped, where it was run.
    pub shipped: Vec<Shipped>,
    /// The keys that its rows were kept to.
    pub kept: Vec<KeptTo>,
    /// From the first COPY to the last row's arrival, where it was run.
    pub took: Duration,
}

/// Tells how the statement runs; legs as for [`super::run`]. Also returns the legs that did not come to rest.
pub async fn explain<L: Leg>(
    run: &Run<'_>,
    asked: &Explaining,
    legs: &mut [L],
    cancel: &CancellationToken,
) -> (Result<Told, Failure>, Vec<usize>) {
    let mut lines: Vec<Line<'_, L>> = legs.iter_mut().map(Line::new).collect();
    let result = match lines.split_last_mut() {
        Some((coordinator, shards)) if shards.len() == run.plan.shards.len() && !shards.is_empty() => {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Failure::Own(cancelled())),
                told = tell(run, asked, shards, coordinator) => told,
            }
        }
        _ => Err(Failure::Own(Error::internal("a gathered statement has a leg for each shard and one more"))),
    };
    if result.is_err() {
        let rest = join_all(lines.iter_mut().map(Line::bring_to_rest));
        // Who is not idle by then is reported as broken.
        let _ = tokio::time::timeout(run.drain_timeout, rest).await;
    }
    let broken = (0..lines.len()).filter(|&at| !lines[at].is_at_rest()).collect();
    (result, broken)
}

async fn tell<L: Leg>(
    run: &Run<'_>,
    asked: &Explaining,
    shards: &mut [Line<'_, L>],
    coordinator: &mut Line<'_, L>,
) -> Result<Told, Failure> {
    tokio::try_join!(describe_first(run, shards), prepare(run, coordinator))?;
    // What is counted is told to nobody as one moment's.
    open_all(shards, None).await?;
    set_exact_texts(run, shards).await?;
    let mut told = Told::default();
    let mut sum = Shipped::default();
    told.shipments = vec![ToldShipment::default(); run.plan.shipments.len()];
    // Which keys there are is known only where tables are shipped.
    let mut order = Order::new(run, asked.analyze);
    read_texts(run, coordinator, READ_EXACTLY).await?;
    while let Some(turn) = order.next(shards).await? {
        let shipment = &run.plan.shipments[turn.at];
        let one = &mut told.shipments[turn.at];
        let select = if asked.analyze { &turn.select } else { shipment.select.as_bytes() };
        one.plans = plans(shipment, select, asked, shards).await.map_err(|failure| of_views(shipment, failure))?;
        one.kept = turn.kept.clone();
        if asked.analyze {
            let since = Instant::now();
            let shipping = ship(shipment, &turn.select, shards, coordinator, &mut sum, run.budget);
            one.shipped = shipping.await.map_err(|failure| of_views(shipment, failure))?;
            one.took = since.elapsed();
            tune(shipment, &one.shipped, coordinator).await?;
            order.note(&turn, &one.shipped, coordinator).await?;
        } else {
            tune(shipment, &[], coordinator).await?;
        }
    }
    read_texts(run, coordinator, READ_AS_SET).await?;
    make_views(run, coordinator).await?;
    shards.iter_mut().for_each(|line| line.query("ROLLBACK"));
    try_join_all(shards.iter_mut().map(|line| line.settle(|_| {}))).await?;
    coordinator.query("SET TRANSACTION READ ONLY");
    coordinator.settle(|_| {}).await.map_err(of_pgherds_own)?;
    let sql = [&*asked.written, &run.plan.sql].concat();
    let out = coordinator.out();
    writer::parse(out, b"", sql.as_bytes(), run.types);
    bind(out, run);
    writer::execute(out, b"", 0);
    coordinator.sync();
    coordinator.settle(|frame| told.statement.extend(line_of(frame))).await.map_err(of_pgherds_own)?;
    coordinator.query("ROLLBACK");
    coordinator.settle(|_| {}).await?;
    Ok(told)
}

async fn plans<L: Leg>(
    shipment: &Shipment,
    select: &[u8],
    asked: &Explaining,
    shards: &mut [Line<'_, L>],
) -> Result<Vec<Vec<String>>, Failure> {
    let sql = [asked.plain.as_bytes(), select].concat();
    let mut plans = Vec::new();
    for &from in &shipment.from {
        let Some(line) = shards.get_mut(from) else { continue };
        line.query_bytes(&sql);
        let mut plan = Vec::new();
        line.settle(|frame| plan.extend(line_of(frame).map(shortened))).await.map_err(of_pgherds_own)?;
        plans.push(plan);
    }
    Ok(plans)
}

/// A line of a plan without most of a long list of keys.
fn shortened(line: String) -> String {
    /// What is left of a list.
    const SHOWN_BYTES: usize = 60;
    let Some((before, list)) = line.split_once("ANY ('{") else { return line };
    let Some((list, behind)) = list.split_once("}'::").filter(|(list, _)| list.len() > SHOWN_BYTES) else {
        return line;
    };
    let shown = list.char_indices().take_while(|(at, _)| *at < SHOWN_BYTES).last().map_or(0, |(at, _)| at);
    format!("{before}ANY ('{{{}...}}'::{}", list.get(..shown).unwrap_or_default(), shortened(behind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_long_list_of_keys_is_cut_and_the_rest_of_the_line_is_not() {
        let long = vec!["1234567"; 30].join(",");
        let line = format!("Filter: ((k = ANY ('{{{long}}}'::integer[])) AND (n = ANY ('{{1,2}}'::integer[])))");
        let wanted =
            format!("Filter: ((k = ANY ('{{{}...}}'::integer[])) AND (n = ANY ('{{1,2}}'::integer[])))", &long[..59]);
        assert_eq!(shortened(line), wanted);
        assert_eq!(shortened("Filter: (é = ANY ('{1}'::integer[]))".into()), "Filter: (é = ANY ('{1}'::integer[]))");
    }
}
