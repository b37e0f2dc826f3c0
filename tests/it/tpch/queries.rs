//! The 22 queries with the values that the standard validates them by.

use tpchgen::q_and_a::queries::query;

/// One query.
pub(super) struct Tpch {
    pub(super) number: u32,
    pub(super) text: String,
    /// Columns of the answer that its ORDER BY names, by index.
    pub(super) sorted_by: &'static [usize],
}

/// Values, sort columns, and how many rows are asked for.
type Validation = (&'static [&'static str], &'static [usize], Option<u32>);

/// Values for `:1`, `:2`, ... (TPC-H 3.0, "Query Validation" of each query), the sort columns, and how many rows are asked for.
/// What the standard says for scale factor 1: Q11's share is divided by the scale factor, as it says, and Q18's threshold, which
/// hardly an order of a small database reaches, is lowered there.
const VALUES: [Validation; 22] = [
    (&["90"], &[0, 1], None),
    (&["15", "BRASS", "EUROPE"], &[0, 2, 1, 3], Some(100)),
    (&["BUILDING", "1995-03-15"], &[1, 2], Some(10)),
    (&["1993-07-01"], &[0], None),
    (&["ASIA", "1994-01-01"], &[1], None),
    (&["1994-01-01", "0.06", "24"], &[], None),
    (&["FRANCE", "GERMANY"], &[0, 1, 2], None),
    (&["BRAZIL", "AMERICA", "ECONOMY ANODIZED STEEL"], &[0], None),
    (&["green"], &[0, 1], None),
    (&["1993-10-01"], &[2], Some(20)),
    (&["GERMANY", "0.0001"], &[1], None),
    (&["MAIL", "SHIP", "1994-01-01"], &[0], None),
    (&["special", "requests"], &[1, 0], None),
    (&["1995-09-01"], &[], None),
    (&["1996-01-01"], &[0], None),
    (&["Brand#45", "MEDIUM POLISHED", "49", "14", "23", "45", "19", "3", "36", "9"], &[3, 0, 1, 2], None),
    (&["Brand#23", "MED BOX"], &[], None),
    (&["300"], &[4, 3], Some(100)),
    (&["Brand#12", "Brand#23", "Brand#34", "1", "10", "20"], &[], None),
    (&["forest", "1994-01-01", "CANADA"], &[0], None),
    (&["SAUDI ARABIA"], &[1, 0], Some(100)),
    (&["13", "31", "23", "29", "30", "18", "17"], &[0], None),
];

/// All of them, in order, for data of that scale factor.
pub(super) fn queries(scale: f64) -> Vec<Tpch> {
    let with_values = |(number, (values, sorted_by, limit)): (u32, Validation)| {
        let number_i32 = i32::try_from(number).expect("small");
        let text = as_postgresql(number, query(number_i32).expect("one of 22"));
        // From the last, so that `:1` is not found in `:10`.
        let values = values.iter().enumerate().rev();
        let text = values.fold(text, |text, (at, value)| text.replace(&format!(":{}", at + 1), &scaled(value, scale)));
        let limit = limit.map_or_else(String::new, |rows| format!(" limit {rows}"));
        Tpch { number, text: text.trim().trim_end_matches(';').to_owned() + &limit, sorted_by }
    };
    (1..).zip(VALUES).map(with_values).collect()
}

/// The value at that scale factor.
fn scaled(value: &str, scale: f64) -> String {
    match value {
        "0.0001" => format!("{:.10}", 0.0001 / scale),
        "300" if scale < 1.0 => "250".to_owned(),
        value => value.to_owned(),
    }
}

/// What PostgreSQL has no form for is written in one that it has.
fn as_postgresql(number: u32, text: &str) -> String {
    match number {
        // Only seconds have a precision.
        1 => text.replace("day (3)", "day"),
        // Its variant with WITH: one statement.
        15 => {
            let text = text.replace(":s", "").replace("create view revenue (", "with revenue (");
            let text = text.replacen(" as\n", " as (\n", 1).replacen("l_suppkey;", "l_suppkey)", 1);
            text.replace("drop view revenue;", "").trim().to_owned()
        }
        _ => text.to_owned(),
    }
}
