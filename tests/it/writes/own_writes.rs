//! INSERT ... SELECT over shards in a transaction that has written: its query sees what the transaction wrote, as in one PostgreSQL.

use super::several::Twins;
use super::stage::ok;
use crate::answers::MANNERS;

#[tokio::test]
async fn the_query_sees_what_its_transaction_has_written() {
    let twins = Twins::set(3).await;
    twins.whole.execute("create table local_notes (id int4, note text)").await;
    let mut clients = twins.clients().await;
    for manner in MANNERS {
        for sql in [
            // Written on all shards.
            "begin",
            "update accounts set balance = 100 + id where id % 2 = 0",
            "insert into entries (account_id, amount) select id + 1, balance from accounts where balance > 100 returning account_id, amount",
            "insert into entries (account_id, amount, note) select id * 7, balance, owner from accounts order by balance desc, id limit 9 returning account_id, amount, note",
            "insert into entries (account_id, amount) select count(*), sum(balance) from accounts",
            "insert into entries (account_id, amount, note) select max(id), sum(balance), owner from accounts group by owner",
            "insert into entries (account_id, amount, note) select account_id + 1, amount, 'again' from entries",
            "insert into rates select owner, balance from accounts where id < 6 returning code, rate",
            "insert into rates select code || 'x', rate from rates where code > 'b' order by code limit 2",
            "insert into accounts (id, owner, balance, at) select account_id + 2, note, amount, null from entries where account_id < 35 and note = 'none' \
             on conflict (id) do update set balance = accounts.balance + excluded.balance returning id, balance",
            "insert into local_notes select id, owner from accounts where balance > 100",
            "commit",
            // On one of them.
            "begin",
            "update accounts set balance = 55 where id = 3",
            "insert into entries (account_id, amount) select id + 2, balance from accounts where balance = 55 returning account_id",
            "insert into entries (account_id, amount) select id + 1000, balance from accounts where id = 3 returning account_id, amount",
            "rollback",
            // Savepoints and errors.
            "begin",
            "delete from entries where amount > 0",
            "savepoint s",
            "delete from accounts where id > 20",
            "insert into accounts (id, owner, balance, at) select id + 100, 'moved', balance, null from accounts",
            "rollback to s",
            "insert into entries (account_id, amount, note) select id + 1, 7, 'after' from accounts where id > 30",
            "update accounts set balance = 77 where id = 9",
            "savepoint t",
            "insert into entries (account_id, amount) select id + 1, 1000 / (balance - 77) from accounts",
            "select 1",
            "rollback to t",
            "insert into entries (account_id, amount) select id + 1, 1000 / (balance - 78) from accounts",
            "insert into accounts (id, balance) select id + 1, 1 from accounts",
            "insert into entries (account_id, amount) select id + 1, 1 from accounts",
            "rollback to t",
            "release t",
            "insert into entries (account_id, amount) select id + 2, balance from accounts where balance = 77",
            "commit",
            "begin",
            "truncate entries",
            "insert into entries (account_id, amount) select id + 1, 5 from accounts",
            "insert into entries (account_id, amount) select account_id + 1, amount + 1 from entries where account_id < 20",
            "commit",
            "begin",
            "update accounts set balance = 3",
            "insert into entries (account_id, amount) select id + 1, 1 / (balance - 3) from accounts",
            "commit",
            "delete from entries",
            "delete from local_notes",
            "delete from accounts where id > 40",
            "delete from rates where code not in ('a', 'b')",
            "update accounts set balance = 100",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        twins.is_same().await;
    }
}

#[tokio::test]
async fn it_sees_what_others_have_committed_meanwhile_and_nothing_else() {
    let twins = Twins::set(3).await;
    let (mut clients, mut others) = (twins.clients().await, twins.clients().await);
    for manner in MANNERS {
        twins.same(&mut clients, manner, "begin").await;
        twins.same(&mut clients, manner, "update accounts set balance = 200 where id < 5").await;
        for other in [&mut others.0, &mut others.1] {
            ok(other, "update accounts set balance = 300 where id > 30").await;
            ok(other, "begin").await;
            ok(other, "update accounts set balance = 400 where id between 10 and 20").await;
        }
        for sql in [
            "insert into entries (account_id, amount) select id + 1, balance from accounts returning account_id, amount",
            "commit",
        ] {
            twins.same(&mut clients, manner, sql).await;
        }
        for other in [&mut others.0, &mut others.1] {
            ok(other, "rollback").await;
            ok(other, "update accounts set balance = 100").await;
        }
        twins.is_same().await;
    }
}
