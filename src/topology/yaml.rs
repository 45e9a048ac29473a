//! YAML as a tree in which every node and key knows its place.
//!
//! The readers of the topology and of manifests walk it; nothing else sees YAML.
//!
//! Invariants: places are byte ranges of the file's text, with line and column from 1; documents keep the order of the
//! file; keys of a mapping are unique (the parser refuses others).
//!
//! May depend on `serde-saphyr` and [`crate::topology::findings`].
//!
//! Read first: YAML 1.2 section 3.2.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Error, Location, Spanned, budget::BudgetBreach};

use crate::topology::findings::{Finding, Place, Source};

/// A value and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A mapping's key and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) place: Place,
}

impl Node {
    /// Finds a field of a mapping.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// Gives the entries of a mapping; none if it is something else.
    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Null
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_) => &[],
        }
    }

    /// Gives the items of a list; none if it is something else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            Value::Null
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Map(_) => &[],
        }
    }

    /// Gives a text; `None` if it is something else.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Map(_) => None,
        }
    }

    /// Finds the place of a nested field, `a.b[2].c` written as `["a", "b", "2", "c"]`, or of what is there of it.
    pub(crate) fn place_of(&self, path: &[&str]) -> &Place {
        let mut node = self;
        for step in path {
            let next = match step.parse::<usize>() {
                Ok(index) if !node.items().is_empty() => node.items().get(index),
                Ok(_) | Err(_) => node.get(step),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        &node.place
    }

    /// Says what kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Documents in a file at most.
const MOST_DOCUMENTS: usize = 200_000;
/// Values in a file at most.
const MOST_NODES: usize = 50_000_000;
/// What the parser sees in a file at most: about two for each value.
const MOST_EVENTS: usize = 2 * MOST_NODES;

/// Reads all documents of a file; what cannot be parsed is one finding.
pub(crate) fn documents(source: &Arc<Source>) -> Result<Vec<Node>, Box<Finding>> {
    // As in YAML 1.2, only true and false are booleans, so that a machine may be called n.
    let options = serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! { max_documents: MOST_DOCUMENTS, max_nodes: MOST_NODES, max_events: MOST_EVENTS },
    };
    let raw: Vec<RawNode> =
        serde_saphyr::from_multiple_with_options(source.text(), options).map_err(|error| {
            let error = error.without_snippet();
            let place =
                error.location().map_or_else(|| source.place(0..0), |location| place(source, &location));
            Box::new(match limit(error) {
                Some((message, help)) => Finding::error(place, message)
                    .help(format!("{help}; nothing else in the file was checked")),
                None => Finding::error(place, syntax(error))
                    .help("the file is not valid YAML; nothing else in it was checked"),
            })
        })?;
    Ok(raw.into_iter().map(|node| node.resolve(source)).collect())
}

/// Says which of its limits the parser met, and what to do.
fn limit(error: &Error) -> Option<(&'static str, &'static str)> {
    let mut error = error;
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } = error {
        error = inner;
    }
    let breach = if let Error::Budget { breach, .. } = error { Some(breach) } else { None };
    let by_aliases = matches!(
        error,
        Error::AliasReplayCounterOverflow { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. }
    ) || matches!(
        breach,
        Some(
            BudgetBreach::Aliases { .. }
                | BudgetBreach::Anchors { .. }
                | BudgetBreach::AliasAnchorRatio { .. }
                | BudgetBreach::MergeKeys { .. }
                | BudgetBreach::RecordedAnchorEvents { .. }
                | BudgetBreach::RecordedAnchorBytes { .. }
        )
    );
    if by_aliases {
        let help = "use fewer, or write out what they stand for";
        return Some(("the aliases up to here stand for more than can be read", help));
    }
    if let Some(BudgetBreach::Depth { .. }) = breach {
        return Some(("lists and mappings lie too deep in each other", "write them less deep"));
    }
    breach.map(|_| ("the file holds more than can be read", "give its documents in several files"))
}

/// Gives the parser's message without the place, which is shown beside it, and what the parser's own options are.
fn syntax(error: &Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    message.split(", set ").next().unwrap_or_default().to_owned()
}

/// A node as the parser gives it.
struct RawNode(Spanned<RawValue>);

enum RawValue {
    Scalar(Value),
    List(Vec<RawNode>),
    Map(Vec<(Spanned<String>, RawNode)>),
}

