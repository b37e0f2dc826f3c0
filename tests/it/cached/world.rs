//! The tables that the checker reads and writes, and who may do so.

use crate::harness::{Database, fresh_database, unique};

pub(super) const NORTH: [i32; 4] = [100, 101, 102, 103];
pub(super) const SOUTH: [i32; 4] = [200, 201, 202, 203];
pub(super) const LEDGER: [i32; 3] = [300, 301, 302];
pub(super) const CHILD: [i32; 2] = [400, 401];
pub(super) const KEPT: [i32; 2] = [450, 451];
pub(super) const MIRROR: [i32; 1] = [500];
pub(super) const PART: [i32; 3] = [600, 601, 602];
pub(super) const SWAP: [i32; 1] = [700];
pub(super) const LOG: [i32; 1] = [800];

/// Versions that a chain of KEPT can take.
pub(super) const KEPT_VERSIONS: i64 = 5000;

pub(super) fn all_chains() -> Vec<i32> {
    [&NORTH[..], &SOUTH, &LEDGER, &CHILD, &KEPT, &MIRROR, &PART, &SWAP, &LOG].concat()
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
    pub(super) async fn make() -> Self {
        let database = fresh_database().await;
        let writer = unique("scribe");
        let owners = [unique("reader"), unique("reader"), unique("reader")];
        let [first, second, third] = &owners;
        let roles = format!(
            "create role {writer} login; create role {first} login; create role {second} login; create role {third};
             grant {third} to {first};"
        );
        database.execute(&roles).await;
        database.execute(TABLES).await;
        database.execute(CODE).await;
        for (chain, owner) in LEDGER.iter().zip(&owners) {
            let row = format!("insert into shop.ledger values ({chain}, '{owner}', 0, 'secret of {owner}')");
            database.execute(&row).await;
        }
        let grants = format!(
            "grant usage on schema north, south, shop to {writer}, {first}, {second}, {third};
             grant all on all tables in schema north, south, shop to {writer};
             grant select on all tables in schema north, south, shop to {first}, {second}, {third};
             revoke select on shop.ledger from {second};
             grant select (chain, owner, v) on shop.ledger to {second};"
        );
        database.execute(&grants).await;
        Self { database, writer, owners }
    }

    pub(super) fn logins(&self) -> Vec<String> {
        let mut users = vec!["postgres".to_owned(), self.writer.clone()];
        users.extend_from_slice(&self.owners[..2]);
        users
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
  update north.item set v = n, at = to_timestamp(n) where chain = c;
  return n;
end $$;
create procedure shop.bump_and_commit(c int, n bigint) language plpgsql as $$
begin
  update north.item set v = n, at = to_timestamp(n) where chain = c;
  commit;
  perform count(*) from generate_series(1, 20000);
end $$;
";
