//! Which of a database's own code may change a session without the statement's text saying so: functions and procedures that set,
//! and the relations where triggers, rules, defaults, constraints and policies run them.

use std::collections::{HashMap, HashSet};

use crate::sql::facts::{Class, Effect, Facts, Statement};
use crate::sql::lexer::{Lexer, Token};

/// One text that changes whenever one of the answers below may.
pub const DIGEST: &str = "SELECT pg_catalog.string_agg(rows || '/' || xids, ' ' ORDER BY which) FROM (\
    SELECT 1 AS which, pg_catalog.count(*) AS rows, coalesce(pg_catalog.sum(xmin::text::int8), 0) AS xids FROM pg_catalog.pg_proc WHERE oid >= 16384 \
    UNION ALL SELECT 2, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_trigger \
    UNION ALL SELECT 3, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_rewrite WHERE oid >= 16384 \
    UNION ALL SELECT 4, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_attrdef \
    UNION ALL SELECT 5, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_constraint WHERE oid >= 16384 \
    UNION ALL SELECT 6, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_policy \
    UNION ALL SELECT 7, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_inherits \
    UNION ALL SELECT 8, pg_catalog.count(*), coalesce(pg_catalog.sum(xmin::text::int8), 0) FROM pg_catalog.pg_operator WHERE oid >= 16384) catalogs";

/// Functions outside C: name, oid, language, body.
pub const FUNCTIONS: &str = "SELECT p.proname, p.oid, l.lanname, \
    coalesce(nullif(p.prosrc, ''), pg_catalog.to_jsonb(p)->>'prosqlbody', '') \
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND l.lanname NOT IN ('internal', 'c')";

/// Where functions of users' are used: the function's oid, the relation that runs it or else the function that is made of it. With
/// neither it may run anywhere.
pub const USES: &str = "SELECT d.refobjid, c.relname, f.proname FROM pg_catalog.pg_depend d \
    LEFT JOIN pg_catalog.pg_trigger t ON d.classid = 'pg_catalog.pg_trigger'::pg_catalog.regclass AND t.oid = d.objid \
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid \
    LEFT JOIN pg_catalog.pg_attrdef a ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND a.oid = d.objid \
    LEFT JOIN pg_catalog.pg_constraint k ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND k.oid = d.objid \
    LEFT JOIN pg_catalog.pg_policy y ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND y.oid = d.objid \
    LEFT JOIN pg_catalog.pg_class c ON c.oid = coalesce(t.tgrelid, r.ev_class, a.adrelid, k.conrelid, y.polrelid, \
      CASE WHEN d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass THEN d.objid END) \
    LEFT JOIN pg_catalog.pg_proc f ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND f.oid = d.objid \
    WHERE d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid >= 16384";

/// Which relation's reading or writing reaches into which other: the one that is reached, the one that is named.
pub const REACHES: &str = "SELECT b.relname, n.relname FROM (\
    SELECT inhrelid AS below, inhparent AS named FROM pg_catalog.pg_inherits \
    UNION SELECT conrelid, confrelid FROM pg_catalog.pg_constraint \
      WHERE contype = 'f' AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')) \
    UNION SELECT d.refobjid, r.ev_class FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r \
      ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid \
      WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid >= 16384 AND d.refobjid <> r.ev_class\
    ) reaches JOIN pg_catalog.pg_class b ON b.oid = below JOIN pg_catalog.pg_class n ON n.oid = named";

/// A row of an answer, as text.
pub type Row = Vec<Option<String>>;

/// What is known of a database's code: see the module's description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unseen {
    functions: HashSet<Box<str>>,
    relations: HashSet<Box<str>>,
    /// An operator, a cast or a type runs such code: any statement may.
    anywhere: bool,
}

/// A function that might.
struct Body {
    name: Box<str>,
    oid: Box<str>,
    words: HashSet<Box<str>>,
}

impl Unseen {
    /// Reads the answers to [`FUNCTIONS`], [`USES`] and [`REACHES`].
    pub fn read(functions: &[Row], uses: &[Row], reaches: &[Row]) -> Self {
        let mut unseen = Self::default();
        let mut innocent = Vec::new();
        let mut oids = HashSet::new();
        for row in functions {
            let [Some(name), Some(oid), Some(language), Some(body)] = row.as_slice() else { continue };
            if changes_session(language, body) {
                unseen.functions.insert(name.as_str().into());
                oids.insert(Box::<str>::from(oid.as_str()));
            } else {
                innocent.push(Body { name: name.as_str().into(), oid: oid.as_str().into(), words: words(body) });
            }
        }
        let mut uses_of: HashMap<&str, Vec<&Row>> = HashMap::new();
        for row in uses {
            if let Some(Some(oid)) = row.first() {
                uses_of.entry(oid).or_default().push(row);
            }
        }
        while unseen.spread(&mut oids, &mut innocent, &uses_of, reaches) {}
        unseen
    }

