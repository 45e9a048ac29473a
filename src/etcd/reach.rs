//! How flags say that an etcd is reached.
//!
//! `flatnet up`, `node`, `get subnets` and `doctor` take the same. Invariant: a password is in the environment only.
//!
//! May depend on agents. Read first: [`crate::args::EtcdFlags`].

use std::ffi::OsString;

use flatnet_agents::lease::DEFAULT_PREFIX;
use flatnet_agents::store::etcd::{Options, Password, Tls, User};
use miette::Diagnostic;

use crate::args::EtcdFlags;

/// Where the password of etcd's user is, as flanneld has it.
const PASSWORD: &str = "FLANNELD_ETCD_PASSWORD";

/// There is a user of etcd without a password.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("there is no password of etcd's user")]
#[diagnostic(help(
    "put it into the environment as {PASSWORD}, where other users of this host do not see it"
))]
pub struct NoPassword;

/// Says how the etcd is reached; which member comes first comes from the seed.
///
/// # Errors
/// [`NoPassword`].
pub fn options(flags: &EtcdFlags, seed: u64) -> Result<Options, NoPassword> {
    let tls = Tls {
        ca: flags.etcd_cafile.clone(),
        certificate: flags.etcd_certfile.clone(),
        key: flags.etcd_keyfile.clone(),
    };
    let user = match flags.etcd_username.clone() {
        None => None,
        Some(name) => {
            let password = std::env::var(PASSWORD).map_err(|_| NoPassword)?;
            Some(User { name, password: Password(password) })
        }
    };
    Ok(Options { endpoints: flags.etcd.clone(), tls, user, seed, ..Options::default() })
}

/// The same flags for a process in the background.
pub fn words(flags: &EtcdFlags) -> Vec<OsString> {
    let texts = [
        ("--etcd", (!flags.etcd.is_empty()).then(|| flags.etcd.join(","))),
        ("--etcd-prefix", flags.etcd_prefix.clone()),
        ("--etcd-username", flags.etcd_username.clone()),
    ];
    let files = [
        ("--etcd-cafile", &flags.etcd_cafile),
        ("--etcd-certfile", &flags.etcd_certfile),
        ("--etcd-keyfile", &flags.etcd_keyfile),
    ];
    let texts = texts.into_iter().filter_map(|(flag, text)| Some((flag, OsString::from(text?))));
    let files = files.into_iter().filter_map(|(flag, path)| Some((flag, path.clone()?.into_os_string())));
    texts.chain(files).flat_map(|(flag, value)| [flag.into(), value]).collect()
}

/// Says where flannel's keys lie.
pub fn prefix(flags: &EtcdFlags) -> &str {
    flags.etcd_prefix.as_deref().unwrap_or(DEFAULT_PREFIX)
}
