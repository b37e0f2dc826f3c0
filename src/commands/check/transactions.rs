//! Whether the servers are fit for transactions over several of them: prepared transactions, the role that writes decisions, and
//! names that tell the servers apart.

use futures_util::future::join_all;

use super::client::{Client, Row};
use super::report::Report;
use super::servers::{Part, Server};
use crate::backend::connect::Login;
use crate::config::model::{Database, LatchScope, ServerAddress, TwoPhase};
use crate::net::tls::ClientTls;

/// max_prepared_transactions, whether the role may make or has made the tables, the roles that it cannot act for, and which
/// database this is. `$roles` are those that clients log in as.
const FITNESS: &str = "\
    SELECT pg_catalog.current_setting('max_prepared_transactions'), \
    CASE WHEN s.oid IS NULL THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
    ELSE pg_catalog.pg_has_role(s.nspowner, 'MEMBER') END, \
    (SELECT pg_catalog.string_agg(r.rolname, ', ') FROM pg_catalog.pg_roles AS r \
     WHERE r.rolname = ANY($roles) AND NOT pg_catalog.pg_has_role(r.oid, 'MEMBER')), \
    (SELECT c.system_identifier::text FROM pg_catalog.pg_control_system() AS c), d.oid \
    FROM pg_catalog.pg_database AS d LEFT JOIN pg_catalog.pg_namespace AS s ON s.nspname = 'pgherd' \
    WHERE d.datname = pg_catalog.current_database()";

/// Tries the primary and every shard as the role of `two_phase`.
pub(super) async fn check(database: &Database, servers: &[Server], tls: &ClientTls, report: &mut Report) {
    let Some(two_phase) = &database.two_phase else { return };
    if database.shards.is_empty() {
        let place = format!("database {}", database.name);
        report.warning(place, "two_phase is of no use without shards", "leave it out, or name the shards");
        return;
    }
    let taking_part = || servers.iter().filter(|server| matches!(server.part, Part::Primary | Part::Shard(_)));
    let asked = join_all(taking_part().map(|server| ask(database, two_phase, server, tls))).await;
    let mut known: Vec<(String, &ServerAddress)> = Vec::new();
    for (server, (row, findings)) in taking_part().zip(asked) {
        report.extend(findings);
        let text = |at: usize| row.as_ref().and_then(|row| row.get(at)).cloned().flatten().unwrap_or_default();
        if row.is_none() {
            continue;
        }
        let place = format!("{}.{}", text(3), text(4));
        let twin = known.iter().find(|(other, address)| *other == place && **address != server.address);
        if let Some((_, address)) = twin {
            let problem =
                format!("it has the system identifier and database of {address}: copies cannot be told apart");
            let help =
                "give each server a cluster of its own by initdb, or write the address alike where it is one server";
            report.fault(&server.place, problem, help);
        }
        known.push((place, &server.address));
    }
    if two_phase.latch == LatchScope::Off {
        let place = format!("database {}", database.name);
        let help = "use latch = \"fleet\" unless that is what you want";
        report.warning(place, "with latch = \"off\" a read may see a commit on one shard and not on another", help);
    }
}

async fn ask(database: &Database, two_phase: &TwoPhase, server: &Server, tls: &ClientTls) -> (Option<Row>, Report) {
    let mut report = Report::default();
    let login = Login {
        user: two_phase.user.clone(),
        password: two_phase.password.clone(),
        scram_keys: None,
        startup: Vec::new(),
        database: server.address.dbname.clone().unwrap_or_else(|| database.name.clone()),
        connect_timeout: database.pool.connect_timeout,
        tls: tls.clone(),
    };
    // What the connection string says of user and password is the clients'.
    let address = ServerAddress { user: None, password: None, ..server.address.clone() };
    let mut client = match Client::connect(&address, &login).await {
        Ok(client) => client,
        Err(error) => {
            let text = format!("{} of two_phase cannot log in: {}", two_phase.user, error.message());
            report.fault(
                &server.place,
                text,
                error.hint_text().unwrap_or("create the role, and let pg_hba.conf let it in"),
            );
            return (None, report);
        }
    };
    let roles: Vec<String> = server.roles.iter().map(|role| format!("'{}'", role.replace('\'', "''"))).collect();
    let sql = FITNESS.replace("$roles", &format!("ARRAY[{}]::pg_catalog.text[]", roles.join(", ")));
    let row = match client.rows(&sql).await {
        Ok(rows) => rows.into_iter().next(),
        Err(error) => {
            let text = format!("it cannot be asked about transactions: {}", error.message());
            report.fault(&server.place, text, "let the role of two_phase run pg_control_system()");
            return (None, report);
        }
    };
    let Some(row) = row else { return (None, report) };
    judge(database, two_phase, server, &row, &mut report);
    (Some(row), report)
}

fn judge(database: &Database, two_phase: &TwoPhase, server: &Server, row: &Row, report: &mut Report) {
    let text = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
    let most: u32 = text(0).parse().unwrap_or(0);
    if most == 0 {
        let help = "set max_prepared_transactions to at least max_connections there, and restart the server";
        report.fault(
            &server.place,
            "max_prepared_transactions = 0: no transaction over several servers can commit",
            help,
        );
    } else if most < database.pool.max_connections {
        let text = format!(
            "max_prepared_transactions = {most}, and {} clients may commit at once",
            database.pool.max_connections
        );
        report.warning(&server.place, text, "raise it to max_connections of the pool, or commits may fail");
    } else {
        report.ok(&server.place, format!("up to {most} prepared transactions"));
    }
    if text(1) != "t" {
        let text = format!("{} may neither create the schema pgherd nor does it own it", two_phase.user);
        report.fault(&server.place, text, "GRANT CREATE ON DATABASE to it, or give it the schema");
    }
    if !text(2).is_empty() {
        let problem = format!("{} cannot finish transactions of {}", two_phase.user, text(2));
        report.fault(
            &server.place,
            problem,
            "GRANT those roles to it: only the owner or a superuser may finish what was prepared",
        );
    }
}
