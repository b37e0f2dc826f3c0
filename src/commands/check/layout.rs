//! Whether the shards hold what the TOML says: the same tables, nothing that looks beyond one shard, rows where they belong.

use std::collections::HashSet;

use super::client::{Client, literal};
use super::report::Report;
use super::rows;
use super::servers::{Part, Server};
use super::tables::{self, Shape};
use crate::config::model::{Database, Distribution, KeyMoves, Table};
use crate::error::Error;

/// Checks the shards of a database, as far as they can be reached.
pub(super) async fn check(database: &Database, key_moves: KeyMoves, servers: &mut [Server], report: &mut Report) {
    let roles: Vec<String> = servers.iter().flat_map(|server| server.roles.clone()).collect();
    if database.tables.is_empty() || roles.is_empty() {
        return;
    }
    for table in &database.tables {
        if let Some(primary) = servers.iter_mut().find(|server| server.part == Part::Primary) {
            let place = format!("{}, {}", primary.place, shown(table));
            if let Some(client) = &mut primary.client
                && let Err(error) = not_on_primary(client, table, &roles, &place, report).await
            {
                could_not(report, &place, &error);
            }
        }
    }
    let mut shards: Vec<&mut Server> =
        servers.iter_mut().filter(|server| matches!(server.part, Part::Shard(_))).collect();
    compare_databases(&mut shards, report).await;
    let mut shapes = Vec::new();
    for table in &database.tables {
        shapes.push((table, Box::pin(check_table(database, table, &mut shards, report)).await));
    }
    check_groups(&shapes, report);
    if key_moves == KeyMoves::Move {
        check_moves(&shapes, report);
    }
}

/// Rows that others refer to stay where they are.
fn check_moves(shapes: &[(&Table, Option<Shape>)], report: &mut Report) {
    for (table, _) in shapes.iter().filter(|(table, _)| table.distribution != Distribution::Reference) {
        let refers = |(_, shape): &&(&Table, Option<Shape>)| {
            let mut targets = shape.iter().flat_map(|shape| &shape.foreign).map(|foreign| &foreign.target);
            targets.any(|(schema, name)| *schema == table.schema && *name == table.name)
        };
        if let Some((child, _)) = shapes.iter().find(refers) {
            let text = format!("an UPDATE of its shard key stays refused: {} refers to it", shown(child));
            report.warning(shown(table), text, "drop the foreign key, or let the shard key be");
        }
    }
}

/// Tables of one group have keys of the same types and collations: else an equality of keys need not meet on one shard.
fn check_groups(shapes: &[(&Table, Option<Shape>)], report: &mut Report) {
    let keys = |(table, shape): &(&Table, Option<Shape>)| -> Option<Vec<String>> {
        let key = table.distribution.key().iter().map(|name| shape.as_ref()?.column(name));
        let kind = |column: &tables::Column| {
            let bare = column.type_name.split('(').next().unwrap_or_default().to_owned();
            format!("{bare} {}", column.collation).trim_end().to_owned()
        };
        key.map(|column| column.map(kind)).collect()
    };
    for (at, member) in shapes.iter().enumerate() {
        let Some(group) = &member.0.group else { continue };
        let first = shapes[..at].iter().find(|other| other.0.group.as_ref() == Some(group));
        let Some((first, (wanted, found))) = first.and_then(|first| Some((first, keys(first).zip(keys(member))?)))
        else {
            continue;
        };
        if wanted != found {
            let text = format!(
                "its shard key is of type {}, that of {} of group \"{group}\" of type {}",
                found.join(", "),
                shown(first.0),
                wanted.join(", ")
            );
            let help = "give the keys of a group the same types and collations: joins of these tables are not made on the shards";
            report.fault(shown(member.0), text, help);
        }
    }
}

fn shown(table: &Table) -> String {
    format!("table {}.{}", table.schema, table.name)
}

fn could_not(report: &mut Report, place: &str, error: &Error) {
    let help = "give the role the rights that pgherd's clients will have, or look at the server's log";
    report.warning(place, format!("this could not be checked: {}", error.message()), help);
}

