//! flannel's subnet leases: keys and values exactly as flanneld writes them. Pure.
//!
//! The node agent calls it with what the store holds; a stock flanneld on another host must read what it writes.
//!
//! Invariants: writing then reading gives the same lease; reading is strict where flannel is lax (a key outside
//! `subnets/`, a length above 31, host bits, leading zeros are errors), and lenient where it must be (unknown fields,
//! any case of field names, unknown backends).
//!
//! May depend on `serde_json`, the prefix type of `flatnet-proxy` and plain types of the engine's.
//!
//! Read first: flannel's `pkg/subnet` and `pkg/lease`.

pub mod admit;

pub mod allocate;

pub mod config;

use std::net::{Ipv4Addr, Ipv6Addr};

use flatnet_engine::{tunnel::Encapsulation, wire::MacAddress};
use flatnet_proxy::{Ipv4Prefix, PrefixError};
use serde_json::{Map, Value, json};
use thiserror::Error;

pub use allocate::{AllocateError, Claim, Plan, plan};
pub use config::{ConfigError, NetworkConfig};

use config::HOST_GW;

/// Where flannel keeps its network by default.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// A subnet and who holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// The subnet.
    pub subnet: Ipv4Prefix,
    /// The holder.
    pub attributes: Attributes,
}

/// What a lease's value says.
#[derive(Clone, Debug, PartialEq)]
pub struct Attributes {
    /// The holder's address in the node network; 0.0.0.0 if it has none.
    pub public_ip: Ipv4Addr,
    /// Its IPv6 address, if any.
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend's name; empty for udp.
    pub backend_type: String,
    /// What the backend tells its peers, e.g. a VTEP's MAC.
    pub backend_data: Option<Value>,
    /// The same for IPv6.
    pub backend_v6_data: Option<Value>,
}

/// Why a key or a value in `subnets/` is not a lease.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// The key is not below the network's `subnets/`.
    #[error("key {key} is not below {prefix}/subnets/")]
    Outside {
        /// The key.
        key: String,
        /// The network's prefix.
        prefix: String,
    },
    /// The key does not end in `a.b.c.d-length`, optionally followed by `&` and an IPv6 subnet.
    #[error("key {key} does not name a subnet")]
    Name {
        /// The key.
        key: String,
        /// What the prefix's reader said, if it came so far.
        #[source]
        source: Option<PrefixError>,
    },
    /// The value is not JSON.
    #[error("value is not JSON")]
    Json(#[from] serde_json::Error),
    /// The value is JSON, but not an object.
    #[error("value is not a JSON object")]
    NotAnObject,
    /// A field is missing or has another type.
    #[error("field {field} is missing or not of its type")]
    Field {
        /// The field's name as flannel writes it.
        field: &'static str,
    },
}

impl Attributes {
    /// Describes a holder that uses the udp backend.
    pub fn udp(public_ip: Ipv4Addr) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    /// Describes a holder whose packets are carried like this, or, by host-gw, go as they are; its end of a VXLAN has the MAC.
    pub fn new(public_ip: Ipv4Addr, encapsulation: Option<Encapsulation>, vtep: MacAddress) -> Self {
        match encapsulation {
            None => Self { backend_type: HOST_GW.into(), ..Self::udp(public_ip) },
            Some(Encapsulation::Udp) => Self::udp(public_ip),
            Some(Encapsulation::Vxlan { vni }) => Self {
                backend_type: "vxlan".into(),
                backend_data: Some(json!({"VNI": vni, "VtepMAC": vtep.to_string()})),
                ..Self::udp(public_ip)
            },
        }
    }

