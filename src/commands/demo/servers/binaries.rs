//! Where the servers' programs are on this machine, and the one command that installs them if they are nowhere.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::ServerError;

/// The folder of PostgreSQL's programs, and Redis if it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder that holds `initdb` and `postgres`.
    pub postgres: PathBuf,
    /// `redis-server` (or Valkey's), if it is installed.
    pub redis: Option<PathBuf>,
}

/// The programs without which a folder is not taken.
const NEEDED: [&str; 2] = ["initdb", "postgres"];

impl Binaries {
    /// The programs of one folder.
    ///
    /// # Errors
    /// It lacks `initdb` or `postgres`.
    pub fn of(folder: PathBuf) -> Result<Self, ServerError> {
        if is_complete(&folder) {
            return Ok(Self { postgres: folder, redis: find_redis() });
        }
        let needed = NEEDED.join(" or ");
        Err(ServerError(format!("{} lacks {needed}", folder.display())))
    }

    /// Looks at `PGHERD_PG_BIN`, then `PATH`, then the usual install folders, newest version first.
    ///
    /// # Errors
    /// PostgreSQL is nowhere; the text says which command installs it on this system.
    pub fn find() -> Result<Self, ServerError> {
        if let Some(folder) = env::var_os("PGHERD_PG_BIN").map(PathBuf::from) {
            if !is_complete(&folder) {
                let needed = NEEDED.join(", ");
                return Err(ServerError(format!("PGHERD_PG_BIN is {}, which lacks one of {needed}", folder.display())));
            }
            return Ok(Self { postgres: folder, redis: find_redis() });
        }
        let folders = path_folders().into_iter().chain(usual_folders());
        match folders.into_iter().find(|folder| is_complete(folder)) {
            Some(postgres) => Ok(Self { postgres, redis: find_redis() }),
            None => Err(ServerError(missing())),
        }
    }

    /// A program of PostgreSQL's by name; client programs may be installed apart from the server.
    pub fn postgres_program(&self, name: &str) -> PathBuf {
        let here = self.postgres.join(name);
        if here.exists() {
            return here;
        }
        path_folders().into_iter().map(|folder| folder.join(name)).find(|path| path.exists()).unwrap_or(here)
    }
}

fn is_complete(folder: &Path) -> bool {
    NEEDED.iter().all(|name| folder.join(name).exists())
}

fn path_folders() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// Install folders of distributions, the source build and Homebrew, those with higher versions first.
fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, tail) in [
        ("/usr/lib/postgresql", "bin"),
        ("/usr/libexec", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
    ] {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((version_of(entry.file_name().to_str()?)?, entry.path().join(tail))))
            .collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        folders.extend(versions.into_iter().map(|(_, folder)| folder));
    }
    // Fedora and its kin: /usr/pgsql-16/bin comes from PostgreSQL's own packages.
    folders.extend((9..=30).rev().map(|version| PathBuf::from(format!("/usr/pgsql-{version}/bin"))));
    folders.extend(["/usr/local/pgsql/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from));
    folders
}

/// The version in a folder's name, such as `15`, `postgresql@16` or `postgresql15`.
fn version_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("postgresql").map_or(name, |rest| rest.strip_prefix('@').unwrap_or(rest));
    digits.parse().ok()
}

/// `PGHERD_REDIS` names the program; empty is none.
fn find_redis() -> Option<PathBuf> {
    if let Some(named) = env::var_os("PGHERD_REDIS") {
        return (!named.is_empty()).then(|| PathBuf::from(named));
    }
    let usual = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    let folders: Vec<PathBuf> = path_folders().into_iter().chain(usual).collect();
    ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.exists())
}

fn missing() -> String {
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = if cfg!(target_os = "macos") { vec!["macos".to_owned()] } else { systems(&os_release) };
    match install_command(&system) {
        Some(command) => format!("PostgreSQL's server programs are not installed; install them with: {command}"),
        None => "PostgreSQL's server programs are not installed (initdb, postgres); set PGHERD_PG_BIN to their folder"
            .to_owned(),
    }
}

/// `ID` and `ID_LIKE` of an os-release file.
fn systems(os_release: &str) -> Vec<String> {
    let fields: BTreeMap<&str, &str> = os_release.lines().filter_map(|line| line.split_once('=')).collect();
    ["ID", "ID_LIKE"]
        .iter()
        .filter_map(|key| fields.get(key))
        .flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace().map(str::to_owned))
        .collect()
}

fn install_command(systems: &[String]) -> Option<&'static str> {
    systems.iter().find_map(|system| match system.as_str() {
        "debian" | "ubuntu" => Some("sudo apt-get install -y postgresql redis-server"),
        "fedora" | "rhel" | "centos" => Some("sudo dnf install -y postgresql-server postgresql-contrib redis"),
        "alpine" => Some("apk add postgresql postgresql-contrib redis"),
        "arch" => Some("sudo pacman -S --noconfirm postgresql redis"),
        "suse" | "opensuse" => Some("sudo zypper install -y postgresql-server postgresql-contrib redis"),
        "macos" => Some("brew install postgresql redis"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_install_command_follows_os_release() {
        let debian = systems("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n");
        assert_eq!(install_command(&debian), Some("sudo apt-get install -y postgresql redis-server"));
        let rocky = systems("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n");
        assert_eq!(install_command(&rocky), Some("sudo dnf install -y postgresql-server postgresql-contrib redis"));
        assert_eq!(install_command(&systems("ID=plan9\n")), None);
    }

    #[test]
    fn versions_are_read_from_folder_names() {
        assert_eq!(version_of("15"), Some(15));
        assert_eq!(version_of("postgresql@17"), Some(17));
        assert_eq!(version_of("postgresql16"), Some(16));
        assert_eq!(version_of("redis"), None);
    }
}