/// A statement that pgherd cannot read goes to the primary, and must not find another table of that name there.
async fn not_on_primary(
    client: &mut Client,
    table: &Table,
    roles: &[String],
    place: &str,
    report: &mut Report,
) -> Result<(), Error> {
    let roles: Vec<String> = roles.iter().map(|role| literal(role)).collect();
    let sql = format!(
        "SELECT DISTINCT r.rolname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           JOIN pg_roles r ON r.rolname IN ({}) \
         WHERE n.nspname ={} AND c.relname ={} AND c.relkind IN ('r', 'p', 'v', 'm', 'f') \
           AND has_table_privilege(r.oid, c.oid, 'SELECT') AND has_schema_privilege(r.oid, n.oid, 'USAGE') ORDER BY 1",
        roles.join(","),
        literal(&table.schema),
        literal(&table.name)
    );
    let readers: Vec<String> = client.rows(&sql).await?.into_iter().flatten().flatten().collect();
    if !readers.is_empty() {
        let text = format!("the primary has a table of this name, which {} can read", readers.join(", "));
        let help = "drop or rename it, or REVOKE SELECT on it: its rows are on the shards";
        report.fault(place, text, help);
    }
    Ok(())
}

/// What decides how texts compare and hash must be the same on every shard.
async fn compare_databases(shards: &mut [&mut Server], report: &mut Report) {
    let sql = "SELECT pg_encoding_to_char(encoding), datcollate, datctype, \
        current_setting('server_version_num')::int / 10000 FROM pg_database WHERE datname = current_database()";
    let names = ["encoding", "LC_COLLATE", "LC_CTYPE", "major version"];
    let mut first: Option<(String, Vec<Option<String>>)> = None;
    for shard in shards {
        let Some(client) = &mut shard.client else { continue };
        let row = match client.rows(sql).await {
            Ok(rows) => rows.into_iter().next().unwrap_or_default(),
            Err(error) => {
                could_not(report, &shard.place, &error);
                continue;
            }
        };
        let Some((_, expected)) = &first else {
            first = Some((shard.place.clone(), row));
            continue;
        };
        for ((name, own), other) in names.iter().zip(&row).zip(expected) {
            if own != other {
                let show = |value: &Option<String>| value.clone().unwrap_or_default();
                let text = format!("its {name} is {}, that of the first shard {}", show(own), show(other));
                match *name {
                    "major version" => report.warning(&shard.place, text, "run the same version everywhere"),
                    _ => report.fault(&shard.place, text, "texts would compare differently: create the database alike"),
                }
            }
        }
    }
}

/// Its shape on the first shard that has it.
async fn check_table(
    database: &Database,
    table: &Table,
    shards: &mut [&mut Server],
    report: &mut Report,
) -> Option<Shape> {
    let mut shapes: Vec<Option<Shape>> = Vec::new();
    for shard in shards.iter_mut() {
        let place = format!("{}, {}", shard.place, shown(table));
        let Some(client) = &mut shard.client else {
            shapes.push(None);
            continue;
        };
        let shape = match tables::read(client, table).await {
            Ok(shape) => shape,
            Err(error) => {
                could_not(report, &place, &error);
                shapes.push(None);
                continue;
            }
        };
        match &shape {
            None => report.fault(&place, "there is no such table", "create it on every shard"),
            Some(shape) => {
                judge_shape(database, table, shape, &place, report);
                if let Some(first) = shapes.iter().flatten().next() {
                    compare_shapes(first, shape, &place, report);
                }
            }
        }
        shapes.push(shape);
    }
    if table.distribution == Distribution::Reference {
        compare_rows(table, &shapes, shards, report).await;
    } else {
        compare_sequences(table, &shapes, report);
        check_rows(table, &shapes, shards, report).await;
    }
    shapes.into_iter().flatten().next()
}

