//! RFC 9111's rules as tables: fields in, decision out.

use super::super::message::{Parsed, parse_request, parse_response};
use super::*;

/// Day 1000, in the calendar that all tables share.
const DATE: &str = "Date: Wed, 27 Sep 1972 00:00:00 GMT";
/// Ten days earlier.
const MODIFIED: &str = "Last-Modified: Sun, 17 Sep 1972 00:00:00 GMT";

fn request(method: &str, fields: &str) -> Request {
    let text = format!("{method} http://a/ HTTP/1.1\r\n{}\r\n", lines(fields));
    let Parsed::Whole(request, _) = parse_request(text.as_bytes()) else { panic!("{text}") };
    request
}

fn response(status: u16, fields: &str) -> Response {
    let text = format!("HTTP/1.1 {status} X\r\n{}\r\n", lines(fields));
    let Parsed::Whole(response, _) = parse_response(text.as_bytes()) else { panic!("{text}") };
    response
}

/// Fields stand in one line, with `|` between them.
fn lines(fields: &str) -> String {
    fields
        .split('|')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| format!("{line}\r\n"))
        .collect()
}

/// RFC 9111, 3, 3.5, 4.1 and 5.2.
#[test]
fn what_may_be_stored() {
    let fresh = "Cache-Control: max-age=60";
    for (method, asked, status, told, stored) in [
        ("GET", "", 200, fresh, true),
        ("HEAD", "", 200, fresh, false),
        ("POST", "", 200, fresh, false),
        // 3, 3.3: parts and confirmations are no representation of their own.
        ("GET", "", 206, fresh, false),
        ("GET", "", 304, fresh, false),
        // 3: explicit freshness for any final status, a guess for the listed ones.
        ("GET", "", 404, fresh, true),
        ("GET", "", 500, fresh, true),
        ("GET", "", 200, &format!("{DATE}|{MODIFIED}"), true),
        ("GET", "", 500, &format!("{DATE}|{MODIFIED}"), false),
        ("GET", "", 200, "ETag: \"a\"", true),
        ("GET", "", 200, "", false),
        // 5.2.1.5, 5.2.2.5, 5.2.2.7, 5.2.2.3.
        ("GET", "Cache-Control: no-store", 200, fresh, false),
        ("GET", "", 200, "Cache-Control: max-age=60, no-store", false),
        ("GET", "", 200, "Cache-Control: max-age=60, private", false),
        ("GET", "", 200, "Cache-Control: max-age=60, private=\"set-cookie\"", false),
        ("GET", "", 200, "Cache-Control: max-age=60, no-store, must-understand", true),
        ("GET", "", 599, "Cache-Control: max-age=60, must-understand", false),
        // 3.5.
        ("GET", "Authorization: x", 200, fresh, false),
        ("GET", "Authorization: x", 200, "Cache-Control: max-age=60, public", true),
        ("GET", "Authorization: x", 200, "Cache-Control: s-maxage=60", true),
        ("GET", "Authorization: x", 200, "Cache-Control: max-age=60, must-revalidate", true),
        // 4.1.
        ("GET", "", 200, "Cache-Control: max-age=60|Vary: *", false),
        ("GET", "", 200, "Cache-Control: max-age=60|Vary: Accept", true),
    ] {
        let may = may_store(&request(method, asked), &response(status, told));
        assert_eq!(may, stored, "{method} [{asked}] {status} [{told}]");
    }
}

