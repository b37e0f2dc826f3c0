//! Views over sharded tables: read as their queries would be, with the rights that PostgreSQL gives their readers.

use std::fmt::Write as _;

use crate::answers::{MANNERS, Manner, ask, ask_with};
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};
use crate::layouts::Layout;

const SCHEMA: &str = r#"
create table orders (customer int, id int, region text, amount numeric(8, 2), primary key (customer, id));
create table lines (customer int, id int, n int, price int);
create table countries (code text primary key, label text);
insert into orders select g % 97, g, 'r' || g % 5, (g * 37 % 1000) / 8.0 from generate_series(1, 1500) g;
insert into lines select g % 97, g % 1500 + 1, g, g % 50 from generate_series(1, 3000) g;
insert into countries select 'r' || g, 'label ' || g from generate_series(0, 4) g;
create schema shop;
create view recent as select id, customer, region, amount from orders where amount > 50;
create view renamed (key, "Odd name", total) as select customer, region, amount * 2 from orders;
create view of_customer as select customer, count(*) as n, sum(amount) as total from orders group by customer;
create view of_region as select region, count(*) as n, sum(amount) as total, 'it''s \ this' as text from orders group by region;
create view labelled as select o.id, o.customer, c.label from orders o join countries c on c.code = o.region;
create view shop.deep as select id, customer, amount from recent where region <> 'r1';
create view ranked as select id, amount, rank() over (order by amount desc, id) as place from orders;
create view both_kinds as select id, customer from orders union all select n, customer from lines;
create view by_key as select o.customer, o.id, o.amount, count(l.n) as n from orders o left join lines l on l.customer = o.customer and l.id = o.id
  group by o.customer, o.id;
create view stepwise as with recursive steps(n) as (values (1) union all select n + 1 from steps where n < 5)
  select s.n, count(o.id) as orders from steps s left join orders o on o.id % 5 = s.n % 5 group by s.n;
create view labels as select upper(label) as label from countries;
create view rows_of as select region, json_agg(o order by o.id) as rows from orders o where o.id < 40 group by region;
create view locked as select id from orders for update;
"#;

struct Herd {
    whole: Database,
    shards: Vec<Database>,
    pgherd: Pgherd,
}

