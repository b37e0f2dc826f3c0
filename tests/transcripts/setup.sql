-- What every transcript finds, and must leave as it was.
-- Autovacuum would look at it in one of the databases and not yet in the other, whose plan then fails before its first row.
create table t (a int primary key, b text) with (autovacuum_enabled = off);
insert into t select n, 'row ' || n from generate_series(1, 10) n;
create table empty (a int, b text);
create table deferred (a int unique deferrable initially deferred);
create function loud(text) returns int language plpgsql as $$ begin raise notice 'heard %', $1; return 1; end $$;
create function sets(text, text) returns void language plpgsql as $$ begin perform set_config($1, $2, false); end $$;
create function fails_late() returns setof int language plpgsql as $$ begin return next 1; return next 2; raise exception 'late'; end $$;
create procedure twice() language plpgsql as $$ begin insert into empty values (1); commit; insert into empty values (2); end $$;
create sequence numbers;
do $$ begin create role reader; exception when duplicate_object then null; end $$;
create schema other;
create table other.t (a int, b text);
insert into other.t values (1, 'the other');
grant usage on schema public, other to reader;
grant select on t, other.t to reader;
-- Where there are shards, its rows are on them.
create table spread (k int4 not null, v int4, d date) with (autovacuum_enabled = off);
insert into spread select n, n % 7, date '2026-01-01' + n from generate_series(1, 60) n;
