//! A small database to plan over: `t`, `u`, a partitioned `part`, views, and one of each kind that is not cached.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use crate::catalog::model::*;
use crate::catalog::partitions::Partitions;
use crate::config::model as config;
use crate::plan::WriteSet;
use crate::sql::Analyzer;

/// What a plan is made from, as a test changes it.
pub(super) struct World {
    pub(super) catalog: Catalog,
    pub(super) database: config::Database,
    pub(super) cache: config::Cache,
    pub(super) fanout: config::Fanout,
    pub(super) path: Vec<Box<str>>,
    /// Schemas as search_path lists them.
    pub(super) listed: Vec<String>,
    pub(super) in_transaction: Transaction,
    pub(super) temporary: bool,
    pub(super) pinned: bool,
    pub(super) values: Vec<Option<Vec<u8>>>,
    pub(super) partitions: Option<Partitions>,
}

const INT: Oid = 23;
const TEXT: Oid = 25;
const TIMESTAMP: Oid = 1114;

impl World {
    pub(super) fn new() -> Self {
        Self {
            catalog: catalog(),
            database: database(),
            cache: config::Cache {
                enabled: true,
                ttl: Duration::from_secs(300),
                memory_bytes: 1 << 20,
                max_entry_bytes: 1 << 20,
                consistency: config::Consistency::Strict,
                redis: None,
                wal: None,
                tables: [
                    ("public.slow".into(), config::CacheRule::Ttl(Duration::from_secs(9))),
                    ("public.secret".into(), config::CacheRule::Never),
                    ("public.u".into(), config::CacheRule::Pin),
                ]
                .into(),
                statements: Default::default(),
                olap_only: false,
                min_cost: Duration::ZERO,
                in_transactions: true,
                audit_one_in: 0,
                stale_on_error: false,
                share_roles: false,
                shards: false,
            },
            fanout: config::Fanout {
                max_parallel: 4,
                memory_bytes: 1 << 20,
                pure_functions: vec!["public.slug(text)".into()],
                query_timeout: Duration::from_secs(30),
                max_shipped_rows: 1000,
                max_shipped_bytes: 1 << 20,
                key_list_max: 1000,
                key_moves: config::KeyMoves::Refuse,
            },
            path: vec!["pg_catalog".into(), "public".into()],
            listed: vec!["public".into()],
            in_transaction: Transaction::Outside,
            temporary: false,
            pinned: false,
            values: Vec::new(),
            partitions: None,
        }
    }

    pub(super) fn plan(&self, text: &str) -> Plan {
        let facts = Analyzer::with_memo_bytes(1 << 20).facts(text.as_bytes(), true);
        let session = SessionView {
            role: "app",
            search_path: &self.path,
            listed_path: &self.listed,
            in_transaction: self.in_transaction,
            pinned: self.pinned,
            server_attached: false,
            has_temporary_objects: self.temporary,
            path_is_known: true,
            read_only: false,
            standard_conforming_strings: true,
            same_encoding: true,
            text_is_plain: true,
        };
        let values: Vec<Option<&[u8]>> = self.values.iter().map(Option::as_deref).collect();
        let bound = Bound { types: &[], formats: &[], values: &values, result_formats: &[] };
        decide(&Input {
            facts: &facts,
            text,
            session: &session,
            catalog: Some(&self.catalog),
            database: &self.database,
            cache: &self.cache,
            fanout: &self.fanout,
            shards: Some(&self.catalog),
            bound: Some(&bound),
            coordinator: None,
            unstreamed: None,
            partitions: self.partitions.as_ref(),
        })
    }

    /// `plan/code`
    pub(super) fn route(&self, text: &str) -> String {
        let plan = self.plan(text);
        format!("{}/{}", plan.kind(), plan.code())
    }

    pub(super) fn writes(&self, text: &str) -> WriteSet {
        let facts = Analyzer::with_memo_bytes(1 << 20).facts(text.as_bytes(), true);
        write_set(&facts, &self.catalog, &self.path)
    }

    pub(super) fn all(&self, expected: &[(&str, &str)]) {
        for (text, route) in expected {
            assert_eq!(self.route(text), *route, "{text}");
        }
    }
}