impl Herd {
    /// `more` is run on the one server and on each shard.
    async fn start(more: &str) -> Self {
        let (whole, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        whole.execute(&format!("{SCHEMA}{more}")).await;
        let role = "do $$ begin create role decider login superuser; \
                    exception when duplicate_object or unique_violation then null; end $$";
        primary.execute(&format!("{role}; create table taken (a int)")).await;
        let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [", primary.conninfo());
        let layout = Layout::hash(&["customer"]);
        let shards = harness::fresh_databases(3).await;
        for (at, shard) in shards.iter().enumerate() {
            let own: String =
                ["orders", "lines"].iter().map(|table| layout.keep_own(table, shards.len(), at)).collect();
            shard.execute(&format!("{SCHEMA}{more}{own}analyze")).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\ntwo_phase = { user = \"decider\", latch = \"local\" }\n";
        ["orders", "lines"].iter().for_each(|table| toml += &layout.toml(table, shards.len()));
        toml += "[[database.table]]\nname = \"public.countries\"\nreference = true\n";
        toml += "[[user]]\nname = \"postgres\"\nauth = \"trust\"\n[cache]\nenabled = false\n";
        Self { whole, shards, pgherd: Pgherd::start(&toml).await }
    }

    async fn clients(&self) -> (WireClient, WireClient) {
        (WireClient::login(self.whole.port, "postgres", &self.whole.name).await, self.pgherd.wire("app").await)
    }
}

/// The answers are equal in every manner; what EXPLAIN (ROUTE) says the plan is.
async fn plan_of(oracle: &mut WireClient, client: &mut WireClient, text: &str) -> String {
    for manner in MANNERS {
        let wanted = ask(oracle, manner, text).await.sorted();
        assert_eq!(wanted.error, None, "{text}");
        assert_eq!(ask(client, manner, text).await.sorted(), wanted, "{text} {manner:?}");
    }
    let route = ask(client, Manner::Simple, &format!("explain (route) {text}")).await;
    let value = |name: &str| {
        let at = route.column(0).iter().position(|it| it.as_deref() == Some(name))?;
        route.column(1).swap_remove(at)
    };
    value("plan").unwrap_or_else(|| panic!("{text}: {route:?}"))
}

#[tokio::test]
async fn are_read_as_their_queries_are() {
    let herd = Herd::start("").await;
    let (mut oracle, mut client) = herd.clients().await;
    for (plan, text) in [
        ("shard", "select * from recent where customer = 7"),
        ("shard", "select total from of_customer where customer = 7"),
        ("shard", "select * from labels"),
        ("fan-out", "select id, amount from recent"),
        ("fan-out", "select id, amount from public.recent order by amount desc, id limit 7"),
        ("fan-out", "select count(*), sum(amount) from recent r where region = 'r2'"),
        (
            "fan-out",
            "select region, count(*) from shop.deep d join recent using (customer, id) group by region order by 1",
        ),
        ("gather", "select * from ranked where place <= 3"),
        ("gather", "select * from of_region order by region"),
        ("gather", "select n, orders from stepwise"),
        ("gather", "select customer, count(*) from both_kinds group by customer having count(*) > 40"),
        ("gather", "select k.n, count(*), max(k.amount) from by_key k group by k.n"),
        ("gather", "select r.id from recent r join ranked p on p.id = r.id where p.place < 9"),
        (
            "gather",
            "select r.id, (select count(*) from orders o where o.amount > r.amount) from recent r where r.id < 60",
        ),
    ] {
        assert_eq!(plan_of(&mut oracle, &mut client, text).await, plan, "{text}");
    }
    // However they are run.
    for text in [
        "select d.id, l.label from shop.deep d join labelled l on l.id = d.id and l.customer = d.customer where d.customer = 3",
        "select count(*) from by_key",
        // Whole rows, and columns that nobody names.
        "select rows from rows_of where region = 'r3'",
        "select region, json_agg(o.* order by o.id) from orders o where o.id < 20 group by region",
        "select count(distinct o.*) from orders o",
        "select count(*) from (orders natural join lines)",
        "select count(*) from (recent natural join orders)",
        "select key, sum(total), min(\"Odd name\") from renamed group by key",
        "select v.a, v.c from renamed as v(a, b, c) where v.c > 240",
        "select public.recent.id from public.recent where public.recent.amount > 120",
        "select row_to_json(r) from recent r where r.id < 30",
        "select count(r.*) from recent r",
        "select o.label, count(*) from labelled o group by o.label",
        "select count(*) from shop.deep d, ranked r where r.id = d.id and r.place < 100",
        "select total from of_customer c where n > (select avg(n) from of_customer)",
        "select n, total from of_customer order by total desc, n limit 5",
        "select * from recent where id in (select id from ranked where place < 20) and region in (select code from countries)",
        "select id from recent union select id from shop.deep",
        "select x.n from (select count(*) as n from recent) x, of_region",
        "select distinct on (region) region, id from recent order by region, amount desc, id",
    ] {
        plan_of(&mut oracle, &mut client, text).await;
    }
    for manner in [Manner::Text, Manner::Binary, Manner::Prepared] {
        for text in ["select id from recent where customer = $1", "select count(*) from ranked where place < $1::int"] {
            let wanted = ask_with(&mut oracle, manner, text, &[Some("9")]).await.sorted();
            assert_eq!(ask_with(&mut client, manner, text, &[Some("9")]).await.sorted(), wanted, "{text}");
        }
    }
}

#[tokio::test]
async fn are_refused_where_shards_cannot_say() {
    let herd = Herd::start("").await;
    let (_, mut client) = herd.clients().await;
    for text in [
        "select * from locked",
        "create view pg_temp.passing as select * from orders",
        "with recent as (select 1 as one) select one, count(*) from recent, orders group by one",
        "select * from recent for update",
        "select * from recent tablesample system (10)",
        "update recent set amount = 1",
        "update orders set amount = 1 where id in (select id from recent)",
        "create temp view t as select * from orders",
        "create materialized view m as select * from orders",
        "create view mixed as select * from orders, pg_temp.t",
    ] {
        let answer = ask(&mut client, Manner::Simple, text).await;
        assert!(matches!(answer.code(), Some("0A000" | "42601")), "{text}: {answer:?}");
    }
}

#[tokio::test]
async fn go_into_cursors_copies_and_plans() {
    let herd = Herd::start("").await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        ask(one, Manner::Simple, "begin").await;
        for cursor in ["c", "d"] {
            let text = format!("declare {cursor} cursor for select id, place from ranked order by place");
            assert_eq!(ask(one, Manner::Simple, &text).await.error, None);
        }
    }
    for fetch in ["fetch 3 c", "fetch 2 d", "fetch 5 c", "close c", "fetch 1 d", "commit"] {
        let wanted = ask(&mut oracle, Manner::Simple, fetch).await;
        assert_eq!(ask(&mut client, Manner::Simple, fetch).await, wanted, "{fetch}");
    }
    for copy in [
        "copy (select * from of_region order by region) to stdout",
        "copy (select id from shop.deep order by id) to stdout",
    ] {
        let wanted: Vec<_> =
            oracle.query(copy).await.into_iter().filter(|it| it.tag == b'd').map(|it| it.body).collect();
        let got: Vec<_> = client.query(copy).await.into_iter().filter(|it| it.tag == b'd').map(|it| it.body).collect();
        assert!(!wanted.is_empty() && got == wanted, "{copy}");
    }
    for text in [
        "explain select count(*) from by_key",
        "explain (analyze) select count(*) from by_key",
        "explain select id from recent",
    ] {
        assert_eq!(ask(&mut client, Manner::Simple, text).await.error, None, "{text}");
    }
}

#[tokio::test]
async fn show_what_their_readers_may_see() {
    let (reader, outsider) =
        (harness::fresh_role("pg_read_all_settings").await, harness::fresh_role("pg_read_all_settings").await);
    let grants =
        format!("grant select on recent, ranked, of_region to {reader}; grant select on orders, lines to {outsider};");
    let herd = Herd::start(&grants).await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        assert_eq!(ask(one, Manner::Simple, &format!("set role {reader}")).await.error, None);
    }
    // Who may read the view and not its tables.
    for text in
        ["select * from recent where customer = 7", "select count(*), max(amount) from recent", "select id from recent"]
    {
        plan_of(&mut oracle, &mut client, text).await;
    }
    for text in ["select * from ranked", "select * from of_region"] {
        assert_eq!(ask(&mut oracle, Manner::Simple, text).await.error, None);
        assert_eq!(ask(&mut client, Manner::Simple, text).await.code(), Some("0A000"), "{text}");
    }
    // Who may read the tables and not the view.
    for one in [&mut oracle, &mut client] {
        ask(one, Manner::Simple, "reset role").await;
        assert_eq!(ask(one, Manner::Simple, &format!("set role {outsider}")).await.error, None);
    }
    for text in [
        "select * from recent where customer = 7",
        "select count(*) from recent",
        "select * from ranked",
        "select * from of_region",
    ] {
        let wanted = ask(&mut oracle, Manner::Simple, text).await;
        assert_eq!(wanted.code(), Some("42501"));
        assert_eq!(ask(&mut client, Manner::Simple, text).await.error, wanted.error, "{text}");
    }
}

#[tokio::test]
async fn over_rows_that_policies_hide_are_read_by_the_shards_alone() {
    let reader = harness::fresh_role("pg_read_all_settings").await;
    let more = format!(
        "alter table orders enable row level security; create policy p on orders to {reader} using (region = 'r1');
         grant select on orders, recent, ranked to {reader};"
    );
    let herd = Herd::start(&more).await;
    let (mut oracle, mut client) = herd.clients().await;
    for one in [&mut oracle, &mut client] {
        assert_eq!(ask(one, Manner::Simple, &format!("set role {reader}")).await.error, None);
    }
    // The view's owner sees all rows, its reader some of the table's.
    for text in
        ["select count(*) from recent", "select count(*) from orders", "select * from recent where customer = 7"]
    {
        plan_of(&mut oracle, &mut client, text).await;
    }
    assert_eq!(ask(&mut client, Manner::Simple, "select * from ranked").await.code(), Some("0A000"));
}

#[tokio::test]
async fn are_made_and_dropped_on_every_shard() {
    let herd = Herd::start("").await;
    let (mut oracle, mut client) = herd.clients().await;
    for (text, probe) in [
        ("create view cheap as select id, customer from orders where amount < 20", "select count(*) from cheap"),
        (
            "create or replace view cheap as select id, customer from orders where amount < 30",
            "select count(*) from cheap",
        ),
        (
            "create view over_cheap as with c as (select id from cheap) select max(id) as most from c",
            "select * from over_cheap",
        ),
        ("drop view over_cheap", "select * from cheap where customer = 3"),
    ] {
        for one in [&mut oracle, &mut client] {
            assert_eq!(ask(one, Manner::Simple, text).await.error, None, "{text}");
        }
        plan_of(&mut oracle, &mut client, probe).await;
    }
    ask(&mut client, Manner::Simple, "begin").await;
    let within = ask(
        &mut client,
        Manner::Simple,
        "create or replace view cheap as select id, customer - 1 as customer from orders",
    )
    .await;
    assert_eq!(within.code(), Some("0A000"), "{within:?}");
    ask(&mut client, Manner::Simple, "rollback").await;
    let gone = ask(&mut client, Manner::Simple, "select * from over_cheap").await;
    assert_eq!(gone.code(), Some("42P01"), "{gone:?}");
    for shard in &herd.shards {
        assert_eq!(shard.client().await.query("select from cheap limit 1", &[]).await.expect("it is there").len(), 1);
    }
    let taken = ask(&mut client, Manner::Simple, "create view taken as select id from orders").await;
    assert_eq!(taken.code(), Some("0A000"), "{taken:?}");
}
