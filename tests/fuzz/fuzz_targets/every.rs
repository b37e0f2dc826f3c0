//! One target, named by PGHERD_FUZZ_TARGET, so that all of them are one build.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pgherd_fuzz::targets;

fuzz_target!(|data: &[u8]| {
    static RUN: OnceLock<fn(&[u8])> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let name = std::env::var("PGHERD_FUZZ_TARGET").expect("PGHERD_FUZZ_TARGET names a target");
        targets::ALL.into_iter().find(|target| target.name == name).expect("a target of targets/mod.rs").run
    });
    run(data);
});
