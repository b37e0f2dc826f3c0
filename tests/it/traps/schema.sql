-- The same rows everywhere; then each shard drops those that are not its own. Types are made in another order on each shard, so
-- that their oids differ.
create schema pad;
do $$ begin for g in 1..%shard% + 1 loop execute format('create type pad.t%s as (a int)', g); end loop; end $$;
create type mood as enum ('sad', 'ok', 'happy');
create table sales (
  id int8 not null, customer_id int4, region text collate "C", label text, amount numeric(12,2), wide numeric, price float8,
  ratio float4, qty int4, small int2, big int8, day date, at timestamptz, made timestamp, ok bool, code uuid, raw bytea,
  span interval, tag char(4), name varchar(10), feeling mood, doc jsonb, cash money, host inet, period int4range, list int4[]);
create table lines (customer_id int4, sale_id int8, sku text collate "C", n int4);
create table nothing (k int4, v numeric, t text);
create table slow (k int4, v int4);
create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create domain den as text collate "und-x-icu";
create domain dci as text collate ci;
create type fields as (s text collate "und-x-icu", c text collate ci, n int4);
create type status as enum ('old', 'new');
-- Columns that are named after types.
create table odd (k int4, id int4, a text collate "C", b text collate "C", w text collate "C", c fields, zz int4,
  uuid int4, name int4, money int4, status int4, int4 int4, float8 int4, bytea int4, extract int4);
-- Texts that other encodings order otherwise, and collations of one name in two schemas.
create schema alt;
create collation alt.ci (provider = icu, locale = 'und');
create table worded (k int4, word text collate "C", folded text collate ci, moods mood[], note xml, at timestamptz);
create table countries (code text collate "C", title text);
create view recent as select * from sales where id > 100;
create function lowered(text) returns text immutable language sql as 'select lower($1)';

insert into sales select g, case when g % 17 = 0 then null else g % 37 end,
  (array['north', 'North', 'NORTH', 'south', 'Äst', 'äst', null])[1 + g % 7],
  (array['a', 'B', 'b', 'A', 'é', 'E', null])[1 + g % 7],
  case when g % 11 = 0 then null else (g * 7919 % 100000) / 100.0 - 300 end,
  case g % 40 when 0 then 'NaN' when 1 then 'Infinity' when 2 then null
    else (g % 9) * 10000000000000000000000000000001.5 + (g % 5)::numeric(8,4) end,
  case g % 13 when 0 then null when 1 then -0.0 when 2 then 0.0 when 3 then 'NaN' else (g % 50) * 0.25 - 3 end,
  (g % 9) * 0.5, g % 7 - 3, g % 100, case when g % 2 = 0 then 9223372036854775807 else g end,
  '2024-01-01'::date + g % 60,
  case when g % 50 = 0 then 'infinity' when g % 51 = 0 then '-infinity' else '2024-01-01 00:00+00'::timestamptz + g * interval '7 hours' end,
  '2023-12-31'::timestamp + g * interval '11 minutes', case g % 3 when 0 then true when 1 then false end, md5(g::text)::uuid,
  decode(md5(g::text), 'hex'), g % 5 * interval '1 day' + g % 3 * interval '12 hours', (array['a', 'b ', 'C'])[1 + g % 3],
  (array['one', 'Two', null])[1 + g % 3], (array['sad', 'ok', 'happy']::mood[])[1 + g % 3], jsonb_build_object('g', g % 10),
  (g % 10)::money, ('10.0.0.' || g % 20)::inet, int4range(g % 10, g % 10 + 5), array[g % 3, g % 4]
from generate_series(1, 400) g;
insert into lines select g % 37, g, 'sku' || g % 10, g % 4 from generate_series(1, 300) g;
insert into slow select g, g % 100 from generate_series(1, 3000) g;
insert into odd select g % 23, g, left(md5(g::text), 16), right(md5(g::text), 16), v, row(v, v, g % 5)::fields, g % 7,
  -g, -g, -g, g, -g, g, -g, -g
from generate_series(1, 200) g, lateral (select (array['a', 'B', 'b', 'A', 'é', 'E', null])[1 + g % 7] as v) x;
insert into countries values ('north', 'Land'), ('North', 'LAND'), ('nowhere', null);

insert into worded select g, (array['€', 'ä', 'a', 'é', 'ÿ', 'ž', 'Œ', 'z', '€2', 'ä2'])[1 + g % 10], (array['a', 'A', 'b', 'á', 'B'])[1 + g % 5],
  case g % 3 when 0 then array['ok', null]::mood[] when 1 then array['sad']::mood[] end, ('<n>' || g % 4 || '</n>')::xml, '2024-01-01 00:00+00'
from generate_series(1, 60) g;

create table by_int (k int4) partition by hash (k);
-- With four shards the third has no sales at all.
delete from sales where satisfies_hash_partition('by_int'::regclass, 4, 2, customer_id);
delete from sales where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, customer_id);
delete from lines where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, customer_id);
delete from odd where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, k);
delete from worded where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, k);
delete from slow where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, k);
drop table by_int;
