//! Whether shards and coordinator have what statements over several shards rely on, and have it alike: types, functions, the shards
//! views as well, the order of texts, and the right to make temporary tables.

use std::collections::BTreeMap;

use super::client::{Client, literal};
use super::report::Report;
use super::servers::{Part, Server};
use crate::config::model::Database;
use crate::error::Error;

/// Users' types that columns of the tables have, by name; `$tables` are pairs of schema and name.
const USED_TYPES: &str = "\
    SELECT DISTINCT tn.nspname, t.typname FROM pg_catalog.pg_attribute AS a \
    JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_type AS own ON own.oid = a.atttypid \
    JOIN pg_catalog.pg_type AS t ON t.oid = CASE WHEN own.typelem <> 0 AND own.typlen = -1 THEN own.typelem ELSE own.oid END \
    JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.typnamespace \
    WHERE a.attnum > 0 AND NOT a.attisdropped AND t.oid >= 16384 AND (n.nspname, c.relname) IN ($tables) ORDER BY 1, 2";

/// Users' views over the tables, also by way of other views.
const USED_VIEWS: &str = "\
    WITH RECURSIVE used (oid) AS ( \
      SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
      WHERE (n.nspname, c.relname) IN ($tables) \
      UNION SELECT r.ev_class FROM used AS u JOIN pg_catalog.pg_depend AS d ON d.refobjid = u.oid \
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass \
      JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid) \
    SELECT n.nspname, v.relname FROM used AS u JOIN pg_catalog.pg_class AS v ON v.oid = u.oid AND v.relkind = 'v' \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = v.relnamespace ORDER BY 1, 2";

/// A view's query and options, in a hash.
const VIEW: &str = "\
    SELECT pg_catalog.md5(pg_catalog.concat_ws('/', pg_catalog.pg_get_viewdef(c.oid), c.reloptions)) \
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE n.nspname = $schema AND c.relname = $name AND c.relkind = 'v'";

/// All that decides what values of a type are and how they compare.
const TYPE: &str = "\
    SELECT t.typtype::text || ': ' || COALESCE(CASE t.typtype::text \
      WHEN 'e' THEN (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) \
        FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = t.oid) \
      WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) || COALESCE((SELECT ' ' || \
        pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname) \
        FROM pg_catalog.pg_constraint AS k WHERE k.contypid = t.oid), '') \
      WHEN 'r' THEN (SELECT pg_catalog.format_type(r.rngsubtype, NULL) FROM pg_catalog.pg_range AS r WHERE r.rngtypid = t.oid) \
      WHEN 'c' THEN (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname) || ' ' || \
        pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) \
        FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) \
      ELSE t.typlen::text END, '') \
    FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace \
    WHERE n.nspname = $schema AND t.typname = $name";

/// What begins the behaviour of a trigger's function.
const TRIGGER: &str = "trigger ";

/// A function's behaviour, in a hash.
const FUNCTION: &str = "\
    SELECT CASE p.prorettype WHEN 'pg_catalog.trigger'::pg_catalog.regtype THEN 'trigger ' ELSE '' END || pg_catalog.md5(pg_catalog.concat_ws('/', p.provolatile, p.proisstrict, p.prokind, l.lanname, p.prosrc, \
      pg_catalog.pg_get_function_result(p.oid))) \
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang \
    WHERE p.oid = pg_catalog.to_regprocedure($function)";

/// How the coordinator's database compares texts; and whether everybody who logs in may make temporary tables.
const DATABASE: &str = "\
    SELECT pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, pg_catalog.has_database_privilege(d.oid, 'TEMPORARY') \
    FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()";

/// Compares shards with the first of them, and the coordinator too.
pub(super) async fn check(database: &Database, pure_functions: &[String], servers: &mut [Server], report: &mut Report) {
    if database.tables.is_empty() {
        return;
    }
    let coordinator = if database.coordinator.is_some() { Part::Coordinator } else { Part::Primary };
    let mut known: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut used: Option<Used> = None;
    let mut locale: Option<Vec<Option<String>>> = None;
    let mut order: Vec<&mut Server> =
        servers.iter_mut().filter(|it| matches!(it.part, Part::Shard(_)) || it.part == coordinator).collect();
    // Shards first: what they have is what the coordinator needs.
    order.sort_by_key(|server| !matches!(server.part, Part::Shard(_)));
    for server in order {
        let is_shard = matches!(server.part, Part::Shard(_));
        let Some(client) = &mut server.client else { continue };
        let place = if is_shard { server.place.clone() } else { format!("{}, as coordinator", server.place) };
        let mut looked = Looked { client, place: &place, is_shard, known: &mut known, report };
        let result = looked.look(database, pure_functions, &mut used, &mut locale).await;
        if let Err(error) = result {
            let help = "give the role the rights that pgherd's clients will have, or look at the server's log";
            report.warning(&place, format!("its definitions could not be read: {}", error.message()), help);
        }
    }
}

