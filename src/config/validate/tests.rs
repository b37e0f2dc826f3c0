use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use crate::config::model::CacheRule;
use crate::config::model::{AuthMethod, Consistency, Distribution, ListenTlsMode, OnRedisLoss, PoolMode, Reads};
use crate::config::{self, Fault, Loaded, keys};

/// The least that a file must say.
const LEAST: &str = r#"
[[database]]
name = "app"
primary = "host=10.0.0.1 dbname=app"

[[user]]
name = "app"
password = "secret"
"#;

fn env(name: &str) -> Option<String> {
    match name {
        "PGHOST" => Some("db.example".into()),
        "MAX" => Some("7".into()),
        _ => None,
    }
}

fn read_in(base: &Path, text: &str) -> Result<Loaded, config::Faults> {
    config::parse(text, Path::new("proxy.toml"), base, &env)
}

fn good(text: &str) -> Loaded {
    match read_in(Path::new("/nonexistent"), text) {
        Ok(loaded) => loaded,
        Err(faults) => panic!("{faults}"),
    }
}

fn faults(text: &str) -> Vec<Fault> {
    read_in(Path::new("/nonexistent"), text).expect_err("faults were expected").faults
}

/// The only fault of `LEAST` with `extra` before it or behind it.
fn only_fault(text: &str) -> Fault {
    let all = faults(text);
    assert_eq!(all.len(), 1, "{all:#?}");
    all[0].clone()
}

fn with(extra: &str) -> String {
    format!("{LEAST}\n{extra}")
}

/// A database with two shards and the keys of one table.
fn sharded(table: &str) -> String {
    let shards = "shards = [\"host=a dbname=x\", \"host=b dbname=x\"]";
    LEAST.replace("[[user]]", &format!("{shards}\n[[database.table]]\nname = \"orders\"\n{table}\n[[user]]"))
}

