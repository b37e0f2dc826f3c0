//! Rounds of this measure's targets side by side, and their ratios within a round.

use crate::figures::Spread;

/// A figure of a sample, by its title.
pub(super) struct Figure<S> {
    pub(super) title: &'static str,
    pub(super) digits: usize,
    pub(super) of: fn(&S) -> Option<f64>,
}

/// Samples by target, one for each round, in the order in which they were first added.
pub(super) struct Table<S>(Vec<(String, Vec<S>)>);

impl<S> Table<S> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn add(&mut self, target: &str, sample: S) {
        match self.0.iter_mut().find(|(known, _)| known == target) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((target.to_owned(), vec![sample])),
        }
    }

    fn of(&self, target: &str) -> Option<&[S]> {
        self.0.iter().find(|(known, _)| known == target).map(|(_, samples)| &samples[..])
    }

    /// Prints medians and, in brackets, the lowest and the highest round.
    pub(super) fn print(&self, figures: &[Figure<S>]) {
        let titles: Vec<&str> = figures.iter().map(|figure| figure.title).collect();
        println!("\n| through | {} |", titles.join(" | "));
        println!("|---|{}", "---:|".repeat(titles.len()));
        for (target, samples) in &self.0 {
            let shown = figures.iter().map(|figure| {
                Spread::of(samples.iter().filter_map(figure.of)).show(figure.digits).unwrap_or_else(|| "-".to_owned())
            });
            println!("| {target} | {} |", shown.collect::<Vec<_>>().join(" | "));
        }
    }

    /// Prints one target's figure in terms of another's, round by round, beside the aim.
    pub(super) fn compare(&self, figure: &Figure<S>, ours: &str, theirs: &str, aim: &str) {
        let (Some(our), Some(their)) = (self.of(ours), self.of(theirs)) else { return };
        let ratios = our.iter().zip(their).filter_map(|(our, their)| Some((figure.of)(our)? / (figure.of)(their)?));
        let shown = Spread::of(ratios).show(2).unwrap_or_else(|| "-".to_owned());
        println!("\n{}, {ours} : {theirs}: {shown} ({aim})", figure.title);
    }
}
