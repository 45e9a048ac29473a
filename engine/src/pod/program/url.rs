//! URLs as `curl` takes them.
//!
//! Invariant: `http` alone. Depends on nothing. Read first: RFC 3986 section 3.

/// A URL in its parts.
pub(super) struct Url<'a> {
    /// Host and port as they are written.
    pub(super) authority: &'a str,
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) path: String,
}

impl<'a> Url<'a> {
    /// Reads a URL; without a port it is the default.
    ///
    /// # Errors
    /// What is wrong with it, and curl's exit code for that.
    pub(super) fn parse(url: &'a str, default: u16) -> Result<Self, (String, i32)> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err((format!("curl: (1) Protocol \"{scheme}\" not supported"), 1)),
            None => url,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => (&rest[..at], rest[at..].to_owned()),
            None => (rest, String::from("/")),
        };
        const BAD_PORT: &str =
            "curl: (3) URL rejected: Port number was not a decimal number between 0 and 65535";
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().map_err(|_| (String::from(BAD_PORT), 3))?),
            None => (authority, default),
        };
        Ok(Url { authority, name, port, path })
    }
}