#[test]
fn the_least_file_takes_every_default_of_the_design() {
    let config = good(LEAST).config;
    let pool = &config.databases["app"].pool;
    assert_eq!((pool.max_connections, pool.min_connections), (100, 10));
    assert_eq!(pool.mode, PoolMode::Transaction);
    assert_eq!(pool.acquire_timeout, Duration::from_secs(30));
    assert_eq!(pool.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(pool.max_lifetime, Some(Duration::from_secs(1800)));
    assert_eq!(pool.health_check_interval, Duration::from_secs(60));
    assert_eq!(pool.query_timeout, None);
    assert_eq!(config.databases["app"].olap_timeout, Duration::from_secs(30));
    assert_eq!(config.fanout.query_timeout, Duration::from_secs(30));
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:6432");
    assert_eq!(config.listen.tls.mode, ListenTlsMode::Off);
    assert!(!config.cache.enabled && config.cache.redis.is_none());
    assert_eq!(config.cache.consistency, Consistency::Strict);
    assert_eq!(config.cache.memory_bytes, 256 << 20);
    assert_eq!(config.users["app"].auth, AuthMethod::Scram);
    assert_eq!(config.threads, None);
}

#[test]
fn a_full_file_means_what_it_says() {
    let text = r#"
threads = 2
[listen]
address = "*:6432"
http = "localhost:9632"
[pool]
mode = "session"
max_connections = "${MAX}"
min_connections = 1
idle_timeout = "off"
[[database]]
name = "app"
primary = "host=${PGHOST} port=${PGPORT:-5433} dbname=app"
replicas = ["host=r1 dbname=app"]
reads = "replica"
shards = ["host=s0 dbname=app", "host=s1 dbname=app"]
pool = { mode = "transaction", query_timeout = "90s" }
[[database.table]]
name = "Orders"
shard_key = "customer_id"
method = "hash"
[[database.table]]
name = "public.events"
shard_key = "at"
method = "range"
ranges = [{ to = "2024-01-01", shard = 0 }, { from = "2024-01-01", shard = 1 }]
[[database.table]]
name = "sales.regions"
shard_key = "region"
method = "list"
lists = [{ values = ["eu", "us"], shard = 0 }, { values = [7], null = true, shard = 1 }]
[[database.table]]
name = "countries"
reference = true
[[user]]
name = "app"
auth = "md5"
password = "p$${x}"
databases = ["app"]
max_connections = 5
pool_mode = "session"
[cache]
enabled = true
on_redis_loss = "refuse-write"
redis = { url = "redis://:pw@127.0.0.1:6379/0", timeout = "7ms" }
[cache.tables]
"public.orders" = "30s"
events = "off"
audit = false
[fanout]
pure_functions = ["public.slug(text)"]
[security]
max_connections_per_ip = 3
[telemetry]
slow_statement = "250ms"
"#;
    let config = good(text).config;
    let database = &config.databases["app"];
    assert_eq!(config.listen.address.to_string(), "0.0.0.0:6432");
    assert_eq!((database.primary.host.as_str(), database.primary.port), ("db.example", 5433));
    assert_eq!((database.pool.mode, database.pool.max_connections), (PoolMode::Transaction, 7));
    assert_eq!((database.pool.idle_timeout, database.pool.query_timeout), (None, Some(Duration::from_secs(90))));
    assert_eq!(database.reads, Reads::Replica);
    let orders = &database.tables[0];
    assert_eq!((orders.schema.as_str(), orders.name.as_str()), ("public", "orders"));
    assert_eq!(orders.distribution, Distribution::Hash { columns: vec!["customer_id".into()] });
    let Distribution::Range { ranges, .. } = &database.tables[1].distribution else { panic!("not by range") };
    assert_eq!((ranges[0].from.as_ref(), ranges[0].to.as_ref()), (None, Some(&vec!["2024-01-01".to_owned()])));
    let Distribution::List { parts, .. } = &database.tables[2].distribution else { panic!("not by list") };
    assert_eq!(parts[1].values, [Some("7".to_string()), None]);
    assert_eq!(database.tables[3].distribution, Distribution::Reference);
    let user = &config.users["app"];
    assert_eq!(user.password.as_ref().map(|password| password.expose()), Some("p${x}"));
    assert_eq!((user.max_connections, user.pool_mode), (Some(5), Some(PoolMode::Session)));
    let redis = config.cache.redis.as_ref().expect("redis");
    assert_eq!((redis.timeout, redis.on_loss), (Duration::from_millis(7), OnRedisLoss::RefuseWrite));
    assert_eq!(config.cache.tables["public.orders"], CacheRule::Ttl(Duration::from_secs(30)));
    assert_eq!(config.cache.tables["public.events"], CacheRule::Never);
    assert_eq!(config.cache.tables["public.audit"], CacheRule::Never);
    assert_eq!(config.telemetry.slow_statement, Some(Duration::from_millis(250)));
}

#[test]
fn every_fault_is_reported_at_once_with_path_line_and_value() {
    let text = r#"
[pool]
max_conections = 5
acquire_timeout = "30"
[[database]]
name = "a"
primary = "host=x"
[[database]]
name = "a"
primary = "host=y"
shards = ["host=s0"]
[[database.table]]
name = "t"
shard_key = "k"
method = "hsah"
[[user]]
name = "u"
"#;
    let error = read_in(Path::new("/nonexistent"), text).expect_err("faults");
    let found: Vec<_> = error.faults.iter().map(|f| (f.line, f.path.as_str(), f.seen.as_deref())).collect();
    assert_eq!(
        found,
        [
            (Some(3), "pool.max_conections", Some("5")),
            (Some(4), "pool.acquire_timeout", Some("\"30\"")),
            (Some(9), "database[1].name", Some("\"a\"")),
            (Some(15), "database[1].table[0].method", Some("\"hsah\"")),
            (Some(16), "user[0].auth", None),
        ]
    );
    assert!(error.faults[0].help.contains("\"max_connections\""), "{}", error.faults[0].help);
    assert!(error.faults[3].help.contains("did you mean \"hash\""), "{}", error.faults[3].help);
    let shown = error.to_string();
    assert!(shown.starts_with("proxy.toml: 5 faults\n"), "{shown}");
    assert!(shown.contains("line 15: database[1].table[0].method = \"hsah\""), "{shown}");
}

#[test]
fn keys_of_a_later_version_are_refused_by_name() {
    for (extra, path) in [
        ("[security]\naudit_log = \"a.jsonl\"", "security.audit_log"),
        ("[telemetry]\notlp = \"http://127.0.0.1:4317\"", "telemetry.otlp"),
        ("[fanout]\ncoordinator = \"host=c\"", "fanout.coordinator"),
        ("[pool]\nmode = \"statement\"", "pool.mode"),
        ("[[user]]\nname = \"b\"\npassword = \"x\"\nauth_query = \"select 1\"", "user[1].auth_query"),
        ("[[user]]\nname = \"b\"\npassword = \"x\"\npassthrough = true", "user[1].passthrough"),
    ] {
        let fault = only_fault(&with(extra));
        assert_eq!(fault.path, path);
        assert!(fault.problem.contains("not supported in this version"), "{fault}");
        assert!(!fault.help.is_empty());
    }
}

#[test]
fn one_thing_wrong_is_one_fault_at_its_key() {
    let table = |extra: &str| sharded(&format!("shard_key = \"k\"\n{extra}"));
    let cases: Vec<(String, &str, &str)> = vec![
        ("".into(), "database", "no database"),
        (with("[listen]\naddress = \"nowhere\""), "listen.address", "not an address"),
        (with("[listen]\naddress = \"0.0.0.0:7\"\nhttp = \"127.0.0.1:7\""), "listen.http", "clients connect to"),
        (with("[listen]\nunix_socket_dir = \"gone\""), "listen.unix_socket_dir", "does not exist"),
        (with("[listen]\nmax_clients = 0"), "listen.max_clients", "out of bounds"),
        (with("[listen]\nlogin_timeout = \"0\""), "listen.login_timeout", "longer than nothing"),
        (with("[listen.tls]\nmode = \"require\"\ncert = \"c.pem\""), "listen.tls.cert", "cannot be read"),
        (with("[pool]\nmax_connections = 5\nmin_connections = 6"), "pool.min_connections", "max_connections = 5"),
        (with("[pool]\nmax_connections = \"many\""), "pool.max_connections", "type string"),
        (with("[pool]\nmax_connections = 1.5"), "pool.max_connections", "type float"),
        (with("[pool]\nquery_timeout = true"), "pool.query_timeout", "type boolean"),
        (with("listen = 5"), "user[0].listen", "not known"),
        (with("[[user]]\nname = \"app\"\npassword = \"x\""), "user[1].name", "user[0] has this name"),
        (with("[[user]]\nname = \"b\"\nauth = \"md5\""), "user[1].auth", "nothing to check"),
        (with("[[user]]\nname = \"b\"\nauth = \"cert\""), "user[1].auth", "certificates need TLS"),
        (with("[[user]]\nname = \"b\"\nauth = \"cleartext\"\npassword = \"x\""), "user[1].auth", "under TLS"),
        (with("[[user]]\nname = \"b\"\npassword = \"\""), "user[1].password", "is empty"),
        (with("[[user]]\nname = \"b\"\npassword = \"${NOPE}\""), "user[1].password", "NOPE is not set"),
        (with("[[user]]\nname = \"b\"\npassword_file = \"gone\""), "user[1].password_file", "cannot be read"),
        (with("[[user]]\nname = \"b\"\nscram_secret = \"md5abc\""), "user[1].scram_secret", "not a SCRAM"),
        (with("[[user]]\nname = \"b\"\npassword = \"x\"\ndatabases = [\"ap\"]"), "user[1].databases", "no database"),
        (LEAST.replace("host=10.0.0.1", "hots=10.0.0.1"), "database[0].primary", "hots"),
        (LEAST.replace("[[user]]", "reads = \"replica\"\n[[user]]"), "database[0].reads", "no replicas"),
        (
            LEAST.replace("[[user]]", "[[database.table]]\nname = \"t\"\nreference = true\n[[user]]"),
            "database[0].table[0].name",
            "no shards",
        ),
        (LEAST.replace("[[user]]", "shards = [\"host=a\", \"host=a\"]\n[[user]]"), "database[0].shards", "twice"),
        (sharded("method = \"hash\""), "database[0].table[0].shard_key", "missing"),
        (table(""), "database[0].table[0].method", "not said"),
        (table("reference = true"), "database[0].table[0].shard_key", "whole on every shard"),
        (table("method = \"hash\"\nlists = []"), "database[0].table[0].lists", "has no lists"),
        (table("method = \"range\""), "database[0].table[0].ranges", "needs them"),
        (
            table("method = \"range\"\nranges = [{ from = 1, to = 5, shard = 2 }]"),
            "database[0].table[0].ranges[0].shard",
            "out of bounds",
        ),
        (
            table("method = \"range\"\nranges = [{ from = 5, to = 5, shard = 0 }]"),
            "database[0].table[0].ranges[0].from",
            "holds nothing",
        ),
        (
            table("method = \"range\"\nranges = [{ to = 10, shard = 0 }, { from = 9, shard = 1 }]"),
            "database[0].table[0].ranges[1].from",
            "overlaps with ranges[0]",
        ),
        (
            table("method = \"list\"\nlists = [{ values = [\"a\"], shard = 0 }, { values = [\"a\"], shard = 1 }]"),
            "database[0].table[0].lists[1].values",
            "listed twice",
        ),
        (table("method = \"list\"\nlists = [{ shard = 0 }]"), "database[0].table[0].lists[0].values", "no value"),
        (with("[cache]\nmemory = \"10XB\""), "cache.memory", "not a unit"),
        (with("[cache]\nmemory = \"2MiB\"\nmax_entry = \"3MiB\""), "cache.max_entry", "fit into memory"),
        (with("[cache.redis]\nttl = \"1h\""), "cache.redis.url", "missing"),
        (with("[cache.redis]\nurl = \"http://x\""), "cache.redis.url", "scheme"),
        (with("[cache.redis]\nurl = \"redis-cluster://x:1\""), "cache.redis.url", "cannot be kept"),
        (with("[cache.redis]\nurl = \"redis://x:notaport\""), "cache.redis.url", "cannot be read"),
        (with("[cache.redis]\nurl = \"redis://x:1\"\nca = \"ca.pem\""), "cache.redis.ca", "not encrypted"),
        (
            with("[cache.redis]\nurl = \"redis://x:1\"\ntimeout = \"11s\""),
            "cache.redis.timeout",
            "as long as the lease",
        ),
        (with("[cache.tables]\n\"a.b.c\" = \"1s\""), "cache.tables", "more than two parts"),
        (with("[cache.statements]\n\"abc\" = \"1s\""), "cache.statements", "not a fingerprint"),
        (with("[cache.tables]\nt = \"often\""), "cache.tables", "must begin with"),
        (with("[fanout]\npure_functions = [\"slug\"]"), "fanout.pure_functions", "argument types"),
        (with("[telemetry]\nlog = \"in=fo=x\""), "telemetry.log", "filter"),
        (with("[telemetry]\nlog = \"verbose\""), "telemetry.log", "\"verbose\" is no level"),
        (with("[telemetry]\nlog = \"info, debgu\""), "telemetry.log", "\"debgu\" is no level"),
        (with("[telemetry]\nlog = \"pgherd=loud\""), "telemetry.log", "filter"),
        (with("[[pool]]\nmode = \"session\""), "pool", "type array"),
    ];
    for (text, path, problem) in cases {
        let all = faults(&text);
        let fault = all.iter().find(|fault| fault.path == path);
        let fault = fault.unwrap_or_else(|| panic!("no fault at {path} for\n{text}\nbut {all:#?}"));
        assert!(fault.problem.contains(problem), "{path}: {fault}");
        assert!(!fault.help.is_empty(), "{fault}");
    }
}

#[test]
fn a_cluster_is_fine_where_only_bounded_is_promised_or_marks_are_confirmed() {
    let text = with("[cache]\nconsistency = \"bounded\"\nredis = { url = \"redis-cluster://127.0.0.1:7000\" }");
    assert!(good(&text).config.cache.redis.is_some());
    let confirmed =
        "[cache]\nredis = { url = \"redis-sentinel://127.0.0.1:7000?sentinelServiceName=m\", replicas = 2 }";
    assert_eq!(good(&with(confirmed)).config.cache.redis.map(|redis| redis.replicas), Some(2));
}

#[test]
fn secrets_never_show() {
    let text = r#"
[[database]]
name = "app"
primary = "host=x pasword=hunter2 port=99999999"
[[user]]
name = "app"
pasword = "hunter2"
[[user]]
name = "b"
password = "hunter2"
scram_secret = "hunter2"
[cache]
redis = { url = "redis-sentinel://:hunter2@x:1" }
[cache]
redis = "redis://:hunter2@x:1"
[broken
"#;
    let error = read_in(Path::new("/nonexistent"), text).expect_err("faults");
    assert!(error.faults.len() >= 5, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(!format!("{:?}", good(LEAST).config).contains("secret\""));
}

#[test]
fn what_is_not_toml_is_a_fault_with_its_line() {
    let all = faults("[listen]\naddress = = 5\n[[database]\nname = 1\n");
    assert!(all.iter().any(|f| f.line == Some(2) && f.problem.contains("not TOML")), "{all:#?}");
    assert!(all.iter().any(|f| f.line == Some(3) && f.problem.contains("not TOML")), "{all:#?}");
}

#[test]
fn password_files_are_read_beside_the_toml_and_trimmed_of_one_newline() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("secrets")).expect("a folder");
    let file = folder.path().join("secrets/app");
    fs::write(&file, " pass word \r\n").expect("a file");
    let text = LEAST.replace("password = \"secret\"", "password_file = \"secrets/app\"");

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    let loaded = read_in(folder.path(), &text).expect("no faults");
    let password = loaded.config.users["app"].password.clone().expect("a password");
    assert_eq!(password.expose(), " pass word ");
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].problem.contains("every user"), "{}", loaded.warnings[0]);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(read_in(folder.path(), &text).expect("no faults").warnings.is_empty());

    fs::write(&file, "two\nlines\n").expect("a file");
    assert!(read_in(folder.path(), &text).expect_err("a fault").to_string().contains("cannot be a password"));
}