impl RawNode {
    fn resolve(self, source: &Arc<Source>) -> Node {
        let Spanned { value, referenced, .. } = self.0;
        let value = match value {
            RawValue::Scalar(value) => value,
            RawValue::List(items) => {
                Value::List(items.into_iter().map(|item| item.resolve(source)).collect())
            }
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, node)| {
                        let place = place(source, &key.referenced);
                        (Key { name: key.value, place }, node.resolve(source))
                    })
                    .collect(),
            ),
        };
        Node { value, place: place(source, &referenced) }
    }
}

fn place(source: &Arc<Source>, location: &Location) -> Place {
    let span = location.span();
    let start = span.byte_offset().map(|offset| offset as usize);
    let start = start.unwrap_or_else(|| source.offset(location.line() as usize, location.column() as usize));
    let length = span.byte_len().unwrap_or(span.len()) as usize;
    // Some lengths are in letters: what is found is whole letters all the same.
    let text = source.text();
    let start = text.floor_char_boundary(start);
    let end = text.ceil_char_boundary(start.saturating_add(length));
    // A block's span reaches over all its lines; its first line tells where it is.
    let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
    source.place(start..end.min(line_end))
}

impl<'de> Deserialize<'de> for RawNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawValue, D::Error> {
        RawValue::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Bool(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Unsigned(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Scalar(Value::Text(value.into())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(RawValue::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Node>, Box<Finding>> {
        documents(&Source::new("t.yaml".into(), text.into()))
    }

    fn at(place: &Place) -> (usize, usize) {
        (place.line(), place.column())
    }

    #[test]
    fn every_value_and_key_knows_its_place() {
        let documents =
            read("kind: A\n---\nkind: B\nspec:\n  list:\n    - name: x\n      port: 80\n").unwrap();
        assert_eq!(documents.len(), 2);
        let spec = documents[1].get("spec").unwrap();
        let (key, _) = &spec.get("list").unwrap().items()[0].entries()[1];
        assert_eq!((key.name.as_str(), at(&key.place)), ("port", (7, 7)));
        assert_eq!(at(documents[1].place_of(&["spec", "list", "0", "port"])), (7, 13));
        assert_eq!(at(documents[1].place_of(&["spec", "list", "0", "none", "x"])), (6, 7));
    }

    #[test]
    fn places_are_byte_ranges_also_after_wide_letters() {
        let source = Source::new("t.yaml".into(), "a: é\nb: {c: 12}\n".into());
        let documents = documents(&source).unwrap();
        let place = documents[0].place_of(&["b", "c"]);
        assert_eq!(&source.text()[place.range()], "12");
        assert_eq!(at(place), (2, 8));
    }

    #[test]
    fn what_is_too_much_to_read_is_said_in_plain_words_at_its_place() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        let finding = read(&text).unwrap_err();
        assert_eq!(finding.to_string(), "the aliases up to here stand for more than can be read");
        assert_eq!(finding.place().line(), 6, "{finding:?}");
        assert!(finding.advice().unwrap().starts_with("use fewer, "), "{finding:?}");

        // On a stack as large as the main thread's, where files are read.
        let deep = || read(&format!("a: 1\nb: {}{}\n", "[".repeat(100), "]".repeat(100))).unwrap_err();
        let main = std::thread::Builder::new().stack_size(8 << 20).spawn(deep);
        let finding = main.unwrap().join().unwrap();
        assert_eq!(finding.to_string(), "lists and mappings lie too deep in each other");
        assert_eq!(finding.place().line(), 2, "{finding:?}");
    }

    #[test]
    fn a_byte_order_mark_is_whole_where_it_is_wrong_and_moves_nothing_where_it_is_right() {
        let text = "a: \u{feff}1\n";
        let finding = read(text).unwrap_err();
        assert_eq!(&text[finding.place().range()], "\u{feff}", "{finding:?}");
        let source = Source::new("t.yaml".into(), "\u{feff}a: 1\nb: {c: 12}\n".into());
        let documents = documents(&source).unwrap();
        let place = documents[0].place_of(&["b", "c"]);
        assert_eq!((&source.text()[place.range()], at(place)), ("12", (2, 8)));
    }

    #[test]
    fn broken_yaml_is_one_finding_at_its_line() {
        let finding = read("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(finding.place().line() >= 2, "{finding:?}");
        let finding = read("a: 1\na: 2\n").unwrap_err();
        assert_eq!(finding.place().line(), 2, "{finding}");
    }
}
