//! What a link leaves to the system, and may be told not to.
//!
//! Each is probed when its link is opened; visits switch it while frames pass. Invariant: what is off is done here,
//! frame by frame, and arrives the same. Allowed dependencies: `tap`, `tunnel_socket`. Read first: ethtool(8), `--features`.

use std::io;

use super::Link;

/// One of them, by what ethtool calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// The system gives frames whose checksum is yet to be made.
    Checksum,
    /// The system gives TCP superframes; takes [`Feature::Checksum`].
    Tso,
    /// The system gives UDP superframes; takes [`Feature::Checksum`].
    Uso,
    /// The system is given frames of a flow together.
    Gso,
    /// Frames of a flow that the system gives together are one.
    Gro,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Checksum, Self::Tso, Self::Uso, Self::Gso, Self::Gro];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Tso => "tso",
            Self::Uso => "uso",
            Self::Gso => "gso",
            Self::Gro => "gro",
        }
    }
}

/// Why a feature stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// The link has none such.
    #[error("the link has no {}", .0.name())]
    None(Feature),
    /// It needs another.
    #[error("{} needs {} on", .0.name(), Feature::Checksum.name())]
    Needs(Feature),
    /// The system does not offer it.
    #[error("this system does not offer {}", .0.name())]
    System(Feature, #[source] io::Error),
}

impl Link {
    /// Lists its features, and which are on; none of a link in memory.
    #[must_use]
    pub fn features(&self) -> Vec<(Feature, bool)> {
        match self {
            Self::Tap(tap) => tap.features(),
            Self::TunnelSocket(socket) => {
                vec![(Feature::Gso, socket.segments), (Feature::Gro, socket.merges)]
            }
            Self::Wire { .. } | Self::Rings(_) | Self::Pod(_) => Vec::new(),
        }
    }

    /// Switches one, for frames that pass from now on.
    ///
    /// # Errors
    /// [`FeatureError`].
    pub fn set_feature(&mut self, feature: Feature, on: bool) -> Result<(), FeatureError> {
        match (self, feature) {
            (Self::Tap(tap), _) => tap.set_feature(feature, on),
            (Self::TunnelSocket(socket), Feature::Gso) => {
                socket.segments = on;
                Ok(())
            }
            (Self::TunnelSocket(socket), Feature::Gro) => {
                socket.merges = on;
                Ok(())
            }
            (Self::TunnelSocket(_) | Self::Wire { .. } | Self::Rings(_) | Self::Pod(_), _) => {
                Err(FeatureError::None(feature))
            }
        }
    }
}