#[test]
fn certificates_are_looked_into() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    fs::write(folder.path().join("c.pem"), made.cert.pem()).expect("a file");
    fs::write(folder.path().join("k.pem"), made.signing_key.serialize_pem()).expect("a file");
    let tls = |cert: &str, key: &str, more: &str| {
        with(&format!("[listen]\ntls = {{ mode = \"require\", cert = \"{cert}\", key = \"{key}\"{more} }}"))
    };
    let loaded = read_in(folder.path(), &tls("c.pem", "k.pem", "")).expect("no faults");
    assert_eq!(loaded.config.listen.tls.cert, Some(folder.path().join("c.pem")));

    let swapped = read_in(folder.path(), &tls("k.pem", "c.pem", "")).expect_err("faults").to_string();
    assert!(swapped.contains("does not hold a certificate") && swapped.contains("private key"), "{swapped}");

    let user = "\n[[user]]\nname = \"c\"\nauth = \"cert\"\n";
    let without = read_in(folder.path(), &format!("{}{user}", tls("c.pem", "k.pem", ""))).expect_err("a fault");
    assert!(without.to_string().contains("nothing to check client certificates against"), "{without}");
    let with_ca = format!("{}{user}", tls("c.pem", "k.pem", ", client_ca = \"c.pem\""));
    assert_eq!(read_in(folder.path(), &with_ca).expect("no faults").config.users["c"].auth, AuthMethod::Cert);
}

