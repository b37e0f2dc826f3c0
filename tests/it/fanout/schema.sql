-- The same rows everywhere; then each shard drops those that are not its own.
create table orders (
  id int8 not null, customer_id int4, region text collate "C", country text collate "und-x-icu", amount numeric(12,2), price float8, ratio float4, qty int4,
  small int2, day date, at timestamptz, made timestamp, clock time, ok bool, code uuid, raw bytea, span interval, tag char(4), big numeric);
create table items (customer_id int4, order_id int8, sku text collate "C", n int4);
create table notes (id int8 primary key, body text);
create table texts (k text, v int4);
create table empty (k int4, v numeric, t text);
create table visits (day date not null, n int4, who text collate "C");
create table accounts (plan text, balance numeric);
create table countries (code text, label text);
create table pairs (a int4, b text, v int4);
create table halves (x int4, y text, w int4);
create table grid (x int4, y date, v int4);
create table tiers (tier text, v int4);
create table local (id int4);
create view open_orders as select * from orders where ok;
create function slug(text) returns text immutable language sql as 'select lower($1)';

insert into orders select g, case when g % 17 = 0 then null else g % 37 end,
  (array['north', 'South', 'EAST', 'west', 'Äst', null])[1 + g % 6], (array['de', 'fr', 'it', 'xx'])[1 + g % 4],
  case when g % 11 = 0 then null else (g * 7919 % 100000) / 100.0 - 300 end,
  case g % 13 when 0 then null when 1 then -0.0 else (g % 50) * 0.25 - 3 end, (g % 9) * 0.5, g % 7 - 3, g % 100,
  '2024-01-01'::date + g % 60, '2024-01-01 00:00+00'::timestamptz + g * interval '7 hours', '2023-12-31'::timestamp + g * interval '11 minutes',
  '00:00'::time + g * interval '13 minutes', case g % 3 when 0 then true when 1 then false end, md5(g::text)::uuid,
  decode(md5(g::text), 'hex'), g % 5 * interval '1 day' + g % 3 * interval '12 hours', (array['a', 'b ', 'C'])[1 + g % 3],
  power(10::numeric, g % 40) * g
from generate_series(1, 400) g;
insert into items select g % 37, g, 'sku' || g % 10, g % 4 from generate_series(1, 300) g;
insert into notes select g, 'note ' || g from generate_series(1, 100) g;
insert into texts select case g % 10 when 0 then null else repeat('ä', g % 5) || g % 20 end, g from generate_series(1, 200) g;
insert into visits select '2024-01-01'::date + g % 31, g, 'who' || g % 5 from generate_series(1, 200) g;
insert into accounts select (array['free', 'basic', 'pro', 'vip', null])[1 + g % 5], g * 1.50 from generate_series(1, 100) g;
insert into countries values ('de', 'Germany'), ('fr', 'France'), ('it', 'Italy'), ('nl', 'Netherlands');

insert into pairs select nullif(g % 7, 6), nullif('b' || g % 5, 'b4'), g from generate_series(1, 200) g;
insert into halves select nullif(g % 6, 5), nullif('b' || g % 4, 'b3'), g from generate_series(1, 60) g;
insert into grid select nullif(g % 31, 30), '2024-01-01'::date + nullif(g % 20, 19), g from generate_series(1, 300) g;
insert into tiers select (array['low', 'high', 'other', 'none', null])[1 + g % 5], g from generate_series(1, 50) g;

create table by_pair (a int4, b text) partition by hash (a, b);
create table by_int (k int4) partition by hash (k);
create table by_big (k int8) partition by hash (k);
create table by_text (k text) partition by hash (k);
delete from orders where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, customer_id);
delete from items where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, customer_id);
delete from notes where not satisfies_hash_partition('by_big'::regclass, %shards%, %shard%, id);
delete from texts where not satisfies_hash_partition('by_text'::regclass, %shards%, %shard%, k);
delete from visits where least((day - '2024-01-01') / 8, %shards% - 1) <> %shard%;
delete from accounts where case plan when 'free' then 0 when 'basic' then 1 when 'pro' then 2 when 'vip' then 3 else %shards% - 1 end % %shards% <> %shard%;
delete from pairs where not satisfies_hash_partition('by_pair'::regclass, %shards%, %shard%, a, b);
delete from halves where not satisfies_hash_partition('by_pair'::regclass, %shards%, %shard%, x, y);
delete from grid where case when x is not null and y is not null and x < 10 then 0
  when x is not null and y is not null and x >= 10 and (x, y) < (20, '2024-01-10'::date) then 1 % %shards% else %shards% - 1 end <> %shard%;
delete from tiers where case when tier in ('low', 'high') then 0 else %shards% - 1 end <> %shard%;
drop table by_pair, by_int, by_big, by_text;
