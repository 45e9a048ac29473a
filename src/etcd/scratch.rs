//! An etcd for as long as a command measures something with it.
//!
//! [`mod@crate::bench`] starts it: members on loopback, at ports that are free, with data in a directory of their own. Invariant: both are gone when it is
//! dropped; Ctrl-C reaches the members as it does the command.
//!
//! May depend on nothing else of this crate. Read first: [`super`].

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::{self, Child};

use super::{EtcdError, Member, await_answer, command, end, endpoints, initial, missing, plan};

/// An etcd that ends with this value.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    members: Vec<Member>,
    children: Vec<Child>,
}

impl Scratch {
    /// Starts so many members and waits until they answer.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub fn start(count: u8) -> Result<Self, EtcdError> {
        let directory = std::env::temp_dir().join(format!("flatnet-etcd-{}", process::id()));
        let failed = |source| EtcdError::File { path: directory.clone(), source };
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let members = plan(count);
        // From here on the directory goes with it.
        let mut scratch = Self { directory, members: Vec::new(), children: Vec::new() };
        scratch.members =
            members.map_err(|source| EtcdError::File { path: scratch.directory.clone(), source })?;
        let initial = initial(&scratch.members);
        for member in &mut scratch.members {
            let child = command(&scratch.directory, member, &initial)?.spawn().map_err(missing)?;
            member.process = Some(child.id().cast_signed());
            scratch.children.push(child);
        }
        await_answer(&scratch.directory, &scratch.endpoints())?;
        Ok(scratch)
    }

    /// URLs of its members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        endpoints(&self.members)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        end(&self.directory, &self.members);
        for child in &mut self.children {
            // It has ended, or nobody can end it.
            let _ = child.try_wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