    /// Writes the value, byte for byte as flanneld does.
    pub fn to_json(&self) -> String {
        let mut fields = Map::new();
        fields.insert("PublicIP".into(), self.public_ip.to_string().into());
        fields.insert("PublicIPv6".into(), self.public_ipv6.map(|address| address.to_string()).into());
        if !self.backend_type.is_empty() {
            fields.insert("BackendType".into(), self.backend_type.clone().into());
        }
        for (name, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)] {
            if let Some(data) = data {
                fields.insert(name.into(), data.clone());
            }
        }
        Value::Object(fields).to_string()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// [`LeaseError::Json`], [`LeaseError::NotAnObject`], [`LeaseError::Field`].
    pub fn from_json(text: &[u8]) -> Result<Self, LeaseError> {
        let Value::Object(fields) = serde_json::from_slice(text)? else {
            return Err(LeaseError::NotAnObject);
        };
        let public_ip = member(&fields, "PublicIP")
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok())
            .ok_or(LeaseError::Field { field: "PublicIP" })?;
        let public_ipv6 = match member(&fields, "PublicIPv6") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let address = value.as_str().and_then(|text| text.parse().ok());
                Some(address.ok_or(LeaseError::Field { field: "PublicIPv6" })?)
            }
        };
        let backend_type = match member(&fields, "BackendType") {
            None | Some(Value::Null) => String::new(),
            Some(value) => {
                value.as_str().map(str::to_owned).ok_or(LeaseError::Field { field: "BackendType" })?
            }
        };
        let data = |name| member(&fields, name).filter(|value| !value.is_null()).cloned();
        Ok(Self {
            public_ip,
            public_ipv6,
            backend_type,
            backend_data: data("BackendData"),
            backend_v6_data: data("BackendV6Data"),
        })
    }

    /// Says whether this holder takes what is carried like that, or, by host-gw, comes as it is: flannel's udp backend writes no type.
    /// Over vxlan the network's number is not looked at, as flannel does not.
    pub fn speaks(&self, encapsulation: Option<Encapsulation>) -> bool {
        let is = |name: &str| self.backend_type.eq_ignore_ascii_case(name);
        match encapsulation {
            None => is(HOST_GW),
            Some(Encapsulation::Udp) => self.backend_type.is_empty() || is("udp"),
            Some(Encapsulation::Vxlan { .. }) => is("vxlan"),
        }
    }

    /// Returns the MAC of the holder's end of a VXLAN.
    ///
    /// # Errors
    /// [`LeaseError::Field`] if it has none.
    pub fn vtep(&self) -> Result<MacAddress, LeaseError> {
        let data = self.backend_data.as_ref().and_then(Value::as_object);
        let mac = data.and_then(|data| member(data, "VtepMAC")).and_then(Value::as_str);
        mac.and_then(|mac| mac.parse().ok())
            .filter(|mac: &MacAddress| mac.is_unicast())
            .ok_or(LeaseError::Field { field: "BackendData.VtepMAC" })
    }
}

/// Names the directory of all leases of a network, with its final slash, so that `subnets-old/` is not in it.
pub fn subnets_prefix(prefix: &str) -> String {
    format!("{}/subnets/", prefix.trim_end_matches('/'))
}

/// Names the key of a network's configuration.
pub fn config_key(prefix: &str) -> String {
    format!("{}/config", prefix.trim_end_matches('/'))
}

/// Names the key of a lease.
pub fn subnet_key(prefix: &str, subnet: Ipv4Prefix) -> String {
    format!("{}{}-{}", subnets_prefix(prefix), subnet.address(), subnet.length())
}

/// Reads the subnet from a lease's key; the IPv6 half of a dual-stack key is checked and left.
///
/// # Errors
/// [`LeaseError::Outside`] or [`LeaseError::Name`].
pub fn parse_subnet_key(prefix: &str, key: &str) -> Result<Ipv4Prefix, LeaseError> {
    let name = key
        .strip_prefix(&subnets_prefix(prefix))
        .ok_or_else(|| LeaseError::Outside { key: key.into(), prefix: prefix.into() })?;
    let refuse = |source| LeaseError::Name { key: key.into(), source };
    let (v4, v6) = match name.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (name, None),
    };
    if v6.is_some_and(|v6| !is_v6_subnet(v6)) || v4.contains('/') {
        return Err(refuse(None));
    }
    let (address, length) = v4.split_once('-').ok_or_else(|| refuse(None))?;
    let subnet: Ipv4Prefix = format!("{address}/{length}").parse().map_err(|source| refuse(Some(source)))?;
    // flannel keeps the length in five bits.
    if subnet.length() > 31 { Err(refuse(Some(PrefixError::Length(subnet.length())))) } else { Ok(subnet) }
}

/// Reads a whole lease.
///
/// # Errors
/// As [`parse_subnet_key`] and [`Attributes::from_json`].
pub fn parse_lease(prefix: &str, key: &str, value: &[u8]) -> Result<Lease, LeaseError> {
    Ok(Lease { subnet: parse_subnet_key(prefix, key)?, attributes: Attributes::from_json(value)? })
}

fn is_v6_subnet(text: &str) -> bool {
    let legal = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':'));
    text.split_once('-').is_some_and(|(address, length)| {
        legal(address)
            && address.parse::<Ipv6Addr>().is_ok()
            && length.bytes().all(|byte| byte.is_ascii_digit())
            && length.parse::<u8>().is_ok_and(|length| length <= 127)
    })
}

