//! The network's configuration as flannel keeps it under `config`. Pure.
//!
//! Read by every node before it claims a subnet, written once when a network is made.
//!
//! Invariants: after reading, `subnet_min` and `subnet_max` lie in the network and on multiples of the subnet's size.
//! Absent fields get flannel's defaults.
//!
//! May depend on `serde_json`, the prefix type of `flatnet-proxy` and plain types of the engine's.
//!
//! Read first: flannel's `Documentation/configuration.md` and `pkg/subnet/config.go` (which says udp where the
//! document says vxlan).

use std::net::Ipv4Addr;

use flatnet_engine::{tunnel::Encapsulation, wire::vxlan::VNI_LIMIT};
use flatnet_proxy::{Ipv4Prefix, PrefixError};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::lease::member;

/// The backend of a configuration that names none.
pub const DEFAULT_BACKEND: &str = "udp";

/// The backend whose packets go as they are.
pub const HOST_GW: &str = "host-gw";

/// The UDP port of the udp backend.
pub const DEFAULT_UDP_PORT: u16 = 8285;

/// The UDP port of the vxlan backend on Linux.
pub const DEFAULT_VXLAN_PORT: u16 = 8472;

/// The network's number that the vxlan backend has by default.
pub const DEFAULT_VNI: u32 = 1;

/// What flannel may hand out and how nodes reach each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The pod network.
    pub network: Ipv4Prefix,
    /// The length of a node's subnet in bits.
    pub subnet_len: u8,
    /// The first subnet that may be handed out.
    pub subnet_min: Ipv4Addr,
    /// The last subnet that may be handed out.
    pub subnet_max: Ipv4Addr,
    /// The backend's name in lower case.
    pub backend: String,
    /// The backend's UDP port; 0 of host-gw, which has none.
    pub port: u16,
    /// The number of vxlan's network.
    pub vni: Option<u32>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("configuration is not JSON")]
    Json(#[from] serde_json::Error),
    /// JSON, but not an object.
    #[error("configuration is not a JSON object")]
    NotAnObject,
    /// IPv4 is on, which is the default, and there is no network.
    #[error("Network is missing")]
    NoNetwork,
    /// IPv4 is switched off.
    #[error("EnableIPv4 is false; only IPv4 networks are supported")]
    NoIpv4,
    /// A field has another type or cannot be read.
    #[error("{field} cannot be read")]
    Field {
        /// The field's name as flannel writes it.
        field: &'static str,
        /// What the prefix's reader said, if it is one.
        #[source]
        source: Option<PrefixError>,
    },
    /// The network is smaller than a /28.
    #[error("Network {0} is too small; a /28 is the least that is useful")]
    TooSmall(Ipv4Prefix),
    /// The subnet's length is above 30 or leaves fewer than four subnets.
    #[error("SubnetLen {length} does not fit Network {network}: it must be {least} to 30", least = network.length() + 2)]
    SubnetLen {
        /// The length asked for.
        length: u64,
        /// The network.
        network: Ipv4Prefix,
    },
    /// A limit lies outside the network.
    #[error("{field} {address} is outside of Network {network}")]
    Outside {
        /// `SubnetMin` or `SubnetMax`.
        field: &'static str,
        /// The limit.
        address: Ipv4Addr,
        /// The network.
        network: Ipv4Prefix,
    },
    /// A limit is not the first address of a subnet.
    #[error("{field} {address} is not the first address of a /{length}")]
    Unaligned {
        /// `SubnetMin` or `SubnetMax`.
        field: &'static str,
        /// The limit.
        address: Ipv4Addr,
        /// The subnet's length.
        length: u8,
    },
}

impl NetworkConfig {
    /// Makes the configuration that flannel derives from a network alone.
    ///
    /// # Errors
    /// [`ConfigError::TooSmall`].
    pub fn new(network: Ipv4Prefix) -> Result<Self, ConfigError> {
        Self::derive(network, &Map::new())
    }

