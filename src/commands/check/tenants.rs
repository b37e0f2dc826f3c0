//! Whether schemas that are spread over the shards are each where the configuration looks for them, and nowhere else.

use super::report::Report;
use super::servers::{Part, Server};
use crate::config::model::Database;
use crate::plan::tenant;

/// Schemas of a server's own, without PostgreSQL's, and whether there is anything in them.
const SCHEMAS: &str = "SELECT n.nspname, EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid) FROM pg_namespace n \
    WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY 1";

/// Checks the primary and the shards of a database, as far as they can be reached.
pub(super) async fn check(database: &Database, servers: &mut [Server], report: &mut Report) {
    let Some(schemas) = &database.schemas else { return };
    for server in servers {
        let own = match server.part {
            Part::Primary => None,
            Part::Shard(shard) => Some(shard),
            _ => continue,
        };
        let place = server.place.clone();
        let Some(client) = &mut server.client else { continue };
        let found = match client.rows(SCHEMAS).await {
            Ok(found) => found,
            Err(error) => {
                let help = "give the role the rights that pgherd's clients will have";
                report.warning(&place, format!("its schemas could not be read: {}", error.message()), help);
                continue;
            }
        };
        let text = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let found: Vec<(String, bool)> = found.iter().map(|row| (text(row, 0), text(row, 1) == "t")).collect();
        let mut count = 0;
        for (name, has_objects) in &found {
            match tenant::shard_of(database, name) {
                Some(shard) if own == Some(shard) => count += 1,
                Some(shard) if *has_objects => {
                    let text = format!("the schema {name} has tables here, but belongs to shard {shard}");
                    report.fault(&place, text, "move it there: statements that name it do not come here");
                }
                _ => {}
            }
        }
        let missing = schemas
            .listed
            .iter()
            .filter(|(name, shard)| own == Some(**shard) && !found.iter().any(|(known, _)| known == *name));
        for (name, _) in missing {
            report.warning(
                &place,
                format!("there is no schema {name}"),
                "create it, or remove it from the configuration",
            );
        }
        if own.is_some() {
            report.ok(&place, format!("{count} schemas, all where they belong"));
        }
    }
}