    /// Takes over whoever calls or reaches what is known so far; false once there is nobody more.
    fn spread(
        &mut self,
        oids: &mut HashSet<Box<str>>,
        innocent: &mut Vec<Body>,
        uses: &HashMap<&str, Vec<&Row>>,
        reaches: &[Row],
    ) -> bool {
        let before = (self.functions.len(), self.relations.len(), oids.len());
        for row in oids.iter().filter_map(|oid| uses.get(&**oid)).flatten() {
            match (row.get(1).cloned().flatten(), row.get(2).cloned().flatten()) {
                (Some(relation), _) => drop(self.relations.insert(relation.into())),
                (None, Some(function)) => drop(self.functions.insert(function.into())),
                (None, None) => self.anywhere = true,
            }
        }
        for row in reaches {
            let [Some(below), Some(named)] = row.as_slice() else { continue };
            if self.relations.contains(below.as_str()) {
                self.relations.insert(named.as_str().into());
            }
        }
        innocent.retain(|body| {
            let calls = body
                .words
                .iter()
                .any(|word| self.functions.contains(word) || self.relations.contains(word) || oids.contains(word));
            if calls || self.functions.contains(&body.name) {
                self.functions.insert(body.name.clone());
                oids.insert(body.oid.clone());
            }
            !calls
        });
        before != (self.functions.len(), self.relations.len(), oids.len())
    }

    /// Whether there is no such code.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty() && self.relations.is_empty() && !self.anywhere
    }

    /// Whether a query string may run such code.
    pub fn may_run(&self, facts: &Facts) -> bool {
        facts.statements.iter().any(|statement| self.statement_may(statement))
    }

    fn statement_may(&self, statement: &Statement) -> bool {
        match statement.class {
            Class::Empty | Class::Show | Class::ExplainRoute | Class::Transaction(_) => false,
            // A cursor's query is not read, nor is what DDL runs.
            Class::Session => statement.effects.iter().any(|it| matches!(it, Effect::Cursor | Effect::HoldCursor)),
            Class::Ddl | Class::Utility | Class::Opaque => true,
            Class::Read | Class::Write | Class::CopyIn | Class::CopyOut => {
                self.anywhere
                    || statement.functions.iter().any(|name| self.functions.contains(&name.name))
                    || statement.fields.iter().any(|name| self.functions.contains(name))
                    || statement.reads.iter().chain(&statement.writes).any(|it| self.relations.contains(&it.name))
            }
        }
    }
}

/// Whether a function's body may leave a session other than it was.
fn changes_session(language: &str, body: &str) -> bool {
    if !matches!(language, "sql" | "plpgsql") {
        // Another language asks SQL of the server in strings of its own making.
        return true;
    }
    let text = body.as_bytes();
    let tokens: Vec<Token> = Lexer::new(text, true).significant().collect();
    let is = |at: usize, words: &[&str]| {
        tokens.get(at).is_some_and(|token| words.iter().any(|word| token.is_word(text, word)))
    };
    let begins = |at: usize| {
        at.checked_sub(1).is_none_or(|before| {
            tokens[before].is_punctuation(text, b';')
                || is(before, &["begin", "then", "else", "loop"])
                || tokens[before].bytes(text) == b">>"
        })
    };
    (0..tokens.len()).any(|at| {
        let sets = begins(at)
            && (is(at, &["reset", "discard", "listen", "unlisten", "load", "prepare", "deallocate", "execute"])
                || (is(at, &["set"]) && !is(at + 1, &["local", "constraints"])));
        // Behind RETURN QUERY, IN, FOR and OPEN a text is executed as well.
        let executes = is(at, &["execute"]) && language == "plpgsql";
        let makes = is(at, &["temp", "temporary"]) || is(at, STATEFUL);
        sets || executes
            || makes
            || (is(at, &["set_config"]) && !is_local(&tokens, at, text))
            || is_stateful_node(&tokens, at, text)
    })
}

/// Functions of PostgreSQL's whose effect outlives the transaction.
const STATEFUL: &[&str] = &[
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "setseed",
    "set_limit",
    "dblink_connect",
    "dblink_connect_u",
];

/// The OIDs of `set_config`, the session's advisory locks and `setseed`, as a body that was parsed when it was made holds them.
const STATEFUL_OIDS: [&str; 10] = ["2078", "2880", "2881", "2882", "2883", "1599", "2884", "2887", "2888", "2889"];