#[test]
fn trust_is_only_what_the_file_calls_so() {
    let text = with("[listen]\naddress = \"0.0.0.0:6432\"\n[[user]]\nname = \"t\"\nauth = \"trust\"");
    let loaded = good(&text);
    assert_eq!(loaded.config.users["t"].auth, AuthMethod::Trust);
    assert!(loaded.warnings.iter().any(|warning| warning.problem.contains("on this machine")));
}

#[test]
fn every_default_can_be_read() {
    // `good` would find a default that its own getter cannot read as zero or nothing; here each is read by kind.
    for section in keys::sections() {
        for key in section.keys {
            let Some(default) = key.default else { continue };
            let is_read = match key.kind {
                keys::Kind::Duration => config::units::duration(default).is_ok_and(|it| !it.is_zero()),
                keys::Kind::DurationOrOff => default == "off" || config::units::duration(default).is_ok(),
                keys::Kind::Size => config::units::size(default).is_ok(),
                keys::Kind::Count => default.parse::<u64>().is_ok(),
                keys::Kind::Flag => default.parse::<bool>().is_ok(),
                keys::Kind::Choice(words) => words.contains(&default),
                _ => true,
            };
            assert!(is_read, "{}.{} = {default}", section.path, key.name);
        }
    }
}

/// TOML-like lines out of the real keys, so that the property reaches past the parser.
fn line() -> impl Strategy<Value = String> {
    let names: Vec<String> =
        keys::sections().iter().flat_map(|section| section.keys.iter().map(|key| key.name.to_string())).collect();
    let headers: Vec<String> = keys::sections()
        .iter()
        .flat_map(|section| [format!("[{}]", section.path), format!("[[{}]]", section.path)])
        .collect();
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        Just("true".to_string()),
        "\"[^\"\\\\\n]{0,20}\"".prop_map(|text| text),
        "\"\\$\\{[A-Z:}-]{0,8}\"",
        Just("[{ from = \"1\", shard = 0 }, { to = 5, shard = 9 }]".to_string()),
        Just("{ url = \"redis://x\" }".to_string()),
        Just("[\"host=a\", 5, [], {}]".to_string()),
        Just("1979-05-27".to_string()),
    ];
    prop_oneof![
        proptest::sample::select(headers),
        (proptest::sample::select(names), value).prop_map(|(name, value)| format!("{name} = {value}")),
        "\\PC{0,30}",
    ]
}