/// What one shard's table alone says.
fn judge_shape(database: &Database, table: &Table, shape: &Shape, place: &str, report: &mut Report) {
    if !matches!(shape.kind.as_str(), "r" | "p") {
        report.fault(place, "it is not a table", "name an ordinary or a partitioned table");
        return;
    }
    if shape.persistence != "p" {
        report.warning(place, "it is unlogged: a crash empties it", "ALTER TABLE ... SET LOGGED");
    }
    let is_reference = table.distribution == Distribution::Reference;
    if shape.row_security && !is_reference {
        let help =
            "let its policies look at the row, at settings and at reference tables: other statements are refused";
        report.warning(place, "row-level security is enabled, and each shard judges by what it holds", help);
    }
    let mut judge = |text: String, help: &str| {
        // On a reference table they see all of its rows, as on one server.
        if is_reference { report.warning(place, text, help) } else { report.fault(place, text, help) }
    };
    for hook in &shape.hooks {
        judge(format!("{hook} sees one shard's rows only"), "drop it, or do its work in the application");
    }
    for constraint in &shape.beyond {
        let text = format!("{constraint} does not hold the shard key, so it holds on each shard alone");
        report.fault(place, text, "add the shard key to it, or drop it");
    }
    judge_foreign_keys(database, table, shape, place, report);
    if is_reference {
        return;
    }
    for key in table.distribution.key() {
        match shape.column(key) {
            None => report.fault(place, format!("it has no column \"{key}\""), "set shard_key to a column of it"),
            Some(column) => {
                if let Some(problem) = tables::unsupported_key(&table.distribution, column) {
                    let help = "take a column of type int2, int4, int8, text, varchar, uuid, numeric, date, timestamp, timestamptz, bytea or bool";
                    report.fault(place, format!("shard key \"{key}\": {problem}"), help);
                }
            }
        }
    }
}

fn judge_foreign_keys(database: &Database, table: &Table, shape: &Shape, place: &str, report: &mut Report) {
    let mut names: Vec<&str> = shape.foreign.iter().map(|pair| pair.name.as_str()).collect();
    names.dedup();
    for name in names {
        let pairs: Vec<_> = shape.foreign.iter().filter(|pair| pair.name == name).collect();
        let Some(first) = pairs.first() else { continue };
        let (schema, target) = &first.target;
        let declared = database.tables.iter().find(|other| other.schema == *schema && other.name == *target);
        let problem = match declared {
            None => Some("which pgherd takes to be on the primary"),
            Some(other) if other.distribution == Distribution::Reference => None,
            Some(_) if table.distribution == Distribution::Reference => Some("whose rows are on all shards"),
            Some(other) => {
                let mut keys = table.distribution.key().iter().zip(other.distribution.key());
                let by_key = keys.all(|(a, b)| pairs.iter().any(|pair| pair.column == *a && pair.target_column == *b));
                let together = by_key && table.distribution.is_alike(&other.distribution);
                (!together).then_some("whose row may be on another shard")
            }
        };
        if let Some(problem) = problem {
            let text = format!("foreign key {name} refers to {schema}.{target}, {problem}");
            report.fault(
                place,
                text,
                "refer to a reference table, or by the shard key to a table that is sharded alike",
            );
        }
    }
}

fn compare_shapes(first: &Shape, shape: &Shape, place: &str, report: &mut Report) {
    let columns = |shape: &Shape| -> Vec<String> {
        let column = |column: &tables::Column| {
            let not_null = if column.not_null { " not null" } else { "" };
            format!("{} {} {}{not_null}", column.name, column.type_name, column.collation)
        };
        shape.columns.iter().map(column).collect()
    };
    let (expected, found) = (columns(first), columns(shape));
    if expected == found {
        return;
    }
    let differs = |(a, b): &(Option<&String>, Option<&String>)| a != b;
    let length = expected.len().max(found.len());
    let pair = (0..length).map(|at| (expected.get(at), found.get(at))).find(differs);
    let (wanted, has) = pair.unwrap_or((None, None));
    let show =
        |column: Option<&String>| column.map_or("nothing".to_string(), |column| format!("\"{}\"", column.trim_end()));
    let text = format!("its columns differ from the first shard's: {} instead of {}", show(has), show(wanted));
    report.fault(
        place,
        text,
        "let the table have the same columns, types and collations, in the same order, on every shard",
    );
}