/// RFC 9111, 4.2.1, 4.2.2 and 5.3.
#[test]
fn how_long_a_response_is_fresh() {
    for (status, fields, seconds) in [
        (200, "Cache-Control: max-age=60", 60),
        (200, "Cache-Control: max-age=60, s-maxage=5", 5),
        (200, "Cache-Control: max-age=\"60\"", 60),
        (200, "Cache-Control: max-age=60|Cache-Control: max-age=30", 30),
        (200, "Cache-Control: max-age=99999999999999999999999", u64::MAX),
        (200, "Cache-Control: max-age=soon", 0),
        (200, &format!("{DATE}|Expires: Wed, 27 Sep 1972 00:02:00 GMT"), 120),
        (200, &format!("{DATE}|Expires: Tue, 26 Sep 1972 00:00:00 GMT"), 0),
        (200, &format!("{DATE}|Expires: 0|{MODIFIED}"), 0),
        (200, &format!("{DATE}|Expires: Wed, 27 Sep 1972 00:02:00 GMT|Cache-Control: max-age=1"), 1),
        // A tenth of ten days; three days at most; only for the listed status codes, or with `public`.
        (200, &format!("{DATE}|{MODIFIED}"), 86_400),
        (200, &format!("{DATE}|Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT"), 3 * 86_400),
        (302, &format!("{DATE}|{MODIFIED}"), 0),
        (302, &format!("{DATE}|{MODIFIED}|Cache-Control: public"), 86_400),
        (200, DATE, 0),
    ] {
        assert_eq!(lifetime(&response(status, fields)), seconds, "{status} [{fields}]");
    }
}

/// RFC 9111, 4.2.3: the greater of what the dates and what the caches on the way say, and the time since then.
#[test]
fn how_old_a_response_is() {
    let day_1000 = 1000 * 86_400;
    for (fields, requested, received, now, seconds) in [
        ("", 10, 10, 17, 7),
        ("Age: 5", 10, 12, 17, 5 + 2 + 5),
        ("Age: x", 10, 12, 17, 2 + 5),
        (DATE, day_1000 + 3, day_1000 + 4, day_1000 + 10, 4 + 6),
        // An origin whose clock is ahead.
        (DATE, 10, 10, 12, 2),
        (&format!("{DATE}|Age: 9"), day_1000 + 3, day_1000 + 4, day_1000 + 10, 9 + 1 + 6),
    ] {
        let times =
            Times { requested: Duration::from_secs(requested), received: Duration::from_secs(received) };
        assert_eq!(
            age(&response(200, fields).fields, times, Duration::from_secs(now)),
            seconds,
            "[{fields}]"
        );
    }
}

/// RFC 9111, 4, 4.2.4, 5.2.1 and 5.2.2.
#[test]
fn when_a_stored_response_is_given() {
    use Reuse::{Serve, Validate};
    for (asked, told, age, expected) in [
        ("", "Cache-Control: max-age=60", 59, Serve),
        ("", "Cache-Control: max-age=60", 60, Validate),
        ("", "Cache-Control: max-age=60, no-cache", 0, Validate),
        ("Cache-Control: no-cache", "Cache-Control: max-age=60", 0, Validate),
        ("Pragma: no-cache", "Cache-Control: max-age=60", 0, Validate),
        // 5.4: Cache-Control overrides Pragma.
        ("Pragma: no-cache|Cache-Control: max-age=90", "Cache-Control: max-age=60", 0, Serve),
        ("Cache-Control: max-age=10", "Cache-Control: max-age=60", 11, Validate),
        ("Cache-Control: max-age=10", "Cache-Control: max-age=60", 10, Serve),
        ("Cache-Control: min-fresh=10", "Cache-Control: max-age=60", 51, Validate),
        ("Cache-Control: min-fresh=10", "Cache-Control: max-age=60", 50, Serve),
        ("Cache-Control: max-stale", "Cache-Control: max-age=60", 6000, Serve),
        ("Cache-Control: max-stale=5", "Cache-Control: max-age=60", 65, Serve),
        ("Cache-Control: max-stale=5", "Cache-Control: max-age=60", 66, Validate),
        ("Cache-Control: max-stale", "Cache-Control: max-age=60, must-revalidate", 61, Validate),
        ("Cache-Control: max-stale", "Cache-Control: max-age=60, proxy-revalidate", 61, Validate),
        ("Cache-Control: max-stale", "Cache-Control: s-maxage=60", 61, Validate),
    ] {
        let told = response(200, told);
        assert_eq!(reuse(&request("GET", asked).fields, &told, age), expected, "[{asked}] {told:?} {age}");
    }
    for (asked, told, serves) in [
        ("", "", true),
        ("Cache-Control: no-cache", "", false),
        ("", "Cache-Control: must-revalidate", false),
        ("", "Cache-Control: s-maxage=1", false),
    ] {
        let told = response(200, told);
        assert_eq!(serves_on_error(&request("GET", asked).fields, &told), serves, "[{asked}] {told:?}");
    }
}

