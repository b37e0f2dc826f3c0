//! `pgherd explain` on real servers: the plan that a statement would get.

use std::path::{Path, PathBuf};

use pgherd::commands::explain::{self, Arguments, Explained};

use crate::harness;

/// A database with one table on the primary and one spread over two shards.
async fn configuration() -> (tempfile::TempDir, PathBuf) {
    let primary = harness::fresh_database().await;
    primary.execute("create table customers (id int primary key, name text)").await;
    let shards = harness::fresh_databases(2).await;
    for shard in &shards {
        shard.execute("create table orders (customer_id bigint not null, total int)").await;
    }
    let toml = format!(
        "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n[cache]\nenabled = true\n\
         [[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [\"{}\", \"{}\"]\n\
         [[database.table]]\nname = \"orders\"\nshard_key = \"customer_id\"\nmethod = \"hash\"\n",
        primary.address(),
        shards[0].address(),
        shards[1].address()
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    std::fs::write(&path, toml).expect("a file");
    (folder, path)
}

async fn ask(path: &Path, sql: &str) -> Explained {
    let arguments = Arguments { sql: sql.into(), database: None, user: None };
    explain::run(path.to_path_buf(), &arguments).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn value<'e>(explained: &'e Explained, property: &str) -> &'e str {
    let row = explained.rows.iter().find(|(name, _)| name == property);
    row.map_or_else(|| panic!("no {property} in {explained:#?}"), |(_, value)| value)
}

#[tokio::test]
async fn each_statement_says_where_it_would_run() {
    let (_folder, path) = configuration().await;
    for (sql, plan) in [
        ("insert into customers values (1, 'x')", "primary"),
        ("select count(*) from customers", "cached"),
        ("select name from customers where id = 1", "primary"),
        ("select total from orders where customer_id = 7", "shard"),
        ("select total from orders", "fan-out"),
    ] {
        let explained = ask(&path, sql).await;
        assert_eq!(value(&explained, "plan"), plan, "{sql}: {explained:#?}");
        assert!(!explained.refused);
        assert_eq!(value(&explained, "user"), "postgres");
    }
}

#[tokio::test]
async fn a_refusal_names_the_clause_and_what_to_do() {
    let (_folder, path) = configuration().await;
    let explained = ask(&path, "do $$ begin delete from orders; end $$").await;
    assert!(explained.refused, "{explained:#?}");
    assert!(!value(&explained, "refused").is_empty() && !value(&explained, "hint").is_empty());
}

#[tokio::test]
async fn what_cannot_be_asked_is_said() {
    let (_folder, path) = configuration().await;
    let wrong = Arguments { sql: "select 1".into(), database: Some("ap".into()), user: None };
    assert!(explain::run(path.clone(), &wrong).await.expect_err("no such database").contains("there is app"));
    let text = std::fs::read_to_string(&path)
        .expect("the file")
        .replace("host=127.0.0.1 port", "host=127.0.0.1 port=1 application_name");
    std::fs::write(&path, text).expect("a file");
    let arguments = Arguments { sql: "select 1".into(), database: None, user: None };
    let error = explain::run(path, &arguments).await.expect_err("no such server");
    assert!(error.contains("could not connect"), "{error}");
}