/// Sequences of the shards give values of their own only if all step by the same number, and start apart.
fn compare_sequences(table: &Table, shapes: &[Option<Shape>], report: &mut Report) {
    let known: Vec<&Shape> = shapes.iter().flatten().collect();
    let Some(first) = known.first() else { return };
    for column in first.columns.iter().filter(|column| column.sequence) {
        let steps = known.iter().map(|shape| shape.column(&column.name).and_then(|column| column.steps));
        let residues: Option<HashSet<(i64, i64)>> = steps
            .map(|steps| steps.filter(|(step, _)| *step != 0).map(|(step, start)| (step, start.rem_euclid(step))))
            .collect();
        let is_apart = residues.as_ref().is_some_and(|residues| {
            let steps: HashSet<i64> = residues.iter().map(|(step, _)| *step).collect();
            residues.len() == known.len() && steps.len() == 1
        });
        if known.len() > 1 && !is_apart {
            let text = format!("{} counts on each shard alone, so shards give the same values", column.name);
            let help = "use uuid, or let the shards' sequences step by the number of shards and start apart: INCREMENT 2 START 1 and INCREMENT 2 START 2";
            report.warning(shown(table), text, help);
        }
    }
}

/// Rows of a sharded table, on each shard.
async fn check_rows(table: &Table, shapes: &[Option<Shape>], shards: &mut [&mut Server], report: &mut Report) {
    let count = shards.len();
    let mut overlaps_checked = false;
    for (index, (shard, shape)) in shards.iter_mut().zip(shapes).enumerate() {
        let (Some(client), Some(shape)) = (&mut shard.client, shape) else { continue };
        let place = format!("{}, {}", shard.place, shown(table));
        if table.distribution.key().iter().any(|key| shape.column(key).is_none())
            || !matches!(shape.kind.as_str(), "r" | "p")
        {
            continue;
        }
        if !overlaps_checked {
            overlaps_checked = true;
            match rows::overlaps(client, table, shape).await {
                Ok(found) => found.into_iter().for_each(|text| {
                    report.fault(&place, text, "a key's value must lead to one shard");
                }),
                Err(error) => {
                    let text = format!("the bounds or values do not fit the shard key: {}", error.message());
                    report.fault(&place, text, "write them as the column's type reads them");
                    return;
                }
            }
        }
        match rows::placement(client, table, shape, index, count).await {
            Ok(found) if found.misplaced == 0 => {
                let of = if found.sampled { " of a sample" } else { "" };
                report.ok(&place, format!("{} rows{of}, all where they belong", found.rows));
            }
            Ok(found) => {
                let example = found.example.map_or("NULL".to_string(), |key| format!("\"{key}\""));
                let text =
                    format!("{} of {} rows belong elsewhere, one with key {example}", found.misplaced, found.rows);
                report.fault(&place, text, "move them: as they are, reads by key miss them");
            }
            Err(error) => could_not(report, &place, &error),
        }
    }
}

/// Rows of a reference table, shard against shard.
async fn compare_rows(table: &Table, shapes: &[Option<Shape>], shards: &mut [&mut Server], report: &mut Report) {
    let mut first: Option<(String, String)> = None;
    for (shard, shape) in shards.iter_mut().zip(shapes) {
        let (Some(client), Some(_)) = (&mut shard.client, shape) else { continue };
        let place = format!("{}, {}", shard.place, shown(table));
        let found = match rows::checksum(client, table).await {
            Ok(found) => found,
            Err(error) => {
                could_not(report, &place, &error);
                continue;
            }
        };
        let expected = first.get_or_insert_with(|| found.clone());
        let help = "copy the table from one shard to the others; a reference table is whole and the same everywhere";
        if expected.0 != found.0 {
            report.fault(&place, format!("it has {} rows, the first shard's {}", found.0, expected.0), help);
        } else if expected.1 != found.1 {
            report.fault(&place, format!("its {} rows differ from the first shard's", found.0), help);
        } else {
            report.ok(&place, format!("{} rows, the same as on the first shard", found.0));
        }
    }
}