fn is_stateful_node(tokens: &[Token], at: usize, text: &[u8]) -> bool {
    let oid = || tokens.get(at + 1).map(|token| token.bytes(text));
    tokens[at].is_word(text, "funcid")
        && oid().is_some_and(|oid| STATEFUL_OIDS.iter().any(|known| known.as_bytes() == oid))
}

/// Whether the call of `set_config` at that place ends with `true)`.
fn is_local(tokens: &[Token], at: usize, text: &[u8]) -> bool {
    let mut depth = 0_usize;
    for place in at + 1..tokens.len() {
        if tokens[place].is_punctuation(text, b'(') {
            depth += 1;
        } else if tokens[place].is_punctuation(text, b')') {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return tokens[place - 1].is_word(text, "true");
            }
        } else if depth == 0 {
            return false;
        }
    }
    false
}

/// Every word in a body: names as PostgreSQL folds them, and numbers, which may be OIDs.
fn words(body: &str) -> HashSet<Box<str>> {
    let text = body.as_bytes();
    let tokens = Lexer::new(text, true).significant().filter(|token| !token.kind.is_string());
    let word = |token: Token| {
        let bytes = String::from_utf8_lossy(token.bytes(text));
        match bytes.strip_prefix('"').and_then(|bytes| bytes.strip_suffix('"')) {
            Some(quoted) => quoted.into(),
            None => bytes.to_lowercase().into(),
        }
    };
    tokens.map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Analyzer;

    #[test]
    fn bodies_that_leave_something_behind_are_told_from_those_that_do_not() {
        for body in [
            "begin perform set_config('app.tenant', $1, false); end",
            "begin perform set_config('app.tenant', $1, is_local); end",
            "begin if a then set work_mem to '1MB'; end if; end",
            "begin -- first\n  set search_path to a; end",
            "begin execute 'set role ' || $1; end",
            "begin return query execute format('select %I', $1); end",
            "begin create temp table mine (a int); end",
            "begin perform pg_advisory_lock(1); end",
            "({QUERY :commandType 1 :targetList ({FUNCEXPR :funcid 2078 :funcresulttype 25})})",
        ] {
            assert!(changes_session("plpgsql", body), "{body}");
        }
        for body in [
            "begin perform set_config('app.tenant', coalesce($1, ''), true); end",
            "begin update t\n set a = 1 where b = $1; end",
            "begin insert into t values (1) on conflict (a) do update set a = 2; end",
            "begin set local work_mem to '1MB'; return new; end",
            "begin return current_setting('app.tenant'); end",
        ] {
            assert!(!changes_session("plpgsql", body), "{body}");
        }
        assert!(changes_session("plpython3u", "return 1") && !changes_session("sql", "select 1"));
    }

    fn row(values: &[&str]) -> Row {
        values.iter().map(|value| (!value.is_empty()).then(|| (*value).to_owned())).collect()
    }

    fn unseen() -> Unseen {
        let functions = [
            row(&["hides", "20001", "plpgsql", "begin perform set_config('a.b', $1, false); end"]),
            row(&["calls", "20002", "sql", "select Hides('x')"]),
            row(&["writes", "20003", "sql", "insert into base values (1)"]),
            row(&["parsed", "20004", "sql", "({QUERY :funcid 20002 })"]),
            row(&["harmless", "20005", "sql", "select 1"]),
        ];
        let uses = [row(&["20001", "base", ""]), row(&["20005", "calm", ""]), row(&["20004", "", "made_of"])];
        let reaches = [row(&["base", "over"]), row(&["over", "above"]), row(&["calm", "beside"])];
        Unseen::read(&functions, &uses, &reaches)
    }

    #[test]
    fn whoever_calls_or_reaches_it_may_run_it() {
        let unseen = unseen();
        let may = |text: &str| unseen.may_run(&Analyzer::new().facts(text.as_bytes(), true));
        for text in [
            "select hides('x')",
            "select calls()",
            "select writes()",
            "select parsed()",
            "select made_of(1)",
            "select t.hides from t",
            "insert into base values (1)",
            "update above set a = 1",
            "select * from over",
            "copy base from stdin",
            "begin; select 1; select hides('x'); commit",
            "declare c cursor for select hides('x')",
            "create table x as select hides('x')",
        ] {
            assert!(may(text), "{text}");
        }
        for text in ["select harmless()", "insert into calm values (1)", "select * from beside", "show x", "commit"] {
            assert!(!may(text), "{text}");
        }
    }

    #[test]
    fn code_behind_an_operator_may_run_anywhere() {
        let functions = [row(&["hides", "20001", "plpgsql", "begin reset all; end"])];
        let unseen = Unseen::read(&functions, &[row(&["20001", "", ""])], &[]);
        assert!(unseen.may_run(&Analyzer::new().facts(b"select 1 <+> 2", true)));
        assert!(Unseen::read(&[], &[], &[]).is_empty());
    }
}
