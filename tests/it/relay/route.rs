//! `EXPLAIN (ROUTE)` where nothing is planned: pgherd answers it in every database, in every manner.

use super::proxy::Proxy;
use crate::answers::{Answer, MANNERS, ask};

fn value(answer: &Answer, property: &str) -> String {
    let names = answer.column(0);
    let at = names.iter().position(|name| name.as_deref() == Some(property));
    let at = at.unwrap_or_else(|| panic!("no {property} in {answer:?}"));
    answer.column(1)[at].clone().unwrap_or_default()
}

#[tokio::test]
async fn a_database_without_plans_says_where_a_statement_goes_and_why() {
    let proxy = Proxy::start("max_connections = 2").await;
    proxy.database.execute("create table t (id int primary key)").await;
    let mut client = proxy.wire().await;
    for manner in MANNERS {
        for (sql, statement, reason) in [
            ("explain (route) select * from t where id = 1", "read", "read"),
            ("EXPLAIN (route) insert into t values (1)", "write", "write"),
            ("  explain (route) create table u (id int)", "ddl", "ddl"),
            ("explain (route) begin", "transaction", "transaction"),
        ] {
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!(
                (&answer.error, answer.tag.as_str(), answer.status),
                (&None, "EXPLAIN", 'I'),
                "{manner:?} {sql}"
            );
            assert_eq!(value(&answer, "plan"), "primary", "{manner:?} {sql}");
            assert_eq!((value(&answer, "statement").as_str(), value(&answer, "reason").as_str()), (statement, reason));
            assert!(!value(&answer, "why").is_empty());
        }
        // What follows is relayed as before, and PostgreSQL's own EXPLAIN is its own.
        assert_eq!(ask(&mut client, manner, "select count(*) from t").await.column(0).len(), 1);
        let plan = ask(&mut client, manner, "explain select * from t").await;
        assert_eq!((plan.error, plan.tag.as_str()), (None, "EXPLAIN"), "{manner:?}");
        let wrong = ask(&mut client, manner, "explain (rout) select 1").await;
        assert_eq!(wrong.code(), Some("42601"), "{manner:?}");
    }
    proxy.examine().await;
}

#[tokio::test]
async fn within_a_transaction_nothing_of_it_is_disturbed() {
    let proxy = Proxy::start("max_connections = 2").await;
    proxy.database.execute("create table t (id int primary key)").await;
    let mut client = proxy.wire().await;
    for manner in MANNERS {
        for (sql, tag, status) in [
            ("begin", "BEGIN", 'T'),
            ("insert into t values (1)", "INSERT 0 1", 'T'),
            ("explain (route) delete from t", "EXPLAIN", 'T'),
            ("delete from t", "DELETE 1", 'T'),
            ("rollback", "ROLLBACK", 'I'),
        ] {
            let answer = ask(&mut client, manner, sql).await;
            assert_eq!((answer.error, answer.tag.as_str(), answer.status), (None, tag, status), "{manner:?} {sql}");
        }
    }
    proxy.examine().await;
}
