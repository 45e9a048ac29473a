//! `subnet.env`: what flannel tells other programs of the node's subnet, such as docker's start script and CNI plugins.
//!
//! [`super::shared`] writes it once the network is up. Invariant: whoever reads it sees a whole file.
//!
//! May depend on proxy. Read first: flannel's `pkg/subnet/writefile_other.go`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use flatnet_proxy::Ipv4Prefix;

/// Writes the file: pods have `subnet` of `network`, an MTU in bytes, and perhaps MASQUERADE already.
pub(super) fn write(
    path: &Path,
    network: Ipv4Prefix,
    subnet: Ipv4Prefix,
    mtu: u16,
    masquerades: bool,
) -> io::Result<()> {
    let bridge = Ipv4Addr::from(u32::from(subnet.address()) + 1);
    let text = format!(
        "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={bridge}/{}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={masquerades}\n",
        subnet.length()
    );
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let mut file = File::create(&name)?;
    file.write_all(text.as_bytes())?;
    // Others read it, whatever this process's umask is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    fs::rename(&name, path)
}
