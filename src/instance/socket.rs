//! Where instances listen: `flatnet/NAME.sock` under the user's runtime directory.
//!
//! `flatnet up` claims a socket, every other command looks for one. Invariants: only the user reaches it (the directory
//! is 0700, the socket 0600); a socket that nobody answers at is replaced, one that somebody answers at never; who
//! claims holds a lock on the directory meanwhile, so that two cannot both replace it.
//!
//! May depend on std, rustix and `flatnet_agents::runtime`. Read first: the XDG base directory specification.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use flatnet_agents::runtime::OF_A_POD;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes of a Unix socket's path at most: 108 with the zero at its end (unix(7)).
const MOST: usize = 107;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum SocketError {
    /// The name is not one for a file.
    #[error("{0:?} cannot be the name of a running network")]
    #[diagnostic(help("use letters, digits, - and . in --name"))]
    Name(String),
    /// A socket's path has a bound.
    #[error("the socket {} has {} bytes in its path; {MOST} fit", path.display(), path.as_os_str().len())]
    #[diagnostic(help("set XDG_RUNTIME_DIR to a shorter directory, or give a shorter --name"))]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// An instance of the name runs.
    #[error("a network {name} runs already")]
    #[diagnostic(help("end it by `flatnet down --name {name}`, or give this one another --name"))]
    Running {
        /// The name.
        name: String,
    },
    /// The directory is somebody else's.
    #[error("{path} does not belong to you alone")]
    #[diagnostic(help("set XDG_RUNTIME_DIR to a directory of yours with mode 0700"))]
    Foreign {
        /// The directory.
        path: String,
    },
    /// The system refused.
    #[error("{path} cannot be used")]
    Io {
        /// The file or directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.display().to_string();
    move |source| SocketError::Io { path, source }
}

/// Returns the directory of all sockets of this user, which need not exist.
pub fn directory() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{user}"));
    let base = given.or_else(|| usual.is_dir().then_some(usual));
    base.unwrap_or_else(|| PathBuf::from(format!("/tmp/flatnet-{user}"))).join("flatnet")
}

/// Returns the directory of the files of a network's real pods, which need not exist.
pub fn pods(name: &str) -> PathBuf {
    state_directory().join(format!("{name}.pods"))
}

/// Returns the directory of logs and durable state of this user, which need not exist.
pub fn state_directory() -> PathBuf {
    let given = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    given.or_else(home).map_or_else(directory, |base| base.join("flatnet"))
}

/// Returns the log of a network in the background, which need not exist.
pub fn log(name: &str) -> PathBuf {
    state_directory().join(format!("{name}.log"))
}

/// A socket that is this instance's until dropped.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Where to accept.
    pub listener: UnixListener,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Whoever comes next replaces it anyway.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the socket of a name.
///
/// # Errors
/// [`SocketError`].
pub fn claim(name: &str) -> Result<Claim, SocketError> {
    let path = path(name)?;
    let directory = directory();
    make_private(&directory)?;
    let lock = File::open(&directory).map_err(failed(&directory))?;
    lock.lock().map_err(failed(&directory))?;
    if answers(&path) {
        return Err(SocketError::Running { name: name.to_owned() });
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed(&path))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed(&path))?;
    Ok(Claim { path, listener })
}

/// Returns the path of the socket of a name.
///
/// # Errors
/// [`SocketError::Name`], [`SocketError::TooLong`].
pub fn path(name: &str) -> Result<PathBuf, SocketError> {
    check_name(name)?;
    let path = directory().join(format!("{name}.sock"));
    if path.as_os_str().len() > MOST { Err(SocketError::TooLong { path }) } else { Ok(path) }
}

fn check_name(name: &str) -> Result<(), SocketError> {
    let fits = |it: char| it.is_ascii_alphanumeric() || it == '-' || it == '.' || it == '_';
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(SocketError::Name(name.to_owned()));
    }
    Ok(())
}

/// Lists the instances that run, by name.
pub fn running() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory()).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.path();
            let name = path.file_name()?.to_str()?.strip_suffix(".sock")?.to_owned();
            answers(&path).then_some((name, path))
        })
        .collect();
    found.sort();
    found
}

/// Removes the sockets of this user's at which nobody listens any more; returns them.
///
/// # Errors
/// [`SocketError::Io`].
pub fn remove_dead() -> Result<Vec<PathBuf>, SocketError> {
    let directory = directory();
    let lock = match File::open(&directory) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&directory)(error)),
    };
    // Nobody claims one meanwhile.
    lock.lock().map_err(failed(&directory))?;
    let entries = fs::read_dir(&directory).map_err(failed(&directory))?.flatten().map(|entry| entry.path());
    let mut dead: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|it| it == "sock") && !answers(path)).collect();
    dead.sort();
    for path in &dead {
        fs::remove_file(path).map_err(failed(path))?;
    }
    Ok(dead)
}

/// Tells whether somebody listens at a socket, be it with a full queue: to wait for room there may be for ever.
fn answers(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let connected = socket.and_then(|socket| net::connect(&socket, &SocketAddrUnix::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::AGAIN))
}

/// Lists the directories below one.
fn below(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Lists the directories of real pods' files, and of notes, of networks that do not run any more; none of the name begins to while
/// the second value of each is held.
///
/// # Errors
/// [`SocketError::Io`].
pub fn dead_networks() -> Result<Vec<(PathBuf, File)>, SocketError> {
    let networks = below(&state_directory()).filter(|path| path.extension().is_some_and(|it| it == "pods"));
    let mut dead = Vec::new();
    for network in networks {
        let lock = File::open(&network).map_err(failed(&network))?;
        // A network that runs holds it.
        if lock.try_lock().is_ok() {
            dead.push((network, lock));
        }
    }
    Ok(dead)
}

/// Removes what real pods of such networks had in volumes and as their own files; returns those directories. Logs stay.
///
/// # Errors
/// [`SocketError::Io`].
pub fn remove_volumes(networks: &[(PathBuf, File)]) -> Result<Vec<PathBuf>, SocketError> {
    let mut dead = Vec::new();
    for (network, _) in networks {
        for pod in below(network) {
            for path in OF_A_POD.map(|name| pod.join(name)).into_iter().filter(|path| path.exists()) {
                fs::remove_dir_all(&path).map_err(failed(&path))?;
                dead.push(path);
            }
        }
    }
    dead.sort();
    Ok(dead)
}

/// Makes a directory, and those above it, that only the user can enter.
///
/// # Errors
/// [`SocketError::Foreign`], [`SocketError::Io`].
pub fn make_private(path: &Path) -> Result<(), SocketError> {
    let mut parents: Vec<&Path> = path.ancestors().take_while(|parent| !parent.exists()).collect();
    parents.reverse();
    for parent in parents {
        match DirBuilder::new().mode(0o700).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(parent)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    let made = fs::symlink_metadata(path).map_err(failed(path))?;
    let own = made.uid() == rustix::process::geteuid().as_raw();
    if !made.is_dir() || !own || made.permissions().mode() & 0o022 != 0 {
        return Err(SocketError::Foreign { path: path.display().to_string() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_somebody_who_listens_and_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        assert!(!answers(&path));
        let listener = UnixListener::bind(&path).unwrap();
        net::listen(&listener, 0).unwrap();
        let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(answers(&path));
        drop(listener);
        assert!(!answers(&path));
    }

    #[test]
    fn names_stay_inside_the_directory() {
        for name in ["", ".", "..", "a/b", "a b", ".hidden", "a\0b"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("two-nodes.v2_1").is_ok());
    }
}
