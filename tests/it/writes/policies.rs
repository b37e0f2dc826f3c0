//! Row-level security over shards: what a policy reads must be whole on each of them.

use std::time::Duration;

use super::several::Twins;
use super::stage::{SCHEMA, Stage, say};
use crate::answers::{MANNERS, ask};
use crate::harness::wire::WireClient;
use crate::harness::{self, Pgherd};

#[tokio::test]
async fn policies_may_read_reference_tables_and_no_others() {
    let mut stage = Stage::set(3).await;
    let role = harness::unique("ann");
    let whole = harness::fresh_database().await;
    whole.execute(&SCHEMA.replace("%shards%", "1").replace("%shard%", "0")).await;
    let servers: Vec<_> = stage.shards.iter().chain([&stage.primary, &whole]).collect();
    for server in &servers {
        server
            .execute(&format!(
                "do $$ begin create role {role} login; \
                 exception when duplicate_object or unique_violation then null; end $$"
            ))
            .await;
    }
    let holders = || stage.shards.iter().chain([&whole]);
    let policy =
        |reads: &str| format!("drop policy if exists own on accounts; create policy own on accounts using ({reads})");
    for server in holders() {
        server
            .execute(&format!(
                "alter table accounts enable row level security; grant all on accounts, rates to {role}; \
                 grant select on entries to {role}; {}",
                policy("id % 2 = 0 and exists (select from rates where rate = 2)")
            ))
            .await;
    }
    stage.toml = stage.toml.replace(" user=postgres", "") + &format!("[[user]]\nname = \"{role}\"\nauth = \"trust\"\n");
    let twins = Twins { pgherd: Pgherd::start(&stage.toml).await, whole, stage };
    let mut clients = (
        WireClient::login(twins.whole.port, &role, &twins.whole.name).await,
        WireClient::login(twins.pgherd.port, &role, "app").await,
    );
    let statements = [
        "select count(*), sum(balance) from accounts",
        "select id from accounts order by id desc limit 3",
        "select balance from accounts where id = 6",
        "update accounts set balance = balance + 1",
        "delete from accounts where id in (3, 4)",
    ];
    for manner in MANNERS {
        for sql in statements {
            twins.same(&mut clients, manner, sql).await;
        }
    }
    // Each shard has entries of its own only.
    for server in twins.stage.shards.iter().chain([&twins.whole]) {
        server.execute(&policy("id in (select max(account_id) from entries)")).await;
    }
    let refused = async || {
        let mut client = WireClient::login(twins.pgherd.port, &role, "app").await;
        let answer = say(&mut client, statements[0]).await;
        answer.error.is_some_and(|(_, message)| message.contains("a policy of public.accounts reads public.entries"))
    };
    harness::eventually(Duration::from_secs(20), "the policy is known", refused).await;
    for manner in MANNERS {
        for sql in statements {
            assert_eq!(ask(&mut clients.1, manner, sql).await.code(), Some("0A000"), "{manner:?} {sql}");
        }
    }
}
