//! Threads that make pods' namespaces and interfaces, several at a time: each takes the system ten milliseconds or more.
//!
//! [`super::Runtime`] gives orders and takes what was made. Invariant: the threads live as long as the runtime, because what they
//! start dies with the thread that started it (prctl(2), `PR_SET_PDEATHSIG`).
//!
//! May depend on [`super::sandbox`].

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use flatnet_engine::link::tap::Tap;

use super::RuntimeError;
use super::link::LinkConfig;
use super::sandbox::Sandbox;
use crate::pods::PodView;
use crate::volumes::{self, HostKind, Source};

/// The directory in a pod's that its `emptyDir` volumes are in; no container can have such a name.
pub(super) const VOLUMES: &str = ".volumes";
/// Whoever a container runs as may write an `emptyDir`, as in Kubernetes.
const EMPTY_DIR_MODE: u32 = 0o777;
/// Threads: more than cores, since much of it is waiting for the system.
const MAKERS: usize = 8;

/// A pod that is to be made.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) view: Arc<PodView>,
    pub(super) config: LinkConfig,
    /// The pod's own, for all its files.
    pub(super) directory: PathBuf,
}

/// What a pod is made of.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) directory: PathBuf,
    pub(super) volumes: BTreeMap<String, PathBuf>,
    pub(super) sandbox: Sandbox,
    pub(super) tap: Tap,
}

type Done = (Arc<PodView>, Result<Made, RuntimeError>);

/// The threads.
#[derive(Debug)]
pub(super) struct Makers {
    orders: Vec<Sender<Order>>,
    /// Who has the next order.
    next: usize,
    /// Orders that are not done.
    open: usize,
    done: (Sender<Done>, Receiver<Done>),
}

impl Default for Makers {
    fn default() -> Self {
        Self { orders: Vec::new(), next: 0, open: 0, done: channel() }
    }
}

impl Makers {
    /// Gives an order to a thread.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn give(&mut self, order: Order) -> io::Result<()> {
        if self.orders.len() < MAKERS {
            let ((sender, orders), done) = (channel::<Order>(), self.done.0.clone());
            thread::Builder::new().name("maker".to_owned()).spawn(move || {
                for order in orders {
                    let made = make(&order);
                    if done.send((order.view, made)).is_err() {
                        return;
                    }
                }
            })?;
            self.orders.push(sender);
        }
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.orders.get(self.next).ok_or_else(gone)?.send(order).map_err(|_| gone())?;
        self.next = (self.next + 1) % MAKERS;
        self.open += 1;
        Ok(())
    }

    /// Tells whether any order is not done.
    pub(super) fn is_busy(&self) -> bool {
        self.open > 0
    }

    /// Takes what was made, or could not be, since the last call.
    pub(super) fn take_done(&mut self) -> Vec<Done> {
        let done: Vec<Done> = self.done.1.try_iter().collect();
        self.open -= done.len();
        done
    }
}

fn make(order: &Order) -> Result<Made, RuntimeError> {
    let Order { view, config, directory } = order;
    fs::create_dir_all(directory).map_err(|source| RuntimeError::File { path: directory.clone(), source })?;
    let volumes = volumes_of(view, directory)?;
    let (sandbox, tap) = Sandbox::make(directory, view, config)?;
    Ok(Made { directory: directory.clone(), volumes, sandbox, tap })
}

/// Makes a pod's volumes: where each is on the host.
fn volumes_of(view: &PodView, directory: &Path) -> Result<BTreeMap<String, PathBuf>, RuntimeError> {
    let mut made = BTreeMap::new();
    for volume in &view.volumes {
        let name = volume.name.clone();
        let failed = |why: String| RuntimeError::Volume { name: name.clone(), why };
        let path = match volumes::source(volume).map_err(|(_, why)| failed(why))? {
            Source::Memory { .. } => {
                let path = directory.join(VOLUMES).join(&name);
                let made = fs::create_dir_all(&path)
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(EMPTY_DIR_MODE)));
                made.map_err(|error| failed(format!("{}: {error}", path.display())))?;
                path
            }
            Source::Host { path, kind: HostKind::DirectoryOrEmpty } => path.into(),
            Source::Host { path, .. } => {
                fs::symlink_metadata(&path).map_err(|error| failed(format!("{path}: {error}")))?;
                made.insert(name, path.into());
                continue;
            }
            Source::Unmodelled => return Err(failed("only emptyDir and hostPath are supported".to_owned())),
        };
        fs::create_dir_all(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        made.insert(name, path);
    }
    Ok(made)
}
