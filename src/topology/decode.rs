//! Kubernetes types from a YAML tree, with all that does not fit.
//!
//! The manifests' reader calls it once per document.
//!
//! Invariants: a field that the type does not know is an error at its key; a value of the wrong type is an error at its
//! place; one wrong value does not hide the next.
//!
//! May depend on `serde` and [`crate::topology::yaml`].
//!
//! Read first: `serde::Deserializer`; `k8s-openapi` asks for an ignored value exactly where it does not know a field.

use std::{cell::RefCell, collections::BTreeSet, fmt};

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use crate::topology::{
    findings::{Finding, Place},
    yaml::{Key, Node, Value},
};

/// Decodes a document. What does not fit is added to the findings; the rest is still decoded, so that the checks after
/// it can go on. `None` if nothing can be decoded at all.
pub(crate) fn decode<T: DeserializeOwned>(node: &Node, findings: &mut Vec<Finding>) -> Option<T> {
    let context = Context::default();
    loop {
        context.unknown.borrow_mut().clear();
        let result = T::deserialize(Decoder { node, key: None, context: &context });
        let failure = match result {
            Ok(value) => {
                findings.extend(context.unknown.take());
                return Some(value);
            }
            Err(failure) => failure,
        };
        let place = failure.place.unwrap_or_else(|| node.place.clone());
        let start = place.range().start;
        findings.push(Finding::error(place, failure.message));
        // Read it as absent next time; if that does not help, give up.
        if !context.skipped.borrow_mut().insert(start) {
            findings.extend(context.unknown.take());
            return None;
        }
    }
}

#[derive(Default)]
struct Context {
    unknown: RefCell<Vec<Finding>>,
    /// Where values begin that are read as absent.
    skipped: RefCell<BTreeSet<usize>>,
}

/// Why a value does not fit.
#[derive(Debug)]
struct Failure {
    message: String,
    place: Option<Place>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl serde::de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), place: None }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'a> {
    node: &'a Node,
    key: Option<&'a Key>,
    context: &'a Context,
}

impl<'a> Decoder<'a> {
    /// Says whether this value was found wrong and is to read as absent.
    fn is_skipped(&self) -> bool {
        self.context.skipped.borrow().contains(&self.node.place.range().start)
    }

    fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null) || self.is_skipped()
    }

    /// Puts this value's place on a failure that has none yet.
    fn locate(&self, mut failure: Failure) -> Failure {
        failure.place.get_or_insert_with(|| self.node.place.clone());
        failure
    }
}

impl<'de> Deserializer<'de> for Decoder<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() {
            return visitor.visit_unit().map_err(|failure| self.locate(failure));
        }
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), context: self.context }),
            Value::Map(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), value: None, context: self.context })
            }
        };
        result.map_err(|failure| self.locate(failure))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if let Some(key) = self.key {
            let finding = Finding::error(key.place.clone(), format!("unknown field {:?}", key.name));
            self.context.unknown.borrow_mut().push(finding);
        }
        visitor.visit_unit()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.is_null() {
            return visitor.visit_unit();
        }
        Err(self.locate(Failure::invalid_type(Unexpected::Other(self.node.kind()), &"nothing")))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit_struct seq tuple
        tuple_struct map struct enum identifier
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    context: &'a Context,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Failure> {
        for node in self.items.by_ref() {
            let decoder = Decoder { node, key: None, context: self.context };
            // An item that was found wrong is left out of its list.
            if !decoder.is_skipped() {
                return seed.deserialize(decoder).map(Some);
            }
        }
        Ok(None)
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a (Key, Node)>,
    context: &'a Context,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        for entry in self.entries.by_ref() {
            let (key, node) = entry;
            let decoder = Decoder { node, key: None, context: self.context };
            if decoder.is_skipped() {
                continue;
            }
            self.value = Some(entry);
            let name: StrDeserializer<'_, Failure> = key.name.as_str().into_deserializer();
            return seed.deserialize(name).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Failure> {
        let (key, node) = self.value.take().ok_or_else(|| Failure::custom("a key has no value"))?;
        seed.deserialize(Decoder { node, key: Some(key), context: self.context })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::topology::{findings::Source, yaml::documents};

    fn read(text: &str) -> (Option<Pod>, Vec<String>) {
        let mut findings = Vec::new();
        let node = &documents(&Source::new("p.yaml".into(), text.into())).unwrap()[0];
        let pod = decode(node, &mut findings);
        (pod, findings.iter().map(|finding| format!("{} {finding}", finding.place())).collect())
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_all_found() {
        let (pod, findings) = read(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {x: 1, y: z}\n  colour: null\nspec:\n  \
             containers:\n    - name: c\n      ports: [{containerPort: http}, {containerPort: 80, port: 1}]\n  hostNetwork: often\n",
        );
        assert_eq!(
            findings,
            [
                "p.yaml:5:15 invalid type: integer `1`, expected a string",
                "p.yaml:10:31 invalid type: string \"http\", expected i32",
                "p.yaml:11:16 invalid type: string \"often\", expected a boolean",
                "p.yaml:6:3 unknown field \"colour\"",
                "p.yaml:10:58 unknown field \"port\"",
            ]
        );
        let pod = pod.unwrap();
        assert_eq!(pod.metadata.labels.unwrap()["y"], "z");
        assert_eq!(pod.spec.unwrap().containers[0].ports.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn numbers_are_quantities_and_target_ports() {
        let (pod, findings) = read(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n    - name: c\n      resources: {limits: {cpu: 2, \
             memory: 1Gi}}\n      livenessProbe: {httpGet: {port: 80}}\n      env: [{name: X, value: \"1\"}]\n",
        );
        assert!(findings.is_empty(), "{findings:?}");
        let containers = pod.unwrap().spec.unwrap().containers;
        assert_eq!(containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "2");
    }
}