proptest! {
    #[test]
    fn no_text_whatever_makes_it_panic(text in "\\PC*") {
        let _ = read_in(Path::new("/nonexistent"), &text);
    }

    #[test]
    fn no_arrangement_of_its_own_keys_makes_it_panic(lines in proptest::collection::vec(line(), 0..25)) {
        if let Err(faults) = read_in(Path::new("/nonexistent"), &lines.join("\n")) {
            prop_assert!(!faults.faults.is_empty());
            prop_assert!(!faults.to_string().is_empty());
        }
    }
}

fn with_tables(table: &str) -> String {
    format!(
        "[[database]]\nname = \"a\"\nprimary = \"host=x\"\nshards = [\"host=s0\", \"host=s1\"]\ntable = [{table}]\n\
         [[user]]\nname = \"u\"\nauth = \"trust\"\n"
    )
}

#[test]
fn shard_keys_of_several_columns_default_shards_and_groups_are_read() {
    let text = with_tables(
        r#"{ name = "p", shard_key = ["a", "B"], method = "hash", group = "g" },
           { name = "q", shard_key = ["x", "y"], method = "hash", group = "g" },
           { name = "r", shard_key = ["x", "y"], method = "range", default_shard = 1, ranges = [
               { to = 10, shard = 0 }, { from = [10], to = [10, "m"], shard = 1 }, { from = [10, "m"], to = [9999], shard = 0 }] },
           { name = "s", shard_key = ["k"], method = "list", default_shard = 0, lists = [{ values = [1], shard = 1 }] }"#,
    );
    let tables = &good(&text).config.databases["a"].tables;
    assert_eq!(tables[0].distribution.key(), ["a", "b"]);
    assert_eq!(tables[0].group.as_deref(), Some("g"));
    assert!(tables[0].distribution.is_alike(&tables[1].distribution));
    let Distribution::Range { ranges, default, .. } = &tables[2].distribution else { panic!("not by range") };
    assert_eq!((ranges[1].from.as_ref(), *default), (Some(&vec!["10".to_owned()]), Some(1)));
    assert_eq!(ranges[1].to.as_ref(), Some(&vec!["10".to_owned(), "m".to_owned()]));
    assert!(matches!(&tables[3].distribution, Distribution::List { column, default: Some(0), .. } if column == "k"));
}