/// RFC 9111, 4.1: values are compared without the freedom that lists have in writing.
#[test]
fn vary_selects_by_the_named_fields() {
    let told = response(200, "Vary: Accept, accept-language").fields;
    let first = request("GET", "Accept: a,b|Other: 1").fields;
    let selecting = selecting(&first, &told);
    for (fields, selected) in [
        ("Accept: a, b", true),
        ("Accept: a|Accept: b|Other: 2", true),
        ("Accept: b, a", false),
        ("Accept: a, b|Accept-Language: de", false),
        ("", false),
    ] {
        assert_eq!(selects(&request("GET", fields).fields, &selecting), selected, "[{fields}]");
    }
}

/// RFC 9111, 4.3.1, 4.3.4 and 3.2.
#[test]
fn validation_asks_by_what_is_stored_and_a_304_refreshes_it() {
    let mut stored = response(200, &format!("ETag: \"a\"|{MODIFIED}|Age: 7|Content-Length: 3|X: 1")).fields;
    let mut asked = request("GET", "If-None-Match: \"b\"|If-Modified-Since: x|Accept: y").fields;
    make_conditional(&mut asked, &stored);
    assert_eq!(asked.get("If-None-Match"), Some("\"a\""));
    assert_eq!(asked.get("If-Modified-Since"), MODIFIED.strip_prefix("Last-Modified: "));

    for (told, about) in [
        ("ETag: \"a\"", true),
        ("ETag: W/\"a\"", true),
        ("", true),
        ("ETag: \"b\"", false),
        ("ETag: W/\"b\"", false),
    ] {
        assert_eq!(confirms(&response(304, told).fields, &stored), about, "[{told}]");
    }
    freshen(&mut stored, &response(304, "X: 2|X: 3|Content-Length: 0|Cache-Control: max-age=9").fields);
    let now = [stored.combined("X"), stored.combined("Content-Length"), stored.combined("Age")];
    assert_eq!(now, [Some("2, 3".into()), Some("3".into()), None]);
    assert_eq!(lifetime(&Response { status: 200, reason: String::new(), is_1_1: true, fields: stored }), 9);
}

/// RFC 9110, 13.1.2 and 13.1.3; RFC 9111, 4.3.2.
#[test]
fn a_client_that_has_it_already_is_told_so() {
    let later = "Mon, 18 Sep 1972 00:00:00 GMT";
    let earlier = "Sat, 16 Sep 1972 00:00:00 GMT";
    for (asked, known) in [
        ("", false),
        ("If-None-Match: \"x\", W/\"a\"", true),
        ("If-None-Match: *", true),
        ("If-None-Match: \"x\"", false),
        // The tag counts, not the date.
        (&format!("If-None-Match: \"x\"|If-Modified-Since: {later}"), false),
        (&format!("If-Modified-Since: {later}"), true),
        (&format!("If-Modified-Since: {earlier}"), false),
        ("If-Modified-Since: yesterday", false),
    ] {
        let stored = response(200, &format!("ETag: \"a\"|{MODIFIED}"));
        assert_eq!(is_known(&request("GET", asked).fields, &stored), known, "[{asked}]");
    }
}

/// RFC 9111, 4.4 and 4.3.2.
#[test]
fn unsafe_methods_invalidate_unless_they_fail() {
    for (method, status, wrong) in [
        ("POST", 201, true),
        ("PUT", 204, true),
        ("DELETE", 302, true),
        ("POST", 403, false),
        ("PURGE-ALL", 200, true),
        ("GET", 200, false),
        ("OPTIONS", 200, false),
    ] {
        assert_eq!(invalidates(method, status), wrong, "{method} {status}");
    }
    for (method, fields, cacheable) in
        [("GET", "", true), ("HEAD", "", true), ("POST", "", false), ("GET", "If-Match: \"a\"", false)]
    {
        assert_eq!(is_cacheable(&request(method, fields)), cacheable, "{method} [{fields}]");
    }
}