pub(super) fn relation(oid: Oid, name: &str, kind: RelationKind) -> Relation {
    let column = |name: &str, type_oid| Column {
        name: name.into(),
        type_oid,
        typmod: -1,
        collation: 0,
        not_null: false,
        has_default: false,
        is_generated: false,
        default: crate::catalog::model::DefaultKind::None,
        moment: None,
    };
    Relation {
        oid,
        schema: "public".into(),
        name: name.into(),
        kind,
        table: 0,
        persistence: Persistence::Permanent,
        row_security: false,
        row_rules: RowRules::default(),
        security_invoker: false,
        columns: vec![column("id", INT), column("a", TEXT), column("at", TIMESTAMP)],
        primary_key: Vec::new(),
        reads: vec![oid],
        view_functions: Vec::new(),
        definition: None,
        writes: vec![oid],
        writes_opaque: false,
        row_triggers: Vec::new(),
        foreign_keys: Vec::new(),
        is_referenced: false,
        is_judged_late: false,
    }
}

fn function(oid: Oid, name: &str, volatility: Volatility) -> Function {
    let user_defined = oid >= 16_384;
    Function {
        oid,
        schema: if user_defined { "public".into() } else { "pg_catalog".into() },
        kind: FunctionKind::Function,
        volatility,
        security_definer: name == "definer",
        user_defined,
        of_contrib: false,
        arguments: if name == "row_volatile" { vec![2249] } else { Vec::new() },
        result: if name == "date_trunc" { TIMESTAMP } else { TEXT },
    }
}

fn secured(oid: Oid, name: &str, functions: &[Oid], settings: &[&str], opaque: bool) -> Relation {
    let functions = [&[2077, 20_000], functions].concat();
    let settings = settings.iter().map(|&name| name.into()).collect();
    let row_rules = RowRules { functions, settings, opaque };
    Relation { row_security: true, row_rules, ..relation(oid, name, RelationKind::Table) }
}

fn relations() -> Vec<Relation> {
    use RelationKind::*;
    let mut all = vec![
        relation(1, "t", Table),
        relation(2, "u", Table),
        Relation { reads: vec![3, 4], writes: vec![3, 4], ..relation(3, "part", PartitionedTable) },
        Relation { writes: vec![3, 4], ..relation(4, "part_1", Table) },
        Relation { reads: vec![1, 5], writes: vec![1, 5], ..relation(5, "v", View) },
        Relation { view_functions: vec![1299], ..relation(6, "dated", View) },
        Relation { persistence: Persistence::Unlogged, ..relation(7, "unlogged", Table) },
        relation(8, "far", ForeignTable),
        secured(9, "secured", &[], &["app.tenant"], false),
        secured(18, "secured_by_zone", &[], &["timezone"], false),
        secured(19, "secured_by_all", &[], &[], true),
        secured(20, "secured_by_code", &[20_002], &[], false),
        secured(21, "secured_by_owner", &[20_003], &[], false),
        relation(10, "seq", Sequence),
        relation(11, "slow", Table),
        relation(12, "secret", Table),
        Relation { writes_opaque: true, ..relation(13, "triggered", Table) },
        Relation { writes: vec![2, 14], ..relation(14, "cascading", Table) },
        relation(15, "m", MaterializedView),
        Relation { view_functions: vec![20_001], ..relation(16, "writing_view", View) },
        Relation { schema: "pg_catalog".into(), ..relation(1259, "pg_class", Table) },
        Relation { schema: "pg_catalog".into(), ..relation(1260, "pg_settings", View) },
    ];
    let mut zoned = relation(17, "zoned", Table);
    zoned.columns[0].type_oid = 1266;
    all.push(zoned);
    all
}

