//! What a shared cache may keep and give: the rules of RFC 9111 as functions of heads and times.
//!
//! The proxy asks them about each request and response; nothing here does anything. Invariant: times are since the network's start, which
//! the proxy takes for 1970; as dates are compared only with dates of the same server, its own calendar does not matter.
//! Depends on `message`, `httpdate`. Read first: RFC 9111 sections 3 and 4.

use super::message::{Fields, Request, Response};
use std::time::{Duration, SystemTime};

/// Longest lifetime by guess: squid's default, `refresh_pattern . 0 20% 4320`.
const HEURISTIC_LIMIT: u64 = 3 * 24 * 3600;
/// Status codes that may be kept by guess (RFC 9110, 15.1), but 206.
const HEURISTIC: [u16; 11] = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
/// Fields that a 304 does not change: they describe the stored content (RFC 9111, 3.2).
const OF_CONTENT: [&str; 4] = ["Content-Encoding", "Content-Length", "Content-Range", "Content-Type"];

/// The directives of `Cache-Control`; times are seconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    must_understand: bool,
    only_if_cached: bool,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
    min_fresh: Option<u64>,
    /// Staleness that a client takes; any when there is no number.
    max_stale: Option<u64>,
}

impl Directives {
    /// Reads a message's directives; the qualified forms of `private` and `no-cache` count as the plain ones (RFC 9111, 5.2.2.4 and 7).
    pub(super) fn of(fields: &Fields) -> Self {
        let mut directives = Directives::default();
        for member in fields.members("Cache-Control") {
            let (name, value) = member.split_once('=').unwrap_or((member, ""));
            // What is no number makes stale (4.2.1); of two numbers the smaller counts; what is too long is for ever (1.2.2).
            let digits = value.trim().trim_matches('"');
            let is_number = !digits.is_empty() && digits.bytes().all(|octet| octet.is_ascii_digit());
            let seconds = if is_number { digits.parse().unwrap_or(u64::MAX) } else { 0 };
            let least = |old: Option<u64>| Some(old.map_or(seconds, |old: u64| old.min(seconds)));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => directives.no_store = true,
                "no-cache" => directives.no_cache = true,
                "private" => directives.private = true,
                "public" => directives.public = true,
                "must-revalidate" => directives.must_revalidate = true,
                "proxy-revalidate" => directives.proxy_revalidate = true,
                "must-understand" => directives.must_understand = true,
                "only-if-cached" => directives.only_if_cached = true,
                "max-age" => directives.max_age = least(directives.max_age),
                "s-maxage" => directives.s_maxage = least(directives.s_maxage),
                "min-fresh" => directives.min_fresh = Some(seconds),
                "max-stale" => directives.max_stale = Some(if value.is_empty() { u64::MAX } else { seconds }),
                _ => {}
            }
        }
        // RFC 9111, 5.4.
        directives.no_cache |=
            fields.get("Cache-Control").is_none() && fields.has_member("Pragma", "no-cache");
        directives
    }
}

/// Reads a date as seconds since 1970; earlier ones are 0.
fn date(fields: &Fields, name: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(fields.get(name)?).ok()?;
    Some(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// Writes a time as a date.
pub(super) fn write_date(time: Duration) -> String {
    // A formatter that knows no year above 9999 must not be asked for one.
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + time.min(Duration::from_secs(253_402_300_799)))
}

/// Says whether the answer to a request may be kept (RFC 9111, 3).
pub(super) fn may_store(request: &Request, response: &Response) -> bool {
    let (asked, told) = (Directives::of(&request.fields), Directives::of(&response.fields));
    let heuristic = HEURISTIC.contains(&response.status);
    let forbidden = told.no_store && !(told.must_understand && heuristic);
    // 3.5: whose it is may matter, unless the origin says that it does not.
    let personal = request.fields.get("Authorization").is_some()
        && !(told.must_revalidate || told.public || told.s_maxage.is_some());
    let has_validator =
        response.fields.get("ETag").is_some() || response.fields.get("Last-Modified").is_some();
    let is_useful = lifetime(response) > 0 || (has_validator && (heuristic || told.public));
    request.method == "GET"
        && response.status >= 200
        && !matches!(response.status, 206 | 304)
        && (heuristic || !told.must_understand)
        && !asked.no_store
        && !forbidden
        && !told.private
        && !personal
        && !response.fields.has_member("Vary", "*")
        && is_useful
}

/// Returns how many seconds a response is fresh (RFC 9111, 4.2.1 and 4.2.2).
pub(super) fn lifetime(response: &Response) -> u64 {
    let fields = &response.fields;
    let told = Directives::of(fields);
    let origin_date = date(fields, "Date");
    if let Some(seconds) = told.s_maxage.or(told.max_age) {
        return seconds;
    }
    if fields.get("Expires").is_some() {
        // A date that is none, such as `0`, is past (5.3).
        let (Some(expires), Some(origin_date)) = (date(fields, "Expires"), origin_date) else { return 0 };
        return expires.saturating_sub(origin_date);
    }
    match (date(fields, "Last-Modified"), origin_date) {
        (Some(modified), Some(origin_date)) if HEURISTIC.contains(&response.status) || told.public => {
            (origin_date.saturating_sub(modified) / 10).min(HEURISTIC_LIMIT)
        }
        (Some(_) | None, Some(_) | None) => 0,
    }
}

/// When a response was asked for and when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) requested: Duration,
    pub(super) received: Duration,
}

