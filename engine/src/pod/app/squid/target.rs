//! Where a request goes: the authority and path of an absolute URI, and the form in which the cache knows it.
//!
//! Invariant: equal URIs by RFC 3986, 6.2.2.1 and 6.2.3 are one text. Depends on nothing. Read first: RFC 9112 section 3.2, RFC 9110
//! section 4.2.3.

/// Port of `http` URIs.
const HTTP_PORT: u16 = 80;

/// A request's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// A name or an address, in lower case.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, from `/` on; empty for a tunnel.
    pub(super) path: String,
}

impl Target {
    /// Reads a request's target: `http://HOST[:PORT][/PATH]`, for CONNECT `HOST:PORT`.
    pub(super) fn parse(method: &str, text: &str) -> Option<Self> {
        if method == "CONNECT" {
            let (host, port) = authority(text, None)?;
            return Some(Target { host, port, path: String::new() });
        }
        // A URI is ASCII (RFC 3986, 2).
        let text = Some(text).filter(|text| text.is_ascii())?;
        let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"))?;
        let rest = text[scheme.len()..].split('#').next().unwrap_or_default();
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, port) = authority(&rest[..at], Some(HTTP_PORT))?;
        let slash = if rest[at..].starts_with('/') { "" } else { "/" };
        Some(Target { host, port, path: format!("{slash}{}", &rest[at..]) })
    }

    /// Returns what a response's field refers to, when that is on the same server (RFC 9111, 4.4).
    pub(super) fn sibling(&self, reference: &str) -> Option<Target> {
        if reference.starts_with('/') && !reference.starts_with("//") {
            let path = reference.split('#').next().unwrap_or_default();
            return Some(Target { path: path.to_owned(), ..self.clone() });
        }
        Target::parse("GET", reference).filter(|other| (&other.host, other.port) == (&self.host, self.port))
    }

    /// Returns host and port as `Host` has them.
    pub(super) fn authority(&self) -> String {
        match self.port {
            HTTP_PORT => self.host.clone(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Returns the whole URI, by which the cache knows it.
    pub(super) fn uri(&self) -> String {
        format!("http://{}{}", self.authority(), self.path)
    }
}

/// Splits an authority; without a port it is the one of the scheme. Names of users do not belong there (RFC 9110, 4.2.4).
fn authority(text: &str, default: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match text.split_once(':') {
        Some((host, "")) => (host, default?),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, default?),
    };
    let is_name =
        |host: &str| host.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-._".contains(&octet));
    (!host.is_empty() && is_name(host)).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3986, 6.2.2.1 and 6.2.3; RFC 9112, 3.2.2 and 3.2.3.
    #[test]
    fn one_resource_has_one_uri() {
        for (text, uri) in [
            ("http://A.b", Some("http://a.b/")),
            ("HTTP://a.b:80/x", Some("http://a.b/x")),
            ("http://a.b:/x", Some("http://a.b/x")),
            ("http://10.1.2.3:8080?q#f", Some("http://10.1.2.3:8080/?q")),
            ("http://a/B?C=/", Some("http://a/B?C=/")),
            ("/x", None),
            ("https://a/", None),
            ("http:///x", None),
            ("http://a/\u{e9}", None),
            ("http://user@a/", None),
            ("http://a:99999/", None),
        ] {
            assert_eq!(Target::parse("GET", text).map(|target| target.uri()).as_deref(), uri, "{text}");
        }
        assert_eq!(Target::parse("CONNECT", "a:443").map(|target| target.port), Some(443));
        assert_eq!(Target::parse("CONNECT", "a"), None);
    }

    /// RFC 9111, 4.4: nobody but its own server makes a response invalid.
    #[test]
    fn references_stay_on_their_server() {
        let target = Target::parse("POST", "http://a:8080/form").unwrap();
        for (reference, uri) in [
            ("/new#top", Some("http://a:8080/new")),
            ("http://a:8080/new", Some("http://a:8080/new")),
            ("http://a/new", None),
            ("//b/new", None),
        ] {
            assert_eq!(target.sibling(reference).map(|target| target.uri()).as_deref(), uri, "{reference}");
        }
    }
}
