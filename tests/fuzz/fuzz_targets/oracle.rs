//! What PostgreSQL's own parser reads, beside what pgherd read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(difference) = pgherd_fuzz::oracle::compare(data) {
        panic!("{difference}");
    }
});
