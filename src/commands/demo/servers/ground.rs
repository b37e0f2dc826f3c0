//! The temporary folder that servers stand in, the user they run as, and the ports they may take.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::supervisor::Supervisor;
use super::{Binaries, ServerError};

/// A temporary folder that vanishes with this process, and everything that is the same for all servers in it.
#[derive(Debug)]
pub struct Ground {
    folder: PathBuf,
    binaries: Binaries,
    user: Option<User>,
    next: AtomicU32,
    template: Mutex<Option<PathBuf>>,
    _keeper: Mutex<Supervisor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl Ground {
    /// Finds the programs and makes the folder.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or no folder can be made.
    pub fn new() -> Result<Arc<Self>, ServerError> {
        Self::with(Binaries::find()?)
    }

    /// The same with programs that were found elsewhere.
    ///
    /// # Errors
    /// No folder can be made.
    pub fn with(binaries: Binaries) -> Result<Arc<Self>, ServerError> {
        let folder = temporary_folder();
        fs::create_dir(&folder)
            .map_err(|error| ServerError::io(format!("cannot create {}", folder.display()), &error))?;
        let user = unprivileged_user(&folder)?;
        give(&folder, user, 0o700)?;
        // As ourselves: the folder that this one stands in may be nobody else's to write to.
        let keeper = Supervisor::spawn(command("/bin/sh".as_ref(), &folder, None), &folder, &[], "KILL")?;
        Ok(Arc::new(Self {
            folder,
            binaries,
            user,
            next: AtomicU32::new(1),
            template: Mutex::new(None),
            _keeper: Mutex::new(keeper),
        }))
    }

    /// The folder that everything stands in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The programs that were found.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// A command that runs as the unprivileged user, without this process' own `PG...` settings.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        command(program.as_ref(), &self.folder, self.user)
    }

    /// Makes a folder of its own for one server.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn server_folder(&self, kind: &str) -> Result<PathBuf, ServerError> {
        let folder = self.folder.join(format!("{kind}{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder)
            .map_err(|error| ServerError::io(format!("cannot create {}", folder.display()), &error))?;
        give(&folder, self.user, 0o700)?;
        Ok(folder)
    }

    /// Writes a file that only the unprivileged user may read, as PostgreSQL demands of keys.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, text: &str) -> Result<(), ServerError> {
        fs::write(path, text).map_err(|error| ServerError::io(format!("cannot write {}", path.display()), &error))?;
        give(path, self.user, 0o600)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It failed; its output is in the text.
    pub fn run(command: &mut Command) -> Result<(), ServerError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.output().map_err(|error| ServerError::io(format!("cannot start {program}"), &error))?;
        if output.status.success() {
            return Ok(());
        }
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Err(ServerError(format!("{program} failed ({}):\n{}{}", output.status, out.trim_end(), err.trim_end())))
    }

    /// A data folder fresh from `initdb`, made once and then copied.
    pub(super) fn template(&self) -> Result<PathBuf, ServerError> {
        let mut template = self.template.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = template.as_ref() {
            return Ok(folder.clone());
        }
        let folder = self.folder.join("template");
        self.initdb(&folder)?;
        *template = Some(folder.clone());
        Ok(folder)
    }

    /// Runs `initdb`, with the locale in which bytes are the text's order.
    pub(super) fn initdb(&self, folder: &Path) -> Result<(), ServerError> {
        let mut initdb = self.command(self.binaries.postgres_program("initdb"));
        initdb.args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "-D"]).arg(folder);
        Self::run(&mut initdb)
    }
}

fn command(program: &Path, folder: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("LC_MESSAGES", "C");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid).env("HOME", folder);
    }
    command
}

fn temporary_folder() -> PathBuf {
    // Not TMPDIR for root: it may lie where the unprivileged user cannot go. A Unix socket's path must also stay below 104 bytes.
    let base = std::env::temp_dir();
    let base = if base.starts_with("/root") || base.as_os_str().len() > 60 { PathBuf::from("/tmp") } else { base };
    base.join(format!("pgherd-{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff))
}

/// PostgreSQL refuses to run as root: then `postgres` or `nobody` it is. `folder` is one that we have just made, so its owner is us.
fn unprivileged_user(folder: &Path) -> Result<Option<User>, ServerError> {
    let owner =
        fs::metadata(folder).map_err(|error| ServerError::io(format!("cannot read {}", folder.display()), &error))?;
    if owner.uid() != 0 {
        return Ok(None);
    }
    let passwd =
        fs::read_to_string("/etc/passwd").map_err(|error| ServerError::io("cannot read /etc/passwd", &error))?;
    let found = ["postgres", "nobody"].iter().find_map(|name| user_named(&passwd, name));
    found.map(Some).ok_or_else(|| {
        ServerError("PostgreSQL does not run as root, and there is no user postgres or nobody here".to_owned())
    })
}

fn user_named(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

fn give(path: &Path, user: Option<User>, mode: u32) -> Result<(), ServerError> {
    let describe = |error: std::io::Error| ServerError::io(format!("cannot give {} away", path.display()), &error);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(describe)?;
    user.map_or(Ok(()), |user| chown(path, Some(user.uid), Some(user.gid)).map_err(describe))
}

/// A port on loopback that nobody listens on, below the range that outgoing connections take theirs from.
///
/// # Errors
/// No port is free.
pub fn free_port() -> Result<u16, ServerError> {
    for _ in 0..1000 {
        let port = rand::random_range(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(ServerError("no free port on 127.0.0.1".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "nobodyelse:x:7:8::/:/bin/sh\nnobody:x:65534:65533:nobody:/nonexistent:/usr/sbin/nologin\n";
        assert_eq!(user_named(passwd, "nobody"), Some(User { uid: 65534, gid: 65533 }));
        assert_eq!(user_named(passwd, "postgres"), None);
    }

    #[test]
    fn a_free_port_can_be_listened_on() {
        let port = free_port().expect("a port");
        TcpListener::bind(("127.0.0.1", port)).expect("still free");
    }
}