fn catalog() -> Catalog {
    use Volatility::*;
    let mut functions: HashMap<Box<str>, Vec<Function>> = HashMap::new();
    for (oid, name, volatility) in [
        (1, "count", Immutable),
        (2, "upper", Immutable),
        (3, "to_char", Stable),
        (1299, "now", Stable),
        (5, "random", Volatile),
        (6, "nextval", Volatile),
        (7, "query_to_xml", Volatile),
        (8, "to_tsvector", Stable),
        (9, "current_setting", Stable),
        (10, "date_trunc", Stable),
        (18, "date", Stable),
        (11, "pg_advisory_lock", Volatile),
        (12, "set_config", Volatile),
        (13, "lo_create", Volatile),
        (14, "max", Immutable),
        (15, "pg_is_in_recovery", Volatile),
        (16, "generate_series", Immutable),
        (17, "lo_import", Volatile),
        (20_000, "pure", Immutable),
        (20_001, "writer", Volatile),
        (20_002, "reader", Stable),
        (20_003, "definer", Immutable),
        (20_004, "slug", Volatile),
        (20_005, "upper", Volatile),
        (20_006, "row_volatile", Volatile),
    ] {
        functions.entry(name.into()).or_default().push(function(oid, name, volatility));
    }
    functions.get_mut("upper").expect("upper").retain(|function| function.oid == 2);
    let names = functions.iter().flat_map(|(name, all)| all.iter().map(|one| (one.oid, name.clone()))).collect();
    let types = [
        (INT, "int4", 'b'),
        (TEXT, "text", 'b'),
        (TIMESTAMP, "timestamp", 'b'),
        (1082, "date", 'b'),
        (1266, "timetz", 'b'),
    ]
    .into_iter()
    .chain([(2205, "regclass", 'b'), (20_100, "mood", 'e'), (20_101, "short", 'd'), (142, "xml", 'b')])
    .map(|(oid, name, kind)| {
        let schema = if oid >= 16_384 { "public" } else { "pg_catalog" };
        let labels = Box::default();
        let default = DefaultKind::None;
        (
            oid,
            Type { schema: schema.into(), name: name.into(), kind, base: 0, element: 0, collation: 0, labels, default },
        )
    })
    .collect();
    let all = relations();
    Catalog {
        version: 7,
        relation_by_name: all.iter().map(|one| ((one.schema.clone(), one.name.clone()), one.oid)).collect(),
        relations: all.into_iter().map(|one| (one.oid, Arc::new(one))).collect(),
        functions,
        function_names: names,
        types,
        schemas: ["pg_catalog", "public"].map(Into::into).to_vec(),
        ..Catalog::default()
    }
}

pub(super) fn address() -> config::ServerAddress {
    crate::config::dsn::parse("host=127.0.0.1 port=5432 dbname=app").expect("an address")
}

fn database() -> config::Database {
    config::Database {
        max_clients: None,
        name: "app".into(),
        primary: address(),
        replicas: Vec::new(),
        reads: Reads::Primary,
        coordinator: None,
        shards: Vec::new(),
        tables: Vec::new(),
        schemas: None,
        pool: config::Pool {
            mode: config::PoolMode::Transaction,
            max_connections: 1,
            max_database_connections: None,
            min_connections: 0,
            acquire_timeout: Duration::from_secs(1),
            idle_timeout: None,
            max_lifetime: None,
            connect_timeout: Duration::from_secs(1),
            health_check_interval: Duration::from_secs(1),
            query_timeout: None,
            idle_transaction_timeout: None,
            client_idle_timeout: None,
            prepared_statements: 1,
            pinned_max: None,
            listen: config::ListenMode::Shared,
            on_listener_loss: config::OnListenerLoss::Close,
            notification_queue: 1 << 20,
        },
        cache: true,
        replication: false,
        olap_timeout: Duration::from_secs(30),
        split_scans: None,
        two_phase: None,
    }
}

pub(super) fn sharded() -> World {
    let mut world = World::new();
    world.database.shards = vec![address(), address()];
    let table = |name: &str, distribution| config::Table {
        schema: "public".into(),
        name: name.into(),
        distribution,
        group: None,
    };
    world.database.tables = vec![
        table("orders", config::Distribution::Hash { columns: vec!["customer_id".into()] }),
        table("countries", config::Distribution::Reference),
        table("t", config::Distribution::Reference),
    ];
    world
}
