//! Foreign keys over shards: made through pgherd where every shard has the rows that its own refer to, refused with what helps elsewhere.

use super::several::Twins;
use super::stage::{ok, say};
use crate::answers::Manner;
use crate::harness::wire::WireClient;

/// The error's message and hint.
async fn refusal(client: &mut WireClient, sql: &str) -> (String, String) {
    let answer = client.query(sql).await;
    let error = answer.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("{sql}: {answer:?}"));
    assert_eq!(error.field(b'C').as_deref(), Some("0A000"), "{sql}: {error:?}");
    (error.field(b'M').unwrap_or_default(), error.field(b'H').unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_refer_to_rows_with_the_same_shard_key_and_to_reference_tables() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for sql in [
        "alter table entries add foreign key (account_id) references accounts (id) on delete cascade on update cascade",
        "alter table entries add column code text references rates",
        "insert into entries (account_id, amount) values (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)",
        "insert into entries (account_id, amount) values (6, 1), (999, 2)",
        "insert into entries (account_id, amount, code) values (6, 1, 'a'), (7, 2, 'b'), (8, 2, null)",
        "insert into entries (account_id, amount, code) values (6, 1, 'a'), (7, 2, 'nothing')",
        "delete from rates where code = 'a'",
        "delete from accounts where id in (1, 2, 3)",
        "select account_id, amount, code from entries order by 1",
        "delete from accounts where id > 4",
        "select account_id, amount, code from entries order by 1",
        "update rates set code = 'c' where code = 'b'",
        "alter table entries drop constraint entries_account_id_fkey",
        "insert into entries (account_id, amount) values (999, 2)",
        "alter table entries add constraint late foreign key (account_id) references accounts (id) not valid",
        "alter table entries validate constraint late",
        "delete from entries where account_id = 999",
        "alter table entries validate constraint late",
        "truncate accounts",
        "truncate accounts, entries",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_made_with_foreign_keys_to_themselves_and_to_those_beside_them() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for sql in [
        "drop table entries",
        "create table entries (account_id int4 not null references accounts on delete cascade, id int8 default 1, amount int8 not null, \
         note text default 'none', code text references rates (code), former int8, primary key (account_id, id), \
         foreign key (account_id, former) references entries (account_id, id))",
        "insert into entries (account_id, id, amount) values (1, 1, 5), (2, 1, 5), (3, 1, 5)",
        "insert into entries (account_id, id, amount, former) values (1, 2, 5, 1), (2, 2, 5, 1), (3, 2, 5, 1)",
        "insert into entries (account_id, id, amount, former) values (1, 3, 5, 9), (2, 3, 5, 1)",
        "insert into entries (account_id, id, amount) values (77, 1, 5)",
        "delete from accounts where id < 3",
        "select account_id, id, former from entries order by 1, 2",
        "begin",
        "insert into accounts (id, owner, balance) values (101, 'new', 1), (102, 'new', 1), (103, 'new', 1)",
        "insert into entries (account_id, id, amount) values (101, 1, 5), (102, 1, 5), (103, 1, 5)",
        "commit",
        "select count(*) from entries",
    ] {
        twins.same(&mut clients, Manner::Simple, sql).await;
    }
    twins.is_same().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_shard_can_judge_alone_is_refused_with_why_and_what_helps() {
    let twins = Twins::set(2).await;
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "create table public.places (id int4 primary key)").await;
    for (sql, why, help) in [
        (
            "alter table entries add foreign key (id) references accounts (id)",
            "does not pair their shard keys",
            "FOREIGN KEY (account_id, ...) REFERENCES public.accounts (id, ...)",
        ),
        (
            "alter table rates add column account int4 references accounts",
            "from the reference table public.rates to the sharded table public.accounts",
            "shard public.rates",
        ),
        (
            "alter table entries add column place int4 references places",
            "no table of theirs by this name",
            "make it a reference table",
        ),
        (
            "alter table places add column account int4 references public.accounts (id)",
            "from places, which is not on the shards",
            "sharded or reference table",
        ),
        (
            "create table visits (id int4, account int4, foreign key (account) references accounts (id))",
            "which is not on the shards, to accounts",
            "leave the foreign key out",
        ),
        (
            "alter table entries add foreign key (account_id) references accounts (id) on delete set null",
            "ON DELETE SET NULL or SET DEFAULT on its shard key",
            "ON DELETE CASCADE",
        ),
    ] {
        let (message, hint) = refusal(&mut client, sql).await;
        assert!(message.contains(why), "{sql}: {message}");
        assert!(hint.contains(help), "{sql}: {hint}");
    }
    // Keys of other types need not be where equal ones are.
    ok(&mut client, "drop table entries").await;
    let sql =
        "create table entries (account_id numeric not null references accounts (id), id int8, amount int8, note text)";
    let (message, hint) = refusal(&mut client, sql).await;
    assert!(message.contains("need not be on the same shard") && hint.contains("types"), "{message} {hint}");
    assert_eq!(say(&mut client, "select * from entries").await.code(), Some("42P01"), "nothing was made");
}
