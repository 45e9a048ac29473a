//! Reading the fields of a mapping one by one, and saying which are wrong, missing or unknown.
//!
//! The reader of `kind: Topology` stands on it.
//!
//! Invariants: after [`Fields::close`], every key of the mapping has been read or reported.
//!
//! May depend on [`crate::topology::yaml`] and [`crate::topology::findings`].
//!
//! Read first: [`crate::topology::yaml`].

use std::net::Ipv4Addr;

use flatnet_proxy::Ipv4Prefix;

use crate::topology::{
    Interface,
    findings::{Finding, Place, listed},
    values,
    yaml::{Node, Value},
};

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// A mapping that is being read.
pub(crate) struct Fields<'a, 'f> {
    node: &'a Node,
    what: &'static str,
    known: Vec<&'static str>,
    pub(crate) findings: &'f mut Vec<Finding>,
}

impl<'a, 'f> Fields<'a, 'f> {
    /// Begins to read a mapping; anything else is an error and reads as empty.
    pub(crate) fn open(node: &'a Node, what: &'static str, findings: &'f mut Vec<Finding>) -> Self {
        if !matches!(node.value, Value::Map(_) | Value::Null) {
            findings.push(Finding::error(
                node.place.clone(),
                format!("{what} must be a mapping, not {}", node.kind()),
            ));
        }
        Self { node, what, known: Vec::new(), findings }
    }

    /// Gives a field as it is; null reads as absent.
    pub(crate) fn node(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        self.node.get(name).filter(|node| !matches!(node.value, Value::Null))
    }

    /// Reads a field if it is there; a bad value is an error.
    pub(crate) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let node = self.node(name)?;
        match read(node) {
            Ok(value) => Some(Located { value, place: node.place.clone() }),
            Err(message) => {
                self.findings.push(Finding::error(node.place.clone(), format!("{name}: {message}")));
                None
            }
        }
    }

    /// Reads a field that must be there.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Node) -> Result<T, String>,
    ) -> Option<Located<T>> {
        if self.node(name).is_none() {
            let finding = Finding::error(self.node.place.clone(), format!("{} has no {name}", self.what));
            self.findings.push(finding);
            return None;
        }
        self.known.pop();
        self.optional(name, read)
    }

    /// Gives the items of a list field; anything else is an error.
    pub(crate) fn list(&mut self, name: &'static str) -> &'a [Node] {
        let Some(node) = self.node(name) else { return &[] };
        if !matches!(node.value, Value::List(_)) {
            self.findings.push(Finding::error(
                node.place.clone(),
                format!("{name} must be a list, not {}", node.kind()),
            ));
        }
        node.items()
    }

    /// Reports the fields that nobody asked for.
    pub(crate) fn close(mut self) {
        self.known.sort_unstable();
        for (key, _) in self.node.entries() {
            if !self.known.contains(&key.name.as_str()) {
                let message = format!("unknown field {:?} in {}", key.name, self.what);
                self.findings.push(
                    Finding::error(key.place.clone(), message)
                        .help(format!("known are {}", listed(self.known.iter().copied()))),
                );
            }
        }
    }
}

/// Reads a text.
pub(crate) fn text(node: &Node) -> Result<String, String> {
    node.text().map(str::to_owned).ok_or_else(|| format!("must be a text, not {}", node.kind()))
}

/// Reads true or false.
pub(crate) fn boolean(node: &Node) -> Result<bool, String> {
    match node.value {
        Value::Bool(value) => Ok(value),
        Value::Null
        | Value::Unsigned(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::Text(_)
        | Value::List(_)
        | Value::Map(_) => Err(format!("must be true or false, not {}", node.kind())),
    }
}

/// Reads a whole number up to a limit, that one included.
pub(crate) fn number(node: &Node, least: u64, most: u64) -> Result<u64, String> {
    match node.value {
        Value::Unsigned(value) if (least..=most).contains(&value) => Ok(value),
        Value::Unsigned(_) | Value::Signed(_) => Err(format!("must be between {least} and {most}")),
        Value::Null | Value::Bool(_) | Value::Float(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
            Err(format!("must be a whole number, not {}", node.kind()))
        }
    }
}

/// Reads a prefix such as `10.1.15.0/24`.
pub(crate) fn prefix(node: &Node) -> Result<Ipv4Prefix, String> {
    values::prefix(&text(node)?)
}

/// Reads an address such as `192.168.66.1`.
pub(crate) fn address(node: &Node) -> Result<Ipv4Addr, String> {
    values::address(&text(node)?)
}

/// Reads an address with its network's length, such as `192.168.66.11/24`; it must be one that a machine can have.
pub(crate) fn interface(node: &Node) -> Result<Interface, String> {
    values::interface(&text(node)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{findings::Source, yaml::documents};

    fn node(text: &str) -> Node {
        documents(&Source::new("t.yaml".into(), format!("x: {text}\n"))).unwrap()[0].get("x").unwrap().clone()
    }

    #[test]
    fn interfaces_are_addresses_that_a_machine_can_have() {
        assert!(interface(&node("192.168.66.11/24")).is_ok());
        for text in [
            "192.168.66.0/24",
            "192.168.66.255/24",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "10.0.0.1",
            "10.0.0.1/31",
            "0.0.0.1/8",
            "7",
        ] {
            assert!(interface(&node(text)).is_err(), "{text}");
        }
    }
}
