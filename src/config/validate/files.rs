//! Files that the TOML names: passwords and PEM.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::config::raw::Table;

/// Bytes read of one file: far more than any chain of certificates.
const FILE_BYTES: u64 = 1 << 20;

/// The file's bytes.
///
/// # Errors
/// Why it cannot be read, naming the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let describe = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let file = File::open(path).map_err(describe)?;
    if !file.metadata().map_err(describe)?.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(describe)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(format!("{} is larger than {FILE_BYTES} bytes", path.display()));
    }
    Ok(bytes)
}

/// Warns of a secret that every user of this machine can read.
pub(super) fn warn_if_world_readable(table: &Table<'_>, key: &str, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(metadata) = std::fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o004 != 0 {
        let problem = format!("{} can be read by every user of this machine", path.display());
        table.warn(key, problem, format!("chmod 600 {}", path.display()));
    }
}