/// What the first shard has that statements may use, by schema and name.
struct Used {
    types: Vec<(String, String)>,
    views: Vec<(String, String)>,
}

struct Looked<'a> {
    client: &'a mut Client,
    place: &'a str,
    is_shard: bool,
    /// What the first shard has, by what it is.
    known: &'a mut BTreeMap<String, Option<String>>,
    report: &'a mut Report,
}

impl Looked<'_> {
    async fn look(
        &mut self,
        database: &Database,
        pure_functions: &[String],
        used: &mut Option<Used>,
        locale: &mut Option<Vec<Option<String>>>,
    ) -> Result<(), Error> {
        if used.is_none() {
            let types = named(self.client, database, USED_TYPES).await?;
            *used = Some(Used { types, views: named(self.client, database, USED_VIEWS).await? });
        }
        let mut faults = 0;
        let of = |sql: &str, schema: &str, name: &str| {
            sql.replace("$schema", &literal(schema)).replace("$name", &literal(name))
        };
        for (schema, name) in used.iter().flat_map(|used| &used.types) {
            faults += self.compare(format!("type {schema}.{name}"), &of(TYPE, schema, name)).await?;
        }
        let is_shard = self.is_shard;
        for (schema, name) in used.iter().filter(|_| is_shard).flat_map(|used| &used.views) {
            faults += self.compare(format!("view {schema}.{name}"), &of(VIEW, schema, name)).await?;
        }
        for function in pure_functions {
            let what = format!("function {function}");
            let is_known = |it: &Option<String>| it.as_ref().is_some_and(|it| it.starts_with(TRIGGER));
            if !self.is_shard && self.known.get(&what).is_some_and(is_known) {
                // The coordinator has no table that would fire it.
                continue;
            }
            let sql = FUNCTION.replace("$function", &literal(function));
            faults += self.compare(what, &sql).await?;
        }
        let row = self.client.rows(DATABASE).await?.into_iter().next().unwrap_or_default();
        if self.is_shard {
            locale.get_or_insert(row);
        } else {
            faults += self.judge_coordinator(&row, locale.as_deref());
        }
        if faults == 0 {
            let what = if self.is_shard { "statements rely on" } else { "the shards have" };
            self.report.ok(self.place, format!("it has the types and functions that {what}"));
        }
        Ok(())
    }

    /// Compares one thing with what the first server has of it; returns the faults found.
    async fn compare(&mut self, what: String, sql: &str) -> Result<usize, Error> {
        let own = self.client.value(sql).await?;
        let Some(first) = self.known.get(&what) else {
            if own.is_none() {
                self.report.fault(self.place, format!("there is no {what}"), "create it, or take it out of the TOML");
            }
            let faults = usize::from(own.is_none());
            self.known.insert(what, own);
            return Ok(faults);
        };
        if *first == own || first.is_none() {
            return Ok(0);
        }
        let text = match own {
            None => format!("there is no {what}, which the first shard has"),
            Some(own) if what.starts_with("type") => {
                format!("{what} is {own}, on the first shard {}", first.clone().unwrap_or_default())
            }
            Some(_) => format!("{what} is another than on the first shard"),
        };
        self.report.fault(self.place, text, "create it as it is there: values would mean and compare otherwise");
        Ok(1)
    }

    fn judge_coordinator(&mut self, row: &[Option<String>], shards: Option<&[Option<String>]>) -> usize {
        let mut faults = 0;
        for (at, name) in ["encoding", "LC_COLLATE", "LC_CTYPE"].iter().enumerate() {
            let (own, first) = (row.get(at), shards.and_then(|shards| shards.get(at)));
            if first.is_some() && own != first {
                let show = |value: Option<&Option<String>>| value.cloned().flatten().unwrap_or_default();
                let text = format!("its {name} is {}, the shards' {}", show(own), show(first));
                self.report.fault(self.place, text, "create the coordinator's database with the shards' locale");
                faults += 1;
            }
        }
        if row.get(3).is_some_and(|may| may.as_deref() != Some("t")) {
            let text = "clients' roles may not make temporary tables here";
            self.report.fault(self.place, text, "GRANT TEMPORARY ON DATABASE to them");
            faults += 1;
        }
        faults
    }
}

/// Schemas and names that a query over the tables gives.
async fn named(client: &mut Client, database: &Database, sql: &str) -> Result<Vec<(String, String)>, Error> {
    let tables: Vec<String> =
        database.tables.iter().map(|table| format!("({},{})", literal(&table.schema), literal(&table.name))).collect();
    let rows = client.rows(&sql.replace("$tables", &tables.join(", "))).await?;
    let pair = |row: super::client::Row| {
        let mut values = row.into_iter().flatten();
        Some((values.next()?, values.next()?))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}
