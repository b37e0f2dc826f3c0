//! The tables that the checker reads and writes, and who may do so.

use crate::harness::{Database, unique};

pub(super) const NORTH: [i32; 4] = [100, 101, 102, 103];
pub(super) const SOUTH: [i32; 4] = [200, 201, 202, 203];
pub(super) const LEDGER: [i32; 3] = [300, 301, 302];
pub(super) const CHILD: [i32; 2] = [400, 401];
pub(super) const KEPT: [i32; 2] = [450, 451];
pub(super) const MIRROR: [i32; 1] = [500];
pub(super) const PART: [i32; 3] = [600, 601, 602];
pub(super) const SWAP: [i32; 1] = [700];
pub(super) const LOG: [i32; 1] = [800];
/// Rows of two tenants, which only the policy keeps apart.
pub(super) const TENANTS: [i32; 2] = [850, 851];
/// The version stands in a view's text.
pub(super) const STAMP: [i32; 1] = [900];
/// The version stands in a function's body.
pub(super) const EDITION: [i32; 1] = [901];
/// The table is rewritten for each version, and gets and loses columns.
pub(super) const WIDE: [i32; 1] = [902];
/// Each version is a partition of its own.
pub(super) const HUNG: [i32; 1] = [903];
/// Readers may read at even versions and not at odd ones.
pub(super) const GATE: [i32; 1] = [904];
pub(super) const MATVIEW: [i32; 1] = [905];
/// Written by a rule.
pub(super) const RULED: [i32; 1] = [906];
/// Written by a trigger that comes and goes.
pub(super) const TOGGLED: [i32; 1] = [907];

/// Versions that a chain of KEPT can take.
pub(super) const KEPT_VERSIONS: i64 = 5000;

/// What is written by INSERT, UPDATE, DELETE, MERGE, COPY and TRUNCATE.
pub(super) fn row_chains() -> Vec<i32> {
    let rows: [&[i32]; 10] = [&NORTH, &SOUTH, &LEDGER, &CHILD, &KEPT, &MIRROR, &PART, &LOG, &TENANTS, &RULED];
    rows.concat()
}

/// What is written by changes of definitions and rights, each of which makes every pgherd read the catalog again; and by TRUNCATE
/// and REFRESH.
pub(super) fn definition_chains() -> Vec<i32> {
    [SWAP, STAMP, EDITION, WIDE, HUNG, GATE, MATVIEW, TOGGLED].concat()
}

pub(super) fn all_chains() -> Vec<i32> {
    [row_chains(), definition_chains()].concat()
}

/// The database and its roles.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) database: Database,
    pub(super) writer: String,
    /// Owners of the chains of LEDGER: the first may read all columns, the second all but `secret`; the third cannot log in and is
    /// the first's to become.
    pub(super) owners: [String; 3],
}

impl World {
    pub(super) async fn make(database: Database) -> Self {
        let writer = unique("scribe");
        let owners = [unique("reader"), unique("reader"), unique("reader")];
        let [first, second, third] = &owners;
        let roles = format!(
            "create role {writer} login; create role {first} login; create role {second} login; create role {third};
             grant {third} to {first};"
        );
        for statements in [&roles, TABLES, CODE, DEFINITIONS] {
            database.execute(statements).await;
        }
        for (chain, owner) in LEDGER.iter().zip(&owners) {
            let row = format!("insert into shop.ledger values ({chain}, '{owner}', 0, 'secret of {owner}')");
            database.execute(&row).await;
        }
        for chain in all_chains() {
            database.execute(&format!("insert into shop.guard values ({chain}, 0)")).await;
        }
        let everybody = format!("{first}, {second}, {third}");
        let grants = format!(
            "grant usage on schema north, south, shop to {writer}, {everybody};
             grant create on schema shop to {writer};
             grant all on all tables in schema north, south, shop to {writer};
             grant select on all tables in schema north, south, shop to {everybody};
             revoke select on shop.ledger, shop.sealed from {second};
             grant select (chain, owner, v) on shop.ledger to {second};
             create policy own on shop.tenants for select to {everybody}
               using (tenant = current_setting('app.tenant', true));
             create policy all_rows on shop.tenants to {writer} using (true) with check (true);
             alter table shop.tenants enable row level security;"
        );
        database.execute(&grants).await;
        // Who changes definitions owns them.
        for owned in ["view stamp", "table wide", "table hung", "table hung_0", "table gate", "materialized view mat"] {
            let (kind, name) = owned.rsplit_once(' ').expect("a kind and a name");
            database.execute(&format!("alter {kind} shop.{name} owner to {writer}")).await;
        }
        database.execute(&format!("alter table shop.toggle_base owner to {writer}")).await;
        database.execute(&format!("alter function shop.edition() owner to {writer}")).await;
        Self { database, writer, owners }
    }

