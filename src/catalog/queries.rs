//! What is asked of a server's catalog, for PostgreSQL 13 to 18. Columns that not every version has are read through `to_jsonb`.

/// One row: `server_version_num`, `default_transaction_isolation`, and the default collation's provider and locale.
pub(super) const DATABASE: &str = "
select current_setting('server_version_num')::int4,
       current_setting('default_transaction_isolation'),
       coalesce(to_jsonb(d)->>'datlocprovider', 'c'),
       coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale', d.datcollate::text)
from pg_catalog.pg_database d where d.datname = current_database()";

/// Relations of every schema but TOAST's; other sessions' temporary ones are nobody else's business.
pub(super) const RELATIONS: &str = "
select c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relrowsecurity,
       coalesce(array_to_string(c.reloptions, ','), ''),
       coalesce(case c.relkind
           when 'i' then (select i.indrelid from pg_catalog.pg_index i where i.indexrelid = c.oid)
           when 'I' then (select i.indrelid from pg_catalog.pg_index i where i.indexrelid = c.oid)
           when 'S' then (select d.refobjid from pg_catalog.pg_depend d
                          where d.classid = 1259 and d.objid = c.oid and d.refclassid = 1259 and d.deptype in ('a', 'i') limit 1)
       end, 0)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where n.nspname !~ '^pg_(toast|temp_|toast_temp_)' and c.relpersistence <> 't'";

