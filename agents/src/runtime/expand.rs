//! `$(NAME)` in a container's command, arguments and environment.
//!
//! [`super::container`] has it replaced before a program starts. Invariant: what names no variable stays as it is written.
//!
//! May depend on std. Read first: Kubernetes, "Define dependent environment variables".

/// Replaces each `$(NAME)` of a variable that is known, the last of a name; `$$` is one `$`, with which nothing begins.
pub(super) fn expand(text: &str, known: &[(String, String)]) -> String {
    let (mut expanded, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let named = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let value = named
            .and_then(|(name, after)| Some((&known.iter().rfind(|(other, _)| other == name)?.1[..], after)));
        let (value, after) = value.unwrap_or(("$", after));
        expanded.push_str(value);
        rest = after;
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_all_else_stays() {
        let known =
            [("A", "old"), ("A", "1"), ("B_2", "$(A)")].map(|(name, value)| (name.into(), value.into()));
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B_2)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C) $(A)", "$(C) 1"),
            ("$(A", "$(A"),
            ("$A $ $", "$A $ $"),
            ("$(C $(A)", "$(C 1"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }
}
