//! The `lo` of a network namespace that is somebody else's: as it was before a pod was attached, and put back to that.
//!
//! [`super::link`] asks before it puts `lo` up. `flatnet clean`, and the next network of the name, put back what one that was
//! killed left ([`put_back_all`]). Invariants: as long as anything is changed a note of it lies in the network's directory; what
//! somebody changed or uses since is left as it is.
//!
//! May depend on [`crate::host`] and `crate::netlink`. Read first: network_namespaces(7).

use std::fs::{self, File};
use std::io;
use std::iter;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use netlink_packet_route::link::LinkFlags;
use serde::{Deserialize, Serialize};

use super::link::{INTERFACE, within};
use crate::host;
use crate::netlink::{Kernel, index};

/// The directory in a network's that has the notes; no pod's can have such a name.
pub(super) const NOTES: &str = ".loopbacks";
/// The interface.
const LO: &str = "lo";
/// What the system gives `lo` when it comes up.
const GIVEN: (Ipv4Addr, u8) = (Ipv4Addr::LOCALHOST, 8);

/// What is to be known when the one that changed it has been killed.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// A file of the namespace.
    path: PathBuf,
    /// That file's device.
    device: u64,
    /// Its inode there, which no other namespace has meanwhile.
    inode: u64,
    /// What addresses `lo` had.
    addresses: Vec<(Ipv4Addr, u8)>,
}

/// The network namespace of somebody else whose `lo` was down; it is again when this is dropped.
#[derive(Debug)]
pub struct Loopback {
    namespace: File,
    note: Note,
    /// Where that is noted.
    file: PathBuf,
}

impl Loopback {
    /// Notes in a network's directory what the `lo` of a namespace is; none if it is up, and needs no change.
    pub(super) fn note(path: &Path, namespace: &File, directory: &Path) -> io::Result<Option<Self>> {
        let (is_up, addresses) = within(namespace, look)??;
        if is_up {
            return Ok(None);
        }
        let identity = namespace.metadata()?;
        let note = Note { path: path.to_owned(), device: identity.dev(), inode: identity.ino(), addresses };
        let notes = directory.join(NOTES);
        fs::create_dir_all(&notes)?;
        let file = notes.join(format!("{}-{}.json", note.device, note.inode));
        fs::write(&file, serde_json::to_vec(&note)?)?;
        Ok(Some(Self { namespace: namespace.try_clone()?, note, file }))
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        // Where that fails it stays up, and works; who cleans up tries again.
        if put_back(&self.namespace, &self.note).is_ok() {
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Puts back what a network that was killed changed and noted in its directory; returns the files of those namespaces. Where there
/// is another eth0 by now somebody uses `lo`: that stays, and its note.
///
/// # Errors
/// The system's; what is to be put back yet stays noted.
pub fn put_back_all(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut done = Vec::new();
    for file in fs::read_dir(directory.join(NOTES)).into_iter().flatten().flatten() {
        let file = file.path();
        // One that was not written to its end was followed by no change.
        let note: Option<Note> = serde_json::from_slice(&fs::read(&file)?).ok();
        if let Some(note) = note
            && let Some(namespace) = find(&note)
        {
            if within(&namespace, host::interfaces)??.iter().any(|it| it.name == INTERFACE) {
                continue;
            }
            if put_back(&namespace, &note)? {
                done.push(note.path);
            }
        }
        fs::remove_file(&file)?;
    }
    done.sort();
    Ok(done)
}

/// Opens the namespace of a note: by its file, or where that leads elsewhere by now by a process in it.
fn find(note: &Note) -> Option<File> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.map(|entry| entry.path().join("ns/net"));
    iter::once(note.path.clone()).chain(processes).find_map(|path| {
        let is_it = |it: &fs::Metadata| (it.dev(), it.ino()) == (note.device, note.inode);
        // Looked at first: of what is there by now not all can be opened without harm.
        fs::metadata(&path).ok().filter(is_it)?;
        let file = File::open(&path).ok()?;
        file.metadata().ok().filter(is_it).map(|_| file)
    })
}

/// Takes `lo` down, and its address away if it had none; tells whether it still was as it had been left.
fn put_back(namespace: &File, note: &Note) -> io::Result<bool> {
    within(namespace, || {
        let (is_up, present) = look()?;
        let is_added = |address: &(Ipv4Addr, u8)| *address == GIVEN && !note.addresses.contains(address);
        let (added, kept): (Vec<_>, Vec<_>) = present.into_iter().partition(is_added);
        if !is_up || kept != note.addresses {
            return Ok(false);
        }
        let (lo, mut kernel) = (index(LO)?, Kernel::open()?);
        kernel.set_link(lo, (LinkFlags::empty(), LinkFlags::Up), Vec::new())?;
        added.into_iter().try_for_each(|(address, length)| kernel.remove_address(lo, address, length))?;
        Ok(true)
    })?
}

/// Looks at the `lo` of the caller's namespace: whether it is up, and its addresses in order.
fn look() -> io::Result<(bool, Vec<(Ipv4Addr, u8)>)> {
    let lo = host::interfaces()?.into_iter().find(|it| it.name == LO).ok_or(io::ErrorKind::NotFound)?;
    let is_up = Kernel::open()?.link(lo.index)?.is_some_and(|link| link.header.flags.contains(LinkFlags::Up));
    let mut addresses = lo.addresses;
    addresses.sort_unstable();
    Ok((is_up, addresses))
}
