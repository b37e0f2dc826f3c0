//! Lives of clients that speak through a driver: what it believes of its statements and transactions must hold too.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Error;

use super::scene::Scene;
use crate::harness::try_connect;

/// Lives one life; what goes wrong is noted in the scene.
pub(super) async fn live(scene: &Scene, number: u64) {
    let mut said = Vec::new();
    let told = tell(scene, number, &mut said).await;
    scene.figures.lives.more();
    match told {
        Ok(Ok(())) => scene.figures.deaths.more(),
        Ok(Err(what)) => scene.wrong(number, &said, what),
        Err(error) => {
            let code = error.code().map(|code| code.code().to_owned());
            let lost = error.is_closed()
                || code.as_deref().is_none_or(|it| it.starts_with("08") || it.starts_with("57P") || it == "53300");
            if scene.kills && lost {
                scene.figures.lost.more();
            } else {
                scene.wrong(number, &said, format!("DRIVER {error:?}"));
            }
        }
    }
}

/// The outer error is the driver's, the inner one what must never be.
async fn tell(scene: &Scene, number: u64, said: &mut Vec<String>) -> Result<Result<(), String>, Error> {
    let mut random = StdRng::seed_from_u64(scene.seed.wrapping_add(number));
    let mark = format!("me_{:07}", number % 10_000_000);
    let conninfo = format!(
        "host=127.0.0.1 port={} user=postgres dbname={} application_name={mark}",
        scene.port, scene.behind.name
    );
    let mut client = try_connect(&conninfo).await?;
    client.execute("select set_config('app.me', $1, false)", &[&mark]).await?;
    let own = client
        .prepare("select current_setting('app.me'), current_setting('application_name'), current_user, $1::int8")
        .await?;
    let insert = client.prepare("insert into rows values ($1, $2)").await?;
    let count = client.prepare("select count(*), min(owner), max(owner) from rows where owner = $1").await?;
    let mut rows = 0_i64;
    for _ in 0..random.random_range(2..25) {
        if scene.is_over() {
            break;
        }
        let n: i64 = random.random_range(0..1_000_000);
        said.push(format!("{n}"));
        let row = client.query_one(&own, &[&n]).await?;
        let seen: (String, String, String, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        if seen != (mark.clone(), mark.clone(), "postgres".to_owned(), n) {
            return Ok(Err(format!("FOREIGN: a driver's client {mark} saw {seen:?} where it asked for {n}")));
        }
        match random.random_range(0..4) {
            0 => {
                client.execute(&insert, &[&mark, &7_i32]).await?;
                rows += 1;
            }
            1 => {
                let transaction = client.transaction().await?;
                transaction.execute(&insert, &[&mark, &8_i32]).await?;
                transaction.batch_execute("set local work_mem to '9MB'; set local role none").await?;
                if random.random_bool(0.5) {
                    transaction.commit().await?;
                    rows += 1;
                } else {
                    transaction.rollback().await?;
                }
            }
            2 => {
                let texts = (0..4).map(|at| format!("select {at}::int4, '{mark}'"));
                let texts: Vec<String> = texts.collect();
                for (at, text) in (0..4_i32).zip(&texts) {
                    let row = client.query_one(text.as_str(), &[]).await?;
                    if (row.get::<_, i32>(0), row.get::<_, &str>(1)) != (at, mark.as_str()) {
                        return Ok(Err(format!("FOREIGN: a driver's client {mark} was given {row:?} for {text}")));
                    }
                }
            }
            _ => {
                let row = client.query_one(&count, &[&mark]).await?;
                let (found, least, most): (i64, Option<String>, Option<String>) = (row.get(0), row.get(1), row.get(2));
                if found != rows || [least, most].into_iter().flatten().any(|owner| owner != mark) {
                    return Ok(Err(format!("ROWS: {found} of {mark}'s {rows} rows are there")));
                }
            }
        }
        scene.figures.by_driver.more();
    }
    Ok(Ok(()))
}