/// Returns a stored response's age in seconds (RFC 9111, 4.2.3).
pub(super) fn age(response: &Fields, times: Times, now: Duration) -> u64 {
    let received = times.received.as_secs();
    let apparent = received.saturating_sub(date(response, "Date").unwrap_or(received));
    let delay = times.received.saturating_sub(times.requested).as_secs();
    let told = response.get("Age").and_then(|age| age.trim().parse().ok()).unwrap_or(0_u64);
    let resident = now.saturating_sub(times.received).as_secs();
    apparent.max(told.saturating_add(delay)).saturating_add(resident)
}

/// What is to be done with a stored response that fits a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Give it.
    Serve,
    /// Ask the origin whether it is still right.
    Validate,
}

/// Decides about a stored response of an age, seconds (RFC 9111, 4 and 5.2.1).
pub(super) fn reuse(request: &Fields, response: &Response, age: u64) -> Reuse {
    let (asked, told) = (Directives::of(request), Directives::of(&response.fields));
    let lifetime = lifetime(response);
    let is_fresh = lifetime > age;
    let too_old = asked.max_age.is_some_and(|limit| age > limit);
    let too_short = asked.min_fresh.is_some_and(|wanted| lifetime.saturating_sub(age) < wanted);
    let stale_enough = asked.max_stale.is_some_and(|limit| age.saturating_sub(lifetime) <= limit);
    if asked.no_cache || told.no_cache || too_old || too_short {
        Reuse::Validate
    } else if is_fresh || (stale_enough && may_be_stale(&told)) {
        Reuse::Serve
    } else {
        Reuse::Validate
    }
}

/// Says whether a stale response may be given when the origin fails (RFC 9111, 4.2.4 and 4.3.3).
pub(super) fn serves_on_error(request: &Fields, response: &Response) -> bool {
    let asked = Directives::of(request);
    !asked.no_cache && asked.max_age.is_none() && may_be_stale(&Directives::of(&response.fields))
}

/// RFC 9111, 4.2.4 with 5.2.2.10: for a shared cache `s-maxage` means `proxy-revalidate`, too.
fn may_be_stale(told: &Directives) -> bool {
    !(told.must_revalidate || told.proxy_revalidate || told.no_cache || told.s_maxage.is_some())
}

/// Says whether the client wants no answer but a stored one (RFC 9111, 5.2.1.7).
pub(super) fn only_if_cached(request: &Fields) -> bool {
    Directives::of(request).only_if_cached
}

/// Says whether a client asked for the origin's own word, as a reload does.
pub(super) fn is_reload(request: &Fields) -> bool {
    let asked = Directives::of(request);
    asked.no_cache || asked.max_age == Some(0)
}

/// Says whether the cache has anything to do with a request: others go to the origin as they are. `If-Match` and its kin are for the
/// origin alone (RFC 9111, 4.3.2).
pub(super) fn is_cacheable(request: &Request) -> bool {
    let for_origin = ["If-Match", "If-Unmodified-Since", "If-Range"];
    matches!(request.method.as_str(), "GET" | "HEAD")
        && !for_origin.iter().any(|name| request.fields.get(name).is_some())
}

/// Returns what must be the same in another request for it to get this response (RFC 9111, 4.1).
pub(super) fn selecting(request: &Fields, response: &Fields) -> Vec<(String, Option<String>)> {
    response.members("Vary").map(|name| (name.to_owned(), normalized(request, name))).collect()
}

/// Says whether a request has what a stored response was chosen by.
pub(super) fn selects(request: &Fields, selecting: &[(String, Option<String>)]) -> bool {
    selecting.iter().all(|(name, value)| normalized(request, name) == *value)
}

fn normalized(fields: &Fields, name: &str) -> Option<String> {
    let members: Vec<&str> = fields.members(name).collect();
    fields.get(name).map(|_| members.join(", "))
}

/// Makes a request one that asks whether a stored response is still right (RFC 9111, 4.3.1).
pub(super) fn make_conditional(request: &mut Fields, response: &Fields) {
    for (validator, condition) in [("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")] {
        request.remove(condition);
        if let Some(value) = response.get(validator) {
            request.push(condition, value);
        }
    }
}

/// Says whether a 304 is about the stored response (RFC 9111, 4.3.4): one with another strong validator is not.
pub(super) fn confirms(told: &Fields, stored: &Fields) -> bool {
    match (told.get("ETag"), stored.get("ETag")) {
        (Some(told), Some(stored)) => weak(told) == weak(stored),
        (Some(told), None) => told.starts_with("W/"),
        (None, Some(_) | None) => true,
    }
}

/// Puts what a 304 says into a stored response's fields (RFC 9111, 3.2 and 4.3.4).
pub(super) fn freshen(stored: &mut Fields, told: &Fields) {
    stored.remove("Age");
    stored.replace_with(told, &OF_CONTENT);
}

/// Says whether a client has a stored response already (RFC 9110, 13.1.2 and 13.1.3; RFC 9111, 4.3.2).
pub(super) fn is_known(request: &Fields, response: &Response) -> bool {
    if response.status != 200 {
        return false;
    }
    if request.get("If-None-Match").is_some() {
        let tag = response.fields.get("ETag");
        return request
            .members("If-None-Match")
            .any(|known| known == "*" || tag.is_some_and(|tag| weak(tag) == weak(known)));
    }
    let Some(since) = date(request, "If-Modified-Since") else { return false };
    let modified = date(&response.fields, "Last-Modified").or_else(|| date(&response.fields, "Date"));
    modified.is_some_and(|modified| modified <= since)
}

/// An entity tag for the weak comparison (RFC 9110, 8.8.3.2).
fn weak(tag: &str) -> &str {
    tag.trim().trim_start_matches("W/")
}

/// Says whether an answer makes what is stored for its target wrong (RFC 9111, 4.4).
pub(super) fn invalidates(method: &str, status: u16) -> bool {
    !matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "CONNECT") && (200..400).contains(&status)
}

#[cfg(test)]
mod tests;
