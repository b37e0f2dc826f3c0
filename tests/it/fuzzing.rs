//! The fuzzer's targets for a moment: every find of its long runs, and as many inputs as a few seconds take.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// How many inputs each target gets: made from words, from seeds, and from nothing.
const CASES: u32 = 500;

/// PGHERD_SOAK_SECONDS times as many.
fn cases() -> u32 {
    let soak = std::env::var("PGHERD_SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    CASES * soak.unwrap_or(1)
}

#[test]
fn what_was_found_stays_mended() {
    let finds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/finds");
    for target in targets::ALL {
        let Ok(files) = finds.join(target.name).read_dir() else { continue };
        for file in files {
            let path = file.expect("a file").path();
            let bytes = std::fs::read(&path).expect("readable");
            let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(outcome.is_ok(), "{} fails again", path.display());
        }
    }
}

#[test]
fn every_target_bears_what_it_is_given() {
    for target in targets::ALL {
        let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
        target.seeds.iter().for_each(|seed| (target.run)(seed));
        let choices = proptest::collection::vec(any::<u8>(), 0..60);
        let input = (0..3_u8, any::<prop::sample::Index>(), choices).prop_map(|(kind, seed, choices)| match kind {
            0 => [&choices[..choices.len().min(1)], &targets::soup::text(&choices)].concat(),
            1 => targets::soup::mutated(target.seeds[seed.index(target.seeds.len())], &choices),
            _ => choices,
        });
        let outcome = runner.run(&input, |bytes| {
            (target.run)(&bytes);
            Ok(())
        });
        if let Err(failure) = outcome {
            panic!("{}: {failure}", target.name);
        }
    }
}
