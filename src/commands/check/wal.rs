//! Whether the primary lets pgherd follow writes made past it (`cache.wal`): the publication, room for a slot and a sender, a role that may,
//! and then the stream itself.

use std::time::Duration;

use tokio::time::timeout;

use super::client::{Client, Row, literal};
use super::report::Report;
use super::servers::{Part, Server, users_of};
use crate::backend::connect::Login;
use crate::backend::wal::Follower;
use crate::config::model::{Config, Database, Wal};
use crate::error::Error;
use crate::net::tls::ClientTls;

/// How long a slot may take: PostgreSQL waits for the transactions that are under way.
const PATIENCE: Duration = Duration::from_secs(20);
/// Tables that are named in a finding.
const MOST_NAMES: usize = 5;

/// wal_level, slots and senders (how many there may be, and are), whether the publication tells of all writes (NULL: there is none), and
/// which of the roles may replicate.
const FITNESS: &str = "\
    SELECT pg_catalog.current_setting('wal_level'), \
    pg_catalog.current_setting('max_replication_slots'), (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), \
    pg_catalog.current_setting('max_wal_senders'), (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication), \
    (SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate FROM pg_catalog.pg_publication AS p WHERE p.pubname = $name), \
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_roles AS r WHERE r.rolname = ANY ($roles) AND (r.rolreplication OR r.rolsuper))";

/// Tables of the publication whose rows have no identity: PostgreSQL refuses UPDATE and DELETE there.
const WITHOUT_IDENTITY: &str = "\
    SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_publication_tables AS t \
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schemaname \
    JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = t.tablename \
    WHERE t.pubname = $name AND (c.relreplident = 'n' OR (c.relreplident = 'd' AND NOT EXISTS ( \
      SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary))) ORDER BY 1";

/// Tables that the publication does not tell of.
const UNTOLD: &str = "\
    SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class AS c \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname NOT IN ('information_schema', 'pgherd') \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication_tables AS t WHERE t.pubname = $name \
      AND t.schemaname = n.nspname AND t.tablename IN (c.relname, (SELECT r.relname FROM pg_catalog.pg_class AS r \
        WHERE r.oid = pg_catalog.pg_partition_root(c.oid)))) ORDER BY 1";

/// Tries to follow a database's primary, if its answers are cached and `cache.wal` is set.
pub(super) async fn check(
    config: &Config,
    database: &Database,
    servers: &mut [Server],
    tls: &ClientTls,
    report: &mut Report,
) {
    let Some(wal) = config.cache.wal.as_ref().filter(|_| config.cache.enabled && database.cache) else { return };
    let Some(server) = servers.iter_mut().find(|server| server.part == Part::Primary) else { return };
    let Some(client) = &mut server.client else { return };
    let place = format!("{}, cache.wal", server.place);
    let asked = ask(client, wal, &server.roles).await;
    let is_fit = match asked {
        Ok(row) => judge(&row, wal, &server.roles, &place, report),
        Err(error) => {
            let text = format!("it cannot be asked about replication: {}", error.message());
            report.warning(&place, text, "look at the server's log");
            true
        }
    };
    if !is_fit {
        return;
    }
    for (sql, text, help) in [
        (
            WITHOUT_IDENTITY,
            "have no replica identity, so that PostgreSQL refuses UPDATE and DELETE there while they are published",
            "give them a primary key, or ALTER TABLE ... REPLICA IDENTITY FULL",
        ),
        (
            UNTOLD,
            "are not in the publication: answers from them are not cached",
            "ALTER PUBLICATION ... ADD TABLE, or make it FOR ALL TABLES, if they should be",
        ),
    ] {
        if let Ok(rows) = client.rows(&sql.replace("$name", &literal(&wal.publication))).await
            && !rows.is_empty()
        {
            report.warning(&place, format!("{} {text}", names(&rows)), help);
        }
    }
    follow(config, database, wal, &place, tls, report).await;
}

async fn ask(client: &mut Client, wal: &Wal, roles: &[String]) -> Result<Row, Error> {
    let roles: Vec<String> = roles.iter().map(|role| literal(role)).collect();
    let sql = FITNESS
        .replace("$name", &literal(&wal.publication))
        .replace("$roles", &format!("ARRAY[{}]::pg_catalog.text[]", roles.join(", ")));
    Ok(client.rows(&sql).await?.into_iter().next().unwrap_or_default())
}