    pub(super) fn logins(&self) -> Vec<String> {
        let mut users = vec!["postgres".to_owned(), self.writer.clone()];
        users.extend_from_slice(&self.owners[..2]);
        users
    }

    /// Those whose rights come and go.
    pub(super) fn readers(&self) -> String {
        self.owners.join(", ")
    }
}

const TABLES: &str = "
create schema north; create schema south; create schema shop;
create table north.item (chain int primary key, v bigint not null, origin text not null, at timestamptz not null);
create table south.item (chain int primary key, v bigint not null, origin text not null, at timestamptz not null);
insert into north.item select c, 0, 'north', to_timestamp(0) from generate_series(100, 103) c;
insert into south.item select c, 0, 'south', to_timestamp(0) from generate_series(200, 203) c;
create view shop.north_items as select chain, v, origin from north.item;
create view shop.north_edit as select chain, v, at from north.item;

create table shop.guard (chain int primary key, v bigint not null);
create table shop.ledger (chain int primary key, owner text not null, v bigint not null, secret text not null);

create table shop.parent (chain int primary key, v bigint not null, unique (chain, v));
create table shop.child (chain int, v bigint, n int, foreign key (chain, v) references shop.parent (chain, v) on update cascade);
insert into shop.parent values (400, 0), (401, 0);
insert into shop.child select chain, v, n from shop.parent, generate_series(1, 3) n;

create table shop.old (chain int, v bigint, primary key (chain, v));
create table shop.kept (chain int, v bigint, foreign key (chain, v) references shop.old on delete cascade);
insert into shop.old select c, v from generate_series(450, 451) c, generate_series(1, 5000) v;
insert into shop.kept select * from shop.old;
create index on shop.kept (chain, v);

create table shop.source (chain int primary key, v bigint not null);
create table shop.mirror (chain int primary key, v bigint not null);
insert into shop.source values (500, 0);
insert into shop.mirror values (500, 0);

create table shop.part (chain int not null, v bigint not null) partition by list (chain);
create table shop.part_low partition of shop.part for values in (600, 601);
create table shop.part_high partition of shop.part for values in (602);
insert into shop.part values (600, 0), (601, 0), (602, 0);

create table shop.swap (chain int, v bigint);
insert into shop.swap values (700, 0);
create table shop.log (chain int, v bigint);
insert into shop.log values (800, 0);
create view shop.sealed as select chain, v from shop.log;

create table shop.tenants (chain int primary key, v bigint not null, tenant text not null);
insert into shop.tenants values (850, 0, 'a'), (851, 0, 'b');
";

const CODE: &str = "
create function shop.reflect() returns trigger language plpgsql as $$
begin
  update shop.mirror set v = new.v where chain = new.chain;
  return null;
end $$;
create trigger reflect after update on shop.source for each row execute function shop.reflect();
create function shop.bump(c int, n bigint) returns bigint language plpgsql as $$
begin
  update north.item set v = n, at = to_timestamp(n) where chain = c and v < n;
  return n;
end $$;
create procedure shop.bump_and_commit(c int, n bigint) language plpgsql as $$
begin
  update north.item set v = n, at = to_timestamp(n) where chain = c and v < n;
  commit;
  perform count(*) from generate_series(1, 20000);
end $$;
create table shop.toggle_base (chain int primary key, v bigint not null);
create table shop.toggled (chain int primary key, v bigint not null);
insert into shop.toggle_base values (907, 0);
insert into shop.toggled values (907, 0);
create function shop.toggle() returns trigger language plpgsql as $$
begin
  update shop.toggled set v = new.v where chain = new.chain and v < new.v;
  return null;
end $$;
";

const DEFINITIONS: &str = "
create table shop.one (a int); insert into shop.one values (1);
create view shop.stamp as select 900 as chain, 0::bigint as v from shop.one;
create function shop.edition() returns bigint language sql immutable as 'select 0::bigint';
create table shop.wide (chain int, v bigint); insert into shop.wide values (902, 0);
create table shop.hung (chain int not null, v bigint not null) partition by list (chain);
create table shop.hung_0 partition of shop.hung for values in (903); insert into shop.hung values (903, 0);
create table shop.gate (chain int, v bigint); insert into shop.gate values (904, 0);
create table shop.mat_base (chain int primary key, v bigint not null); insert into shop.mat_base values (905, 0);
create materialized view shop.mat as select chain, v from shop.mat_base;
create table shop.rule_base (chain int primary key, v bigint not null); insert into shop.rule_base values (906, 0);
create table shop.ruled (chain int primary key, v bigint not null); insert into shop.ruled values (906, 0);
create rule reflect as on update to shop.rule_base do also
  update shop.ruled set v = new.v where chain = new.chain and v < new.v;
";