/// Finds a field whatever its case, as Go's JSON reader does; an exact name wins.
fn member<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields
        .get(name)
        .or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VXLAN: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

    #[test]
    fn udp_value_is_byte_exact() {
        let attributes = Attributes::udp([1, 2, 3, 4].into());
        assert_eq!(attributes.to_json(), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);
        assert_eq!(Attributes::from_json(attributes.to_json().as_bytes()).unwrap(), attributes);
    }

    #[test]
    fn vxlan_value_survives_reading_and_writing() {
        let attributes = Attributes::from_json(VXLAN.as_bytes()).unwrap();
        assert_eq!(attributes.to_json(), VXLAN);
        let vxlan = Some(Encapsulation::Vxlan { vni: 1 });
        assert!(attributes.speaks(vxlan) && !attributes.speaks(Some(Encapsulation::Udp)));
        let mac = attributes.vtep().unwrap();
        assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
        assert_eq!(Attributes::new([192, 168, 64, 3].into(), vxlan, mac), attributes);
    }

    #[test]
    fn a_host_gw_value_is_byte_exact() {
        let attributes = Attributes::new([192, 168, 64, 3].into(), None, MacAddress::default());
        let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#;
        assert_eq!(attributes.to_json(), text);
        assert!(attributes.speaks(None) && !attributes.speaks(Some(Encapsulation::Udp)));
        assert!(!Attributes::udp([192, 168, 64, 3].into()).speaks(None));
    }

    #[test]
    fn a_vxlan_holder_without_a_mac_is_refused() {
        for data in
            [r#""x""#, "{}", r#"{"VtepMAC":1}"#, r#"{"VtepMAC":"01:00:5e:00:00:01"}"#, r#"{"VtepMAC":"1"}"#]
        {
            let text = format!(r#"{{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{data}}}"#);
            let error = Attributes::from_json(text.as_bytes()).unwrap().vtep().unwrap_err();
            assert_eq!(
                error.to_string(),
                "field BackendData.VtepMAC is missing or not of its type",
                "{data}"
            );
        }
    }

    #[test]
    fn field_names_match_in_any_case_and_unknown_ones_are_left() {
        let attributes = Attributes::from_json(br#"{"publicip":"1.2.3.4","Extra":[1]}"#).unwrap();
        assert_eq!(attributes, Attributes::udp([1, 2, 3, 4].into()));
    }

    #[test]
    fn hostile_values_are_errors() {
        for text in ["", "[]", "{}", r#"{"PublicIP":4}"#, r#"{"PublicIP":"1.2.3"}"#, "null", "{\"PublicIP\":"]
        {
            assert!(Attributes::from_json(text.as_bytes()).is_err(), "{text}");
        }
        let bad_v6 = br#"{"PublicIP":"1.2.3.4","PublicIPv6":"x"}"#;
        assert!(matches!(Attributes::from_json(bad_v6), Err(LeaseError::Field { field: "PublicIPv6" })));
    }

    #[test]
    fn keys_of_leases_are_read() {
        let read = |name: &str| parse_subnet_key(DEFAULT_PREFIX, &format!("{DEFAULT_PREFIX}/subnets/{name}"));
        let subnet: Ipv4Prefix = "10.12.13.0/24".parse().unwrap();
        assert_eq!(read("10.12.13.0-24").unwrap(), subnet);
        assert_eq!(read("10.12.13.0-24&fd00:12:13::-56").unwrap(), subnet);
    }

    #[test]
    fn bad_keys_are_refused() {
        let names = [
            "10.12.13.0",
            "10.12.13.0-",
            "10.12.13-24",
            "10.12.13.0.1-24",
            "10.12.13.256-24",
            "10.12.13.0-32",
            "10.12.13.0-99",
            "10.12.13.7-24",
            "a10.12.13.0-24",
            "10.12.13.0-24x",
            "10.12.13.0-24/x",
            "-24",
            "",
            "10x12.13.0-24",
            "10.12.13.0-24&",
            "10.12.13.0-24&fd00::-128",
            "10.12.13.0-24&FD00::-64",
            "10.012.13.0-24",
            "10.12.13.0-024",
            "10.12.13.0/24-24",
        ];
        for name in names {
            let key = format!("/coreos.com/network/subnets/{name}");
            assert!(matches!(parse_subnet_key(DEFAULT_PREFIX, &key), Err(LeaseError::Name { .. })), "{name}");
        }
        for key in ["/coreos.com/network/subnets-old/10.1.2.0-24", "/x/subnets/10.1.2.0-24", "10.1.2.0-24"] {
            assert!(
                matches!(parse_subnet_key(DEFAULT_PREFIX, key), Err(LeaseError::Outside { .. })),
                "{key}"
            );
        }
    }

    proptest! {
        #[test]
        fn keys_read_back_as_written(address in any::<u32>(), length in 0u8..=31) {
            let subnet = Ipv4Prefix::containing(address.into(), length).unwrap();
            prop_assert_eq!(parse_subnet_key("/net", &subnet_key("/net/", subnet)).unwrap(), subnet);
        }

        #[test]
        fn no_text_makes_the_readers_panic(key in ".{0,40}", value in ".{0,60}") {
            let _ = parse_lease("", &format!("/subnets/{key}"), value.as_bytes());
            let _ = NetworkConfig::from_json(value.as_bytes());
        }
    }
}