/// Whether it is worth trying; each reason why not, with what to do.
fn judge(row: &Row, wal: &Wal, roles: &[String], place: &str, report: &mut Report) -> bool {
    let text = |at: usize| row.get(at).cloned().flatten();
    let count = |at: usize| text(at).and_then(|text| text.parse::<u64>().ok());
    let name = wal.publication.escape_debug();
    let mut faults = Vec::new();
    if let Some(level) = text(0).filter(|level| level != "logical") {
        let help = "ALTER SYSTEM SET wal_level = 'logical' on the primary, and restart it";
        faults.push((format!("wal_level is {level}: PostgreSQL tells nobody which rows are written"), help));
    }
    let is_full = |most: usize, used: usize| Some(count(used)? >= count(most)?);
    if is_full(1, 2) == Some(true) {
        let text = format!("all {} replication slots are taken (a pgherd that runs has one)", count(1).unwrap_or(0));
        let help = "raise max_replication_slots and restart the primary, or drop slots that nobody uses (pg_replication_slots)";
        faults.push((text, help));
    }
    if is_full(3, 4) == Some(true) {
        let text = format!("all {} WAL senders are taken (a pgherd that runs has one)", count(3).unwrap_or(0));
        faults.push((text, "raise max_wal_senders and restart the primary"));
    }
    match text(5).as_deref() {
        Some("t") => {}
        Some(_) => {
            let text =
                format!("the publication \"{name}\" does not publish all of INSERT, UPDATE, DELETE and TRUNCATE");
            let help = "ALTER PUBLICATION ... SET (publish = 'insert, update, delete, truncate')";
            faults.push((text, help));
        }
        None => {
            let text = format!("there is no publication \"{name}\" in this database");
            faults.push((
                text,
                "on the primary: CREATE PUBLICATION pgherd FOR ALL TABLES (or set cache.wal.publication)",
            ));
        }
    }
    if count(6) == Some(0) {
        let text = format!("no role that pgherd logs in as may replicate ({})", roles.join(", "));
        faults.push((text, "ALTER ROLE ... REPLICATION for one of them, on the primary"));
    }
    let is_fit = faults.is_empty();
    faults.into_iter().for_each(|(text, help)| report.fault(place, text, help));
    is_fit
}

/// Begins to follow as pgherd does, as the first user who may, and lets go of it again.
async fn follow(config: &Config, database: &Database, wal: &Wal, place: &str, tls: &ClientTls, report: &mut Report) {
    let mut problem = "no user may connect to this database".to_owned();
    for user in users_of(config, database) {
        let address = &database.primary;
        let login = Login {
            user: address.user.clone().unwrap_or_else(|| user.name.clone()),
            password: address.password.clone().or_else(|| user.password.clone()),
            scram_keys: None,
            startup: Vec::new(),
            database: address.dbname.clone().unwrap_or_else(|| database.name.clone()),
            connect_timeout: database.pool.connect_timeout,
            tls: tls.clone(),
        };
        match timeout(PATIENCE, Follower::begin(address, &login, &wal.publication)).await {
            Ok(Ok(_)) => {
                report.ok(place, format!("writes made past pgherd can be followed, as {}", login.user));
                return;
            }
            Ok(Err(error)) => {
                let detail = error.detail_text().map_or(String::new(), |detail| format!(" ({detail})"));
                problem = format!("{}: {}{detail}", login.user, error.message());
            }
            Err(_) => {
                let text = format!("no replication slot came into being within {} s", PATIENCE.as_secs());
                report.warning(place, text, "it waits for transactions that are under way: see pg_stat_activity");
                return;
            }
        }
    }
    let help = "give one of the roles REPLICATION, and let pg_hba.conf let it into this database; nothing is cached until it can be followed";
    report.fault(place, format!("writes made past pgherd cannot be followed: {problem}"), help);
}

fn names(rows: &[Row]) -> String {
    let all: Vec<&str> = rows.iter().filter_map(|row| row.first()?.as_deref()).collect();
    match all.len().checked_sub(MOST_NAMES).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} other tables", all[..MOST_NAMES].join(", ")),
        None => all.join(", "),
    }
}