    /// Says how nodes reach each other, as they are where nothing carries packets, and by which UDP port.
    #[must_use]
    pub fn with_backend(self, encapsulation: Option<Encapsulation>, port: u16) -> Self {
        let (backend, port, vni) = match encapsulation {
            None => (HOST_GW, 0, None),
            Some(Encapsulation::Udp) => ("udp", port, None),
            Some(Encapsulation::Vxlan { vni }) => ("vxlan", port, Some(vni)),
        };
        Self { backend: backend.into(), port, vni, ..self }
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// Each variant of [`ConfigError`].
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let Value::Object(fields) = serde_json::from_slice(text)? else {
            return Err(ConfigError::NotAnObject);
        };
        match member(&fields, "EnableIPv4") {
            None | Some(Value::Null | Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err(ConfigError::NoIpv4),
            Some(_) => return Err(ConfigError::Field { field: "EnableIPv4", source: None }),
        }
        let text = match member(&fields, "Network") {
            None | Some(Value::Null) => return Err(ConfigError::NoNetwork),
            Some(value) => value.as_str().ok_or(ConfigError::Field { field: "Network", source: None })?,
        };
        // flannel masks host bits off instead of refusing them.
        let (_, network) = Ipv4Prefix::parse_interface(text)
            .map_err(|source| ConfigError::Field { field: "Network", source: Some(source) })?;
        Self::derive(network, &fields)
    }

    /// Writes the configuration; defaults that flannel would derive itself are left out.
    pub fn to_json(&self) -> String {
        let mut fields = Map::new();
        fields.insert("Network".into(), self.network.to_string().into());
        let default = Self::new(self.network).ok();
        let default = default.as_ref();
        if default.is_none_or(|default| default.subnet_len != self.subnet_len) {
            fields.insert("SubnetLen".into(), self.subnet_len.into());
        }
        if default.is_none_or(|default| default.subnet_min != self.subnet_min) {
            fields.insert("SubnetMin".into(), self.subnet_min.to_string().into());
        }
        if default.is_none_or(|default| default.subnet_max != self.subnet_max) {
            fields.insert("SubnetMax".into(), self.subnet_max.to_string().into());
        }
        let backend = match self.vni {
            None if self.port == 0 => json!({ "Type": self.backend }),
            None => json!({ "Type": self.backend, "Port": self.port }),
            Some(vni) => json!({ "Type": self.backend, "VNI": vni, "Port": self.port }),
        };
        fields.insert("Backend".into(), backend);
        Value::Object(fields).to_string()
    }

    /// Says whether a subnet may be handed out: of the right length and between the limits.
    pub fn fits(&self, subnet: Ipv4Prefix) -> bool {
        subnet.length() == self.subnet_len
            && (self.subnet_min <= subnet.address() && subnet.address() <= self.subnet_max)
    }

    fn derive(network: Ipv4Prefix, fields: &Map<String, Value>) -> Result<Self, ConfigError> {
        let subnet_len = match member(fields, "SubnetLen").and_then(nonzero) {
            None => match network.length() {
                0..=22 => 24,
                23..=28 => network.length() + 2,
                29.. => return Err(ConfigError::TooSmall(network)),
            },
            Some(value) => {
                let length = value.as_u64().ok_or(ConfigError::Field { field: "SubnetLen", source: None })?;
                let fits = (u64::from(network.length()) + 2..=30).contains(&length);
                u8::try_from(length)
                    .ok()
                    .filter(|_| fits)
                    .ok_or(ConfigError::SubnetLen { length, network })?
            }
        };
        let size = 1u64 << (32 - subnet_len);
        let first = u64::from(u32::from(network.address()));
        let default_min = Ipv4Addr::from((first + size) as u32);
        let default_max = Ipv4Addr::from((first + network.size() - size) as u32);
        let (backend, port, vni) = backend(fields)?;
        Ok(Self {
            network,
            subnet_len,
            subnet_min: limit(fields, "SubnetMin", network, subnet_len)?.unwrap_or(default_min),
            subnet_max: limit(fields, "SubnetMax", network, subnet_len)?.unwrap_or(default_max),
            backend,
            port,
            vni,
        })
    }
}

/// Go cannot tell an absent number from zero; neither do we.
fn nonzero(value: &Value) -> Option<&Value> {
    Some(value).filter(|value| !value.is_null() && value.as_u64() != Some(0))
}

fn limit(
    fields: &Map<String, Value>,
    field: &'static str,
    network: Ipv4Prefix,
    length: u8,
) -> Result<Option<Ipv4Addr>, ConfigError> {
    let value = match member(fields, field) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let address: Ipv4Addr = value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or(ConfigError::Field { field, source: None })?;
    if address.is_unspecified() {
        return Ok(None);
    }
    if !network.contains(address) {
        return Err(ConfigError::Outside { field, address, network });
    }
    if Ipv4Prefix::new(address, length).is_err() {
        return Err(ConfigError::Unaligned { field, address, length });
    }
    Ok(Some(address))
}

fn backend(fields: &Map<String, Value>) -> Result<(String, u16, Option<u32>), ConfigError> {
    let refuse = |field| ConfigError::Field { field, source: None };
    let backend = match member(fields, "Backend") {
        None | Some(Value::Null) => return Ok((DEFAULT_BACKEND.into(), DEFAULT_UDP_PORT, None)),
        Some(value) => value.as_object().ok_or(refuse("Backend"))?,
    };
    let name = member(backend, "Type").and_then(Value::as_str).ok_or(refuse("Backend.Type"))?;
    let name = name.to_ascii_lowercase();
    let default = match &*name {
        "vxlan" => DEFAULT_VXLAN_PORT,
        HOST_GW => 0,
        _ => DEFAULT_UDP_PORT,
    };
    let port = match member(backend, "Port").and_then(nonzero) {
        None => default,
        Some(value) => {
            value.as_u64().and_then(|port| u16::try_from(port).ok()).ok_or(refuse("Backend.Port"))?
        }
    };
    let vni = match member(backend, "VNI").filter(|value| !value.is_null()) {
        _ if name != "vxlan" => None,
        None => Some(DEFAULT_VNI),
        Some(value) => {
            let vni = value.as_u64().and_then(|vni| u32::try_from(vni).ok());
            Some(vni.filter(|&vni| vni < VNI_LIMIT).ok_or(refuse("Backend.VNI"))?)
        }
    };
    Ok((name, port, vni))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetworkConfig, ConfigError> {
        NetworkConfig::from_json(text.as_bytes())
    }

    #[test]
    fn defaults_are_those_of_flannel() {
        let config = read(r#"{ "network": "10.3.0.0/16" }"#).unwrap();
        assert_eq!(config.network.to_string(), "10.3.0.0/16");
        assert_eq!(config.subnet_min, Ipv4Addr::new(10, 3, 1, 0));
        assert_eq!(config.subnet_max, Ipv4Addr::new(10, 3, 255, 0));
        assert_eq!(config.subnet_len, 24);
        assert_eq!((config.backend.as_str(), config.port), ("udp", 8285));
    }

    #[test]
    fn overrides_are_taken() {
        let config = read(
            r#"{ "Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28,
                 "Backend": { "Type": "VXLAN", "VNI": 1 }, "EnableNFTables": true }"#,
        )
        .unwrap();
        assert_eq!(config.subnet_min, Ipv4Addr::new(10, 3, 5, 0));
        assert_eq!(config.subnet_max, Ipv4Addr::new(10, 3, 8, 0));
        assert_eq!((config.subnet_len, config.backend.as_str(), config.port), (28, "vxlan", 8472));
    }

    #[test]
    fn default_subnet_length_follows_the_network() {
        for (network, expected) in
            [("10.0.0.0/8", 24), ("10.0.0.0/22", 24), ("10.0.0.0/23", 25), ("10.0.0.0/28", 30)]
        {
            assert_eq!(
                NetworkConfig::new(network.parse().unwrap()).unwrap().subnet_len,
                expected,
                "{network}"
            );
        }
        assert!(matches!(NetworkConfig::new("10.0.0.0/29".parse().unwrap()), Err(ConfigError::TooSmall(_))));
    }

    #[test]
    fn host_bits_of_the_network_are_masked_off() {
        assert_eq!(read(r#"{"Network":"10.3.7.1/16"}"#).unwrap().network.to_string(), "10.3.0.0/16");
    }

    #[test]
    fn unset_values_mean_the_default() {
        let config =
            read(r#"{"Network":"10.3.0.0/16","SubnetMin":"0.0.0.0","SubnetLen":0,"SubnetMax":null}"#)
                .unwrap();
        assert_eq!(config, NetworkConfig::new("10.3.0.0/16".parse().unwrap()).unwrap());
    }

    #[test]
    fn bad_configurations_are_refused() {
        let cases = [
            ("{}", "Network is missing"),
            ("[]", "configuration is not a JSON object"),
            (r#"{"Network":"fc00::/48"}"#, "Network cannot be read"),
            (
                r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#,
                "EnableIPv4 is false; only IPv4 networks are supported",
            ),
            (
                r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
                "SubnetLen 17 does not fit Network 10.3.0.0/16: it must be 18 to 30",
            ),
            (
                r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#,
                "SubnetLen 31 does not fit Network 10.3.0.0/16: it must be 18 to 30",
            ),
            (
                r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
                "SubnetMin 10.4.0.0 is outside of Network 10.3.0.0/16",
            ),
            (
                r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.4.1"}"#,
                "SubnetMax 10.3.4.1 is not the first address of a /24",
            ),
            (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, "Backend.Type cannot be read"),
            (
                r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
                "Backend.VNI cannot be read",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn configuration_reads_back_as_written() {
        for text in [
            r#"{"Network":"10.1.0.0/16"}"#,
            r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":9,"Port":4789}}"#,
            r#"{"Network":"10.1.0.0/16","SubnetLen":26,"SubnetMin":"10.1.0.0","SubnetMax":"10.1.9.64"}"#,
        ] {
            let config = read(text).unwrap();
            assert_eq!(read(&config.to_json()).unwrap(), config);
        }
        let plain = NetworkConfig::new("10.1.0.0/16".parse().unwrap()).unwrap();
        assert_eq!(plain.to_json(), r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp","Port":8285}}"#);
        let host_gw = plain.clone().with_backend(None, 0);
        let text = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#;
        assert_eq!((host_gw.to_json().as_str(), read(text).unwrap()), (text, host_gw));
        let vxlan = plain.with_backend(Some(Encapsulation::Vxlan { vni: 1 }), DEFAULT_VXLAN_PORT);
        assert_eq!(
            vxlan.to_json(),
            r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":1,"Port":8472}}"#
        );
    }
}
