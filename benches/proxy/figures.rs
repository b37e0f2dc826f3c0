//! Rounds become medians with their range, and medians become a table.

use std::collections::BTreeMap;

use crate::targets::Target;

/// Values of one figure, sorted.
pub struct Spread(Vec<f64>);

impl Spread {
    /// Of those values, whichever their order.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// The middle one.
    pub fn median(&self) -> Option<f64> {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => None,
            len if len % 2 == 1 => Some(self.0[middle]),
            _ => Some((self.0[middle - 1] + self.0[middle]) / 2.0),
        }
    }

    /// The value below which that share of them lies.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get((share * last as f64).round() as usize).copied()
    }

    /// The middle one, and in brackets the lowest and the highest if there is more than one.
    pub fn show(&self, digits: usize) -> Option<String> {
        let (median, low, high) = (self.median()?, self.0.first()?, self.0.last()?);
        Some(match self.0.len() {
            1 => format!("{median:.digits$}"),
            _ => format!("{median:.digits$} [{low:.digits$} - {high:.digits$}]"),
        })
    }
}

/// One column of figures.
pub struct Column<S> {
    title: &'static str,
    of: fn(&S) -> Option<f64>,
    digits: usize,
    /// Whether pgherd's figure is divided by PgBouncer's too, round by round.
    is_compared: bool,
}

impl<S> Column<S> {
    /// A figure, shown with so many digits.
    pub const fn new(title: &'static str, digits: usize, of: fn(&S) -> Option<f64>) -> Self {
        Self { title, of, digits, is_compared: false }
    }

    /// The same, and pgherd's in terms of PgBouncer's.
    pub const fn compared(title: &'static str, digits: usize, of: fn(&S) -> Option<f64>) -> Self {
        Self { title, of, digits, is_compared: true }
    }
}

/// All samples of one measure: one for each round of what was done through each target.
pub struct Sheet<K, S> {
    samples: BTreeMap<(K, Target), Vec<S>>,
}

impl<K: Ord + Copy, S> Sheet<K, S> {
    /// An empty one.
    pub fn new() -> Self {
        Self { samples: BTreeMap::new() }
    }

    /// Adds one round's sample.
    pub fn add(&mut self, what: K, target: Target, sample: S) {
        self.samples.entry((what, target)).or_default().push(sample);
    }

    /// Prints it in Markdown. `titles` are of the columns that `cells` makes of what was done.
    pub fn print(&self, titles: &[&str], cells: impl Fn(&K) -> Vec<String>, columns: &[Column<S>]) {
        let mut head: Vec<String> = titles.iter().map(|&title| title.to_owned()).collect();
        head.push("through".to_owned());
        head.extend(columns.iter().map(|column| column.title.to_owned()));
        let compared = columns.iter().filter(|column| column.is_compared);
        head.extend(compared.map(|column| format!("{}, pgherd : PgBouncer", column.title)));
        println!("\n| {} |", head.join(" | "));
        let rules: Vec<&str> = (0..head.len()).map(|at| if at <= titles.len() { "---" } else { "---:" }).collect();
        println!("|{}|", rules.join("|"));
        for (&(what, target), runs) in &self.samples {
            let mut line = cells(&what);
            line.push(crate::name(target));
            for column in columns {
                let shown = Spread::of(runs.iter().filter_map(column.of)).show(column.digits);
                line.push(shown.unwrap_or_else(|| "-".to_owned()));
            }
            let rival = self.samples.get(&(what, Target::Pgbouncer)).filter(|_| target == Target::Pgherd);
            for column in columns.iter().filter(|column| column.is_compared) {
                let ratios = rival.into_iter().flat_map(|rival| runs.iter().zip(rival));
                let ratios = ratios.filter_map(|(ours, theirs)| Some((column.of)(ours)? / (column.of)(theirs)?));
                line.push(Spread::of(ratios).show(2).unwrap_or_default());
            }
            println!("| {} |", line.join(" | "));
        }
    }
}
