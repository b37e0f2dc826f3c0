//! The binary: the allocator, and the command line.

use std::process::ExitCode;

/// Fewer page faults and less contention than the system's under many small frames.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pgherd::cli::run()
}