#[test]
fn faults_of_keys_bounds_defaults_and_groups_are_named() {
    for (table, path, problem) in [
        (r#"{ name = "p", shard_key = [], method = "hash" }"#, "shard_key", "no column is named"),
        (r#"{ name = "p", shard_key = ["a", "A"], method = "hash" }"#, "shard_key", "stands in it twice"),
        (r#"{ name = "p", shard_key = 7, method = "hash" }"#, "shard_key", "cannot stand here"),
        (r#"{ name = "p", method = "hash" }"#, "shard_key", "missing"),
        (
            r#"{ name = "p", shard_key = ["a", "b"], method = "list", lists = [{ values = [1], shard = 0 }] }"#,
            "shard_key",
            "one column",
        ),
        (
            r#"{ name = "p", shard_key = "a", method = "hash", default_shard = 0 }"#,
            "default_shard",
            "every key has its shard",
        ),
        (
            r#"{ name = "p", shard_key = "a", method = "range", ranges = [{ shard = 0 }], default_shard = 2 }"#,
            "default_shard",
            "out of bounds",
        ),
        (
            r#"{ name = "p", shard_key = "a", method = "range", ranges = [{ to = [1, 2], shard = 0 }] }"#,
            "ranges[0].to",
            "more values",
        ),
        (
            r#"{ name = "p", shard_key = ["a", "b"], method = "range", ranges = [{ to = [1, 2], shard = 0 }, { from = [1], shard = 1 }] }"#,
            "ranges[1].from",
            "overlaps with ranges[0]",
        ),
        (
            r#"{ name = "p", shard_key = ["a", "b"], method = "range", ranges = [{ from = [1, 2], to = [1], shard = 0 }] }"#,
            "ranges[0].from",
            "holds nothing",
        ),
        (r#"{ name = "p", reference = true, group = "g" }"#, "group", "no group"),
        (
            r#"{ name = "p", shard_key = "a", method = "hash", group = "g" }, { name = "q", shard_key = ["a", "b"], method = "hash", group = "g" }"#,
            "table[1].group",
            "public.p of this group is spread otherwise",
        ),
    ] {
        let error = read_in(Path::new("/nonexistent"), &with_tables(table)).expect_err(table);
        let is_it = |fault: &crate::config::Fault| fault.path.ends_with(path) && fault.problem.contains(problem);
        assert!(error.faults.iter().any(is_it), "{table}: {error}");
        assert_eq!(error.faults.len(), 1, "{table}: {error}");
    }
}

#[test]
fn schemas_that_are_spread_are_read_and_their_faults_named() {
    let text = |keys: &str| {
        format!(
            "[[database]]\nname = \"a\"\nprimary = \"host=x\"\nshards = [\"host=s0\", \"host=s1\"]\n{keys}\n\
             [[user]]\nname = \"u\"\nauth = \"trust\"\n"
        )
    };
    let good = good(&text(
        r#"shard_by = "schema"
        schemas = ["tenant_*", "Acme"]
        schema = [{ name = "tenant_7", shard = 1 }]"#,
    ));
    assert!(!good.warnings.iter().any(|warning| warning.path.ends_with("shards")), "{:?}", good.warnings);
    let schemas = good.config.databases["a"].schemas.clone().expect("schemas");
    assert_eq!(schemas.listed["tenant_7"], 1);
    assert!(
        schemas.hashed[0].matches("tenant_x")
            && !schemas.hashed[0].matches("tenant")
            && schemas.hashed[1].matches("acme")
    );
    for (keys, path, problem) in [
        (r#"shard_by = "schema""#, "shard_by", "which schemas"),
        (r#"schemas = ["x"]"#, "schemas", "one by one"),
        (r#"schema = [{ name = "x", shard = 0 }]"#, "schema", "one by one"),
        ("shard_by = \"schema\"\nschemas = [\"*\"]", "schemas", "begins with a letter"),
        ("shard_by = \"schema\"\nschemas = [\"pg_x*\"]", "schemas", "on every server"),
        ("shard_by = \"schema\"\nschema = [{ name = \"x\", shard = 2 }]", "schema[0].shard", "out of bounds"),
        ("shard_by = \"schema\"\nschema = [{ name = \"x\" }]", "schema[0].shard", "missing"),
        (
            "shard_by = \"schema\"\nschema = [{ name = \"x\", shard = 0 }, { name = \"X\", shard = 1 }]",
            "schema[1].name",
            "twice",
        ),
    ] {
        let error = read_in(Path::new("/nonexistent"), &text(keys)).expect_err(keys);
        let is_it = |fault: &crate::config::Fault| fault.path.ends_with(path) && fault.problem.contains(problem);
        assert!(error.faults.iter().any(is_it) && error.faults.len() == 1, "{keys}: {error}");
    }
}