/// What sort of default an expression of that node tree is, as a letter: `s` for the moment or the session, `v` for another one each
/// time, `i` for none of it.
macro_rules! default_kind {
    ($tree:literal) => {
        concat!(
            "
             case when ",
            $tree,
            r"::text ~ '\{SQLVALUEFUNCTION|\{COERCEVIAIO|\{XMLEXPR' then 's'
             else coalesce((select case when bool_or(p.provolatile = 's' or (p.oid >= 16384 and p.provolatile <> 'i')) then 's'
                                        when bool_or(p.provolatile = 'v') then 'v' else 'i' end
                            from regexp_matches(",
            $tree,
            r"::text, ':(?:funcid|opfuncid) (\d+)', 'g') m
                            join pg_catalog.pg_proc p on p.oid = m[1]::oid), 'i') end"
        )
    };
}

/// Live columns of relations outside of PostgreSQL's own schemas, in attribute order.
pub(super) const COLUMNS: &str = concat!(
    r#"
select a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull,
       a.atthasdef or a.attidentity <> '' or a.attgenerated <> '',
       (case when a.attidentity <> '' then 'v' when a.attgenerated <> '' then 'i'
             when not a.atthasdef then case when t.typdefaultbin is null then 'n' else"#,
    default_kind!("t.typdefaultbin"),
    " end
             else",
    default_kind!("d.adbin"),
    r#" end)::"char",
       case when d.adbin::text ~ '\{SQLVALUEFUNCTION|:funcid ' and not exists
              (select from regexp_matches(d.adbin::text, ':(?:funcid|opfuncid) (\d+)', 'g') m where m[1]::oid >= 16384)
            then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end,
       pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> ''
from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace join pg_catalog.pg_type t on t.oid = a.atttypid
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't'
  and n.nspname <> 'information_schema' and n.nspname !~ '^pg_(catalog$|toast|temp_)'
order by a.attrelid, a.attnum"#
);

/// Primary keys, foreign keys and whether their action writes to the referencing table, and what else must be unique.
pub(super) const CONSTRAINTS: &str = "
select contype, conrelid, conkey, confrelid, confkey,
       contype = 'f' and (confdeltype in ('c', 'n', 'd') or confupdtype in ('c', 'n', 'd')), condeferrable, convalidated
from pg_catalog.pg_constraint where contype in ('p', 'f', 'u', 'x') order by oid";

/// Partitions and inheritance children.
pub(super) const INHERITS: &str = "select inhrelid, inhparent from pg_catalog.pg_inherits";

/// Rules. A view's is read as a node tree, because `pg_depend` holds nothing of PostgreSQL's own functions and tables. Since
/// version 16 a sub-query has a `:relid` too, which is 0.
///
/// The last column says that a view depends on the moment or on a row's place: `CURRENT_DATE`, a text cast to a time (it might say
/// `now`), row locks, system columns.
pub(super) const RULES: &str = r"
select r.ev_class, r.ev_type = '1' and r.rulename = '_RETURN',
       array(select distinct m[1]::oid from regexp_matches(r.ev_action::text, ':relid ([1-9]\d*)', 'g') m),
       array(select distinct m[1]::oid from regexp_matches(r.ev_action::text,
             ':(?:funcid|opfuncid|aggfnoid|winfnoid|tsmhandler) (\d+)', 'g') m),
       r.ev_action::text ~ '\{SQLVALUEFUNCTION|\{ROWMARKCLAUSE|:varattno -\d|\{XMLEXPR|\{NEXTVALUEEXPR'
         or (r.ev_action::text ~ '\{COERCEVIAIO' and r.ev_action::text ~ ':resulttype (1082|1083|1114|1184|1266)\M')
from pg_catalog.pg_rewrite r where r.ev_class >= 16384";

/// Relations where a write runs code of a user's: triggers, and volatile functions in defaults and constraints.
pub(super) const OPAQUE_WRITES: &str = "
select tgrelid from pg_catalog.pg_trigger where not tgisinternal and tgenabled <> 'D'
union
select coalesce(a.adrelid, c.conrelid)
from pg_catalog.pg_depend d join pg_catalog.pg_proc p on p.oid = d.refobjid and p.provolatile = 'v'
left join pg_catalog.pg_attrdef a on d.classid = 'pg_catalog.pg_attrdef'::regclass and a.oid = d.objid
left join pg_catalog.pg_constraint c on d.classid = 'pg_catalog.pg_constraint'::regclass and c.oid = d.objid
where d.refclassid = 'pg_catalog.pg_proc'::regclass and d.refobjid >= 16384
  and coalesce(a.adrelid, c.conrelid) is not null";

/// A name in code, quoted or not.
macro_rules! name {
    () => {
        r##"(?:"(?:[^"]|"")*"|[^][\s"''().,;:=<>+*/%|&!~@#^?`-]+)"##
    };
}

/// A subscript in code, itself with one in it at most.
macro_rules! subscript {
    () => {
        r"\[(?:[^][;]|\[[^][;]*\])*\]"
    };
}

/// Triggers that run before a row is stored, and what their functions may assign in it: anything, or some columns.
///
/// Code in PL/pgSQL is read, with comments and strings put out first. Whatever is not read to the letter (other languages, `CALL`, a
/// row that is returned and is neither NEW nor OLD) may assign anything; OLD counts as NEW, because it may be returned in its place.
/// Of `new.a = b` it is not told whether it assigns or compares, but behind words that stand in front of conditions alone.
pub(super) const ROW_TRIGGERS: &str = concat!(
    r##"
with code as materialized (
  select t.tgrelid, t.tgtype, n.nspname, p.proname, l.lanname = 'plpgsql' as is_read,
         -- PostgreSQL's own, and those of its extensions: what they assign is their first argument, if anything.
         case when p.oid < 16384 or e.extname in ('insert_username', 'lo', 'moddatetime', 'refint') then
           case when t.tgnargs > 0
                 and p.proname in ('insert_username', 'moddatetime', 'tsvector_update_trigger', 'tsvector_update_trigger_column')
             then array[pg_catalog.convert_from(
               substring(t.tgargs from 1 for position('\x00'::bytea in t.tgargs) - 1), pg_catalog.getdatabaseencoding())]
             else '{}' end
         end as named,
         regexp_replace(regexp_replace(p.prosrc,
           '("(?:[^"]|"")*")|\m[eE]''(?:[^''\\]|''''|\\.)*''|''(?:[^'']|'''')*''|--[^\n\r]*|/\*(?:[^*]|\*+[^*/])*\*+/'
           '|\$\$(?:[^$]|\$[^$])*\$\$|\$([[:alpha:]_]\w*)\$(?:[^$]|\$[^[:alpha:]_$])*\$\2\$', ' \1 ', 'g'),
           '"(new|old)"', '\1', 'g') as body
  from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace join pg_catalog.pg_language l on l.oid = p.prolang
  left join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid
    and d.refclassid = 'pg_catalog.pg_extension'::regclass and d.deptype = 'e'
  left join pg_catalog.pg_extension e on e.oid = d.refobjid
  -- Internal triggers run after the row, but for those that a partition has from its parent.
  where t.tgenabled <> 'D' and t.tgtype & 3 = 3 and t.tgtype & 20 <> 0
), judged as materialized (
  select code.*,
    not is_read or body ~* 'u&\s*"|\*/|''|\$\w*\$|\mcall\s+["\w]'
      or body ~* '\mreturn\M(?!\s*(?:(?:new|old|null)|coalesce\s*\(\s*(?:new|old)\s*,\s*(?:new|old)\s*\))\s*;)' as is_opaque,
    regexp_replace(body,
      '(?:\m(?:if|elsif|elseif|when|where|and|or|not|on|while)\M[\s(]*|\(\s*)\m(?:new|old)\M', ' x', 'gi') as statements
  from code
), targets as materialized (
  select judged.*, array(
    select m[1] from regexp_matches(statements,
      '\m(?:new|old)\M\s*((?:\.\s*"##,
    name!(),
    r"\s*|",
    subscript!(),
    r##"\s*)*):?=(?!>)', 'gi') m
    union
    select coalesce(m[1], '') from regexp_matches(statements,
      '\m(?:into|for|foreach)\s+(?:strict\s+)?((?:"##,
    name!(),
    "|",
    subscript!(),
    r##"|\s*[.,]\s*)+)', 'gi') list,
      regexp_matches(list[1], '\m(?:new|old)\M\s*(\.\s*"##,
    name!(),
    r##")?', 'gi') m
  ) as places
  from judged
)
select tgrelid, nspname, proname, tgtype & 4 <> 0, tgtype & 16 <> 0,
       named is null and (is_opaque or exists (select from unnest(places) place where place !~ '^\.')),
       coalesce(named, array(
         select distinct case when m[1] like '"%' then replace(substr(m[1], 2, length(m[1]) - 2), '""', '"')
                              else lower(m[1] collate "C") end
         from unnest(places) place, regexp_matches(place, '^\.\s*("##,
    name!(),
    r##")') m order by 1))
from targets order by tgrelid, nspname, proname, tgtype"##
);

/// Functions of every schema, and whether they belong to an extension of PostgreSQL's own whose functions compute and do no more. An aggregate is as volatile as the worst of the functions that it is made of.
pub(super) const FUNCTIONS: &str = "
select p.oid, n.nspname, p.proname, p.prokind,
       coalesce(g.worst, p.provolatile), p.prosecdef, p.proargtypes, p.prorettype,
       p.oid >= 16384 or n.nspname <> 'pg_catalog',
       e.extname is not null
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
left join (
  select a.aggfnoid::oid as oid, (max(s.provolatile::text))::\"char\" as worst
  from pg_catalog.pg_aggregate a join pg_catalog.pg_proc s
    on s.oid in (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
  where a.aggfnoid >= 16384 group by 1
) g on g.oid = p.oid
left join pg_catalog.pg_depend d on p.oid >= 16384 and d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid
  and d.refclassid = 'pg_catalog.pg_extension'::regclass and d.deptype = 'e'
left join pg_catalog.pg_extension e on e.oid = d.refobjid and e.extname in
  ('btree_gin', 'btree_gist', 'citext', 'cube', 'fuzzystrmatch', 'hstore', 'intarray', 'isn', 'ltree', 'pg_trgm', 'pgcrypto', 'seg', 'unaccent', 'uuid-ossp')";

/// Types of every schema; `typelem` only where it is an array's element; of enums, a hash of their labels in order.
pub(super) const TYPES: &str = concat!(
    r#"
select t.oid, n.nspname, t.typname, t.typtype, t.typbasetype,
       case when t.typcategory = 'A' then t.typelem else 0::oid end, t.typcollation,
       case when t.typtype = 'e' then (select coalesce(pg_catalog.md5(pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ',' order by e.enumsortorder)), '')
         from pg_catalog.pg_enum e where e.enumtypid = t.oid) else '' end,
       (case when t.typdefaultbin is null then 'n' else"#,
    default_kind!("t.typdefaultbin"),
    r#" end)::"char"
from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
where n.nspname !~ '^pg_(toast|temp_)'"#
);

/// Collations that something uses, and those that sort by bytes.
pub(super) const COLLATIONS: &str = "
select c.oid, c.collname, c.collprovider,
       coalesce(to_jsonb(c)->>'colllocale', to_jsonb(c)->>'colliculocale', c.collcollate::text, ''), c.collisdeterministic, n.nspname
from pg_catalog.pg_collation c join pg_catalog.pg_namespace n on n.oid = c.collnamespace
where c.oid >= 16384 or c.collname in ('default', 'C', 'POSIX', 'ucs_basic', 'pg_c_utf8', 'C.UTF-8', 'C.utf8', 'unicode')
   or c.oid in (select attcollation from pg_catalog.pg_attribute where attrelid >= 16384)";

/// Operators that users made, with what their functions may do.
pub(super) const OPERATORS: &str = "
select o.oprname, coalesce(p.provolatile, 'v')
from pg_catalog.pg_operator o left join pg_catalog.pg_proc p on p.oid = o.oprcode where o.oid >= 16384";

/// One row: whether users made casts, and whether one of them calls a function that is not immutable.
pub(super) const CASTS: &str = "
select count(*) > 0, coalesce(bool_or(p.provolatile <> 'i'), false)
from pg_catalog.pg_cast c left join pg_catalog.pg_proc p on p.oid = c.castfunc where c.oid >= 16384";

/// Row-level security: each table's policies as far as they decide what a read shows, whichever role they are for.
///
/// Read as node trees, for the reasons given at [`RULES`]. The last two columns are the settings that `current_setting` is asked for by a
/// constant, as the bytes of that constant, and whether the policy depends on more than can be told: on the moment, on a setting whose
/// name is computed, on a row's place.
pub(super) const POLICIES: &str = r"
select p.polrelid,
       array(select distinct m[1]::oid from regexp_matches(p.polqual::text, ':relid ([1-9]\d*)', 'g') m),
       array(select distinct m[1]::oid from regexp_matches(p.polqual::text,
             ':(?:funcid|opfuncid|aggfnoid|winfnoid|tsmhandler) (\d+)', 'g') m),
       array(select distinct m[1] from regexp_matches(p.polqual::text,
             ':funcid (?:2077|3294) [^{}]*:args \(\{CONST :consttype 25 [^{}]*:constvalue \d+ \[ ([-\d ]+)\]', 'g') m),
       coalesce(p.polqual::text ~ '\{SQLVALUEFUNCTION :op [0-8] |\{ROWMARKCLAUSE|:varattno -\d|\{XMLEXPR|\{NEXTVALUEEXPR'
         or (p.polqual::text ~ '\{COERCEVIAIO' and p.polqual::text ~ ':resulttype (1082|1083|1114|1184|1266)\M')
         or (select count(*) from regexp_matches(p.polqual::text, ':funcid (?:2077|3294)\M', 'g'))
            > (select count(*) from regexp_matches(p.polqual::text,
               ':funcid (?:2077|3294) [^{}]*:args \(\{CONST :consttype 25 [^{}]*:constvalue \d+ \[ ([-\d ]+)\]', 'g')), false)
from pg_catalog.pg_policy p where p.polcmd in ('r', '*')";

/// Lines that change when what a role may do in this database changes by way of the roles themselves: memberships in roles that own
/// something here, were granted something here, or have powers of PostgreSQL's own; roles that are not as roles usually are; settings
/// of roles. Roles are the whole server's: one that has nothing to do with this database does not show.
macro_rules! role_lines {
    () => {
        "
  select concat('m', m.roleid::regrole, ' ', m.member::regrole, ' ', to_jsonb(m) - 'oid' - 'grantor') as line
    from pg_catalog.pg_auth_members m where m.roleid in (
      with recursive here (role) as (
        select d.refobjid from pg_catalog.pg_shdepend d where d.refclassid = 'pg_catalog.pg_authid'::regclass
          and d.dbid = (select oid from pg_catalog.pg_database where datname = current_database())
        union select oid from pg_catalog.pg_roles where oid < 16384
        union select n.member from here join pg_catalog.pg_auth_members n on n.roleid = here.role
      ) select role from here)
  union all select concat('d', datdba::regrole) from pg_catalog.pg_database where datname = current_database()
  union all select concat('r', oid, ' ', rolname, ' ', rolsuper, ' ', rolinherit, ' ', rolbypassrls) from pg_catalog.pg_roles
    where rolsuper or not rolinherit or rolbypassrls
  union all select concat('s', to_jsonb(s)) from pg_catalog.pg_db_role_setting s where s.setdatabase in
    (0, (select oid from pg_catalog.pg_database where datname = current_database()))"
    };
}

/// One row: a hash of who may do what: privileges, owners, memberships, the roles' own powers, policies, settings of roles. Two
/// snapshots that differ in nothing else must not pass for the same: an answer that was kept may be forbidden now.
pub(super) const PRIVILEGES: &str = concat!(
    "
select md5(coalesce(string_agg(line, ';' order by line), '')) from (
  select concat('c', oid, ' ', relowner::regrole, ' ', relforcerowsecurity, ' ', relacl) as line from pg_catalog.pg_class
    where oid >= 16384 and relpersistence <> 't' and relkind in ('r', 'p', 'v', 'm', 'f')
  union all select concat('a', attrelid, ' ', attnum, ' ', attacl) from pg_catalog.pg_attribute where attacl is not null
  union all select concat('n', oid, ' ', nspowner::regrole, ' ', nspacl) from pg_catalog.pg_namespace
    where nspname !~ '^pg_(toast_)?temp_'
  union all select concat('f', oid, ' ', proowner::regrole, ' ', proacl) from pg_catalog.pg_proc where proacl is not null or oid >= 16384
  union all select concat('p', to_jsonb(p)) from pg_catalog.pg_policy p
  union all ",
    role_lines!(),
    ") lines"
);

/// Schemas that a search path may name.
pub(super) const SCHEMAS: &str =
    "select nspname from pg_catalog.pg_namespace where nspname !~ '^pg_(toast|temp_|toast_temp_)' order by nspname";

/// What users' views stand for, as far as that is of a length that somebody could have written.
pub(super) const VIEWS: &str = "
select v.oid, v.definition from (
  select c.oid, pg_catalog.pg_get_viewdef(c.oid) as definition
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind = 'v' and c.relpersistence <> 't' and n.nspname not in ('pg_catalog', 'information_schema')) v
where pg_catalog.length(v.definition) <= 65536
  and (pg_catalog.getdatabaseencoding() = 'UTF8' or v.definition !~ '[^\\x01-\\x7f]')";

/// A text that changes whenever one of the catalogs above does.
///
/// A changed row has a newer `xmin` than any row before it, so that the count and the sum of `xmin` cannot both stay the same.
/// What it misses: that sum coming round by chance when transaction numbers wrap; changes made in place (VACUUM's and ANALYZE's
/// statistics, which are not read here).
pub(super) const DIGEST: &str = concat!(
    "
select string_agg(catalog || '=' || rows || '/' || coalesce(xids, 0), ' ' order by catalog)
       || ' ' || current_setting('default_transaction_isolation')
       || ' ' || (select md5(coalesce(string_agg(line, ';' order by line), '')) from (",
    role_lines!(),
    ") roles)
from (
  select 'class' as catalog, count(*) as rows, sum(xmin::text::int8) as xids from pg_catalog.pg_class where relpersistence <> 't'
  union all select 'attribute', count(*), sum(xmin::text::int8) from pg_catalog.pg_attribute a
    where attrelid >= 16384 and not exists
      (select from pg_catalog.pg_class c where c.oid = a.attrelid and c.relpersistence = 't')
  union all select 'auth_members', count(*), sum(xmin::text::int8) from pg_catalog.pg_auth_members
  union all select 'attrdef', count(*), sum(xmin::text::int8) from pg_catalog.pg_attrdef
  union all select 'cast', count(*), sum(xmin::text::int8) from pg_catalog.pg_cast
  union all select 'collation', count(*), sum(xmin::text::int8) from pg_catalog.pg_collation
  union all select 'constraint', count(*), sum(xmin::text::int8) from pg_catalog.pg_constraint
  union all select 'inherits', count(*), sum(xmin::text::int8) from pg_catalog.pg_inherits
  union all select 'namespace', count(*), sum(xmin::text::int8) from pg_catalog.pg_namespace where nspname !~ '^pg_(toast_)?temp_'
  union all select 'operator', count(*), sum(xmin::text::int8) from pg_catalog.pg_operator
  union all select 'policy', count(*), sum(xmin::text::int8) from pg_catalog.pg_policy
  union all select 'proc', count(*), sum(xmin::text::int8) from pg_catalog.pg_proc
  union all select 'rewrite', count(*), sum(xmin::text::int8) from pg_catalog.pg_rewrite
  union all select 'trigger', count(*), sum(xmin::text::int8) from pg_catalog.pg_trigger
  union all select 'type', count(*), sum(xmin::text::int8) from pg_catalog.pg_type t
    where not exists (select from pg_catalog.pg_namespace n where n.oid = t.typnamespace and n.nspname ~ '^pg_(toast_)?temp_')
) catalogs"
);

/// Partitions with rows of their own and how many pages they have; partitioned tables and what they are partitioned by.
pub(super) const PARTITIONS: &str = "
select c.oid, c.relpages, pg_catalog.pg_get_partkeydef(c.oid) from pg_catalog.pg_class c
where (c.relkind = 'p' or (c.relkind = 'r' and c.relispartition)) and c.relpersistence <> 't'";
