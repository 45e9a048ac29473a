//! A link's settings as people write them: `delay=50ms loss=1% down`.
//!
//! The topology's `links:` and `flatnet link` read them by [`set`] and check them whole by [`contradiction`] and [`conflict`];
//! [`text`] writes them. Invariants: what [`text`] writes reads as what it was; what is read is exact, or refused.
//!
//! May depend on the engine. Read first: `docs/topology.md`, "Links".

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::time::Duration;

use flatnet_engine::link::impairment::{Impairment, QueueLimit, RATE_LIMIT};
use flatnet_engine::link::wire::CABLE_LIMIT;

/// The settings by name; [`text`] writes them in this order.
pub const NAMES: [&str; 10] =
    ["delay", "jitter", "loss", "duplicate", "reorder", "corrupt", "rate", "queue", "mtu", "down"];
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(60);
/// The smallest MTU of a link: the pods' MTU under udp encapsulation is then the least of RFC 791.
const LEAST_MTU: u16 = 96;
/// How a setting is taken back.
const NONE: &str = "none";

/// Sets one setting by its name; `none` takes it back.
///
/// # Errors
/// What the value must be; for a name that is none, what there is.
pub fn set(impairment: &mut Impairment, name: &str, value: &str) -> Result<(), String> {
    let is_none = value == NONE;
    let duration = |value| if is_none { Ok(Duration::ZERO) } else { duration(value) };
    let share = |value| if is_none { Ok(0) } else { share(value) };
    match name {
        "delay" => impairment.delay = duration(value)?,
        "jitter" => impairment.jitter = duration(value)?,
        "loss" => impairment.loss = share(value)?,
        "duplicate" => impairment.duplicate = share(value)?,
        "reorder" => impairment.reorder = share(value)?,
        "corrupt" => impairment.corrupt = share(value)?,
        "rate" => impairment.rate = if is_none { None } else { Some(rate(value)?) },
        "queue" => impairment.queue = if is_none { None } else { Some(queue(value)?) },
        "mtu" => impairment.mtu = if is_none { None } else { Some(mtu(value)?) },
        "down" => impairment.down = truth(value)?,
        _ => return Err(format!("{name:?} is no setting; there are {}", NAMES.join(", "))),
    }
    Ok(())
}

/// Says which words of a command, each a setting, `up`, `down` or `reset`, undo each other.
pub fn conflict(words: &[String]) -> Option<String> {
    let subject = |word: &String| match word.split_once('=').map_or(word.as_str(), |(name, _)| name) {
        "up" => "down".to_owned(),
        name => name.to_owned(),
    };
    if words.iter().skip(1).any(|word| word == "reset") {
        return Some("\"reset\" takes back the words before it; it must be the first".to_owned());
    }
    let mut pairs =
        words.iter().enumerate().flat_map(|(at, one)| words[at + 1..].iter().map(move |it| (one, it)));
    let (one, other) = pairs.find(|(one, other)| subject(one) == subject(other))?;
    Some(format!("{one:?} and {other:?} both say something of {}", subject(one)))
}

/// Says which setting contradicts the others, and why.
pub fn contradiction(impairment: &Impairment) -> Option<(&'static str, &'static str)> {
    let Impairment { delay, jitter, reorder, rate, queue, .. } = impairment;
    if jitter > delay {
        return Some(("jitter", "is longer than the delay: no frame arrives before it was sent"));
    }
    if *reorder > 0 && delay.is_zero() {
        return Some(("reorder", "needs a delay: a frame overtakes those that are on their way"));
    }
    if queue.is_some() && rate.is_none() {
        return Some(("queue", "needs a rate: without one no frame waits"));
    }
    None
}

/// Writes what differs from a perfect link, as it can be typed; `perfect` when nothing does.
pub fn text(impairment: &Impairment) -> String {
    let Impairment { delay, jitter, loss, duplicate, reorder, corrupt, rate, queue, mtu, down } = impairment;
    let mut words = Vec::new();
    for (name, duration) in [("delay", delay), ("jitter", jitter)] {
        if !duration.is_zero() {
            words.push(format!("{name}={duration:?}"));
        }
    }
    for (name, share) in
        [("loss", loss), ("duplicate", duplicate), ("reorder", reorder), ("corrupt", corrupt)]
    {
        if *share > 0 {
            words.push(format!("{name}={}", percent(*share)));
        }
    }
    if let Some(rate) = rate {
        words.push(format!("rate={}", bits(rate.get())));
    }
    match queue {
        Some(QueueLimit::Frames(frames)) => words.push(format!("queue={frames}")),
        Some(QueueLimit::Bytes(bytes)) => words.push(format!("queue={bytes}B")),
        None => {}
    }
    if let Some(mtu) = mtu {
        words.push(format!("mtu={mtu}"));
    }
    if *down {
        words.push("down".to_owned());
    }
    if words.is_empty() { "perfect".to_owned() } else { words.join(" ") }
}

fn percent(share: u32) -> String {
    let mut text = (share / 10_000).to_string();
    if !share.is_multiple_of(10_000) {
        let _ = write!(text, ".{:04}", share % 10_000);
        text.truncate(text.trim_end_matches('0').len());
    }
    text + "%"
}

fn bits(rate: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "Tbit"), (1_000_000_000, "Gbit"), (1_000_000, "Mbit"), (1_000, "kbit")];
    let unit = UNITS.iter().find(|(unit, _)| rate.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{rate}bit"), |(unit, name)| format!("{}{name}", rate / unit))
}

/// Reads a duration such as `250us`, `1.5ms`, `2s` or 0.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let refuse = || format!("{text:?} is not a duration; write for example 250us, 1.5ms or 2s");
    let (amount, unit) = split(text).ok_or_else(refuse)?;
    let nanoseconds = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return Err(refuse()),
    };
    let duration = Duration::from_nanos(decimal(amount, nanoseconds).ok_or_else(refuse)?.whole(text, "1ns")?);
    if duration > LONGEST {
        Err(format!("{text} is longer than {} s", LONGEST.as_secs()))
    } else {
        Ok(duration)
    }
}

/// Reads a share such as `0.1%` as parts per million.
fn share(text: &str) -> Result<u32, String> {
    let refuse = || "must be a share such as 0.1% (0% to 100%)".to_owned();
    if text == "0" {
        return Ok(0);
    }
    let parts = text.strip_suffix('%').and_then(|amount| decimal(amount, 10_000)).ok_or_else(refuse)?;
    let parts = parts.whole(text, "0.0001%")?;
    u32::try_from(parts).ok().filter(|&parts| parts <= 1_000_000).ok_or_else(refuse)
}

/// Reads a rate such as `10Mbit`, in bits a second.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    let refuse =
        || format!("{text:?} is not a rate; write for example 64kbit, 10Mbit or 1.5Gbit (up to 1Tbit)");
    let (amount, unit) = split(text).ok_or_else(refuse)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        "tbit" => 1_000_000_000_000,
        _ => return Err(refuse()),
    };
    let rate = decimal(amount, factor).ok_or_else(refuse)?.whole(text, "1bit")?;
    NonZeroU64::new(rate).filter(|rate| rate.get() <= RATE_LIMIT).ok_or_else(refuse)
}

/// Reads a queue's limit: `100` frames, or bytes such as `64kB` or `1MiB`.
fn queue(text: &str) -> Result<QueueLimit, String> {
    let refuse = || {
        format!(
            "{text:?} is no queue; write frames such as 100 (up to {CABLE_LIMIT}) or bytes such as 64kB or 1MiB"
        )
    };
    let Some((amount, unit)) = split(text) else {
        let frames = text.parse().ok().filter(|frames| (1..=CABLE_LIMIT as u32).contains(frames));
        return frames.map(QueueLimit::Frames).ok_or_else(refuse);
    };
    let factor = match unit {
        "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err(refuse()),
    };
    let bytes = decimal(amount, factor).ok_or_else(refuse)?.whole(text, "1B")?;
    Some(bytes).filter(|bytes| (1..=1 << 30).contains(bytes)).map(QueueLimit::Bytes).ok_or_else(refuse)
}

fn mtu(text: &str) -> Result<u16, String> {
    let mtu = text.parse().ok().filter(|&mtu| mtu >= LEAST_MTU);
    mtu.ok_or_else(|| format!("must be between {LEAST_MTU} and 65535 bytes, not {text}"))
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("must be true or false, not {text:?}"))
}

/// Splits a number from its unit.
fn split(text: &str) -> Option<(&str, &str)> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    Some(text.split_at(at))
}

/// A number of units, and whether something is left over.
struct Decimal {
    units: u64,
    is_whole: bool,
}

impl Decimal {
    /// Returns the units; what is left over would be lost without a word.
    fn whole(&self, text: &str, step: &str) -> Result<u64, String> {
        if self.is_whole { Ok(self.units) } else { Err(format!("must be a multiple of {step}, not {text}")) }
    }
}

/// Multiplies a decimal number by a power of ten or two.
fn decimal(text: &str, unit: u64) -> Option<Decimal> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || (text.contains('.') && fraction.is_empty())
    {
        return None;
    }
    // More digits than these make no whole number of units, unless they are zeros.
    let (fraction, beyond) = fraction.split_at(fraction.len().min(18));
    let scale = 10_u128.pow(fraction.len() as u32);
    let parts = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? } * u128::from(unit);
    let whole = u128::from(whole.parse::<u64>().ok()?).checked_mul(u128::from(unit))?;
    let units = u64::try_from(whole + parts / scale).ok()?;
    Some(Decimal {
        units,
        is_whole: parts.is_multiple_of(scale) && beyond.bytes().all(|digit| digit == b'0'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_exact() {
        for (text, expected) in [
            ("0", 0),
            ("1ms", 1_000_000),
            ("1.5ms", 1_500_000),
            ("250us", 250_000),
            ("0.000000001s", 1),
            ("3ns", 3),
        ] {
            assert_eq!(duration(text).unwrap().as_nanos(), expected, "{text}");
        }
        let wrong =
            ["1", "ms", "1.ms", ".5ms", "-1ms", "1 ms", "1m", "61s", "1.2.3s", "99999999999999999999s", ""];
        for text in wrong.into_iter().chain(["NaN", "NaNs", "infs", "+1ms", "1e3ms", "1MS", "1h"]) {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_parts_per_million() {
        for (text, expected) in
            [("0", 0), ("0.1%", 1_000), ("100%", 1_000_000), ("0.0001%", 1), ("12.5%", 125_000)]
        {
            assert_eq!(share(text).unwrap(), expected, "{text}");
        }
        for text in ["1", "101%", "0.1", "-1%", "x%", "%", "-0%", "NaN%", "inf%", "1e-3%", "1,5%", "1%%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_setting_can_hold_is_not_cut_off() {
        for (name, value, step) in [
            ("loss", "0.00001%", "0.0001%"),
            ("corrupt", "1.00005%", "0.0001%"),
            ("duplicate", "0.00000000000000000000000001%", "0.0001%"),
            ("delay", "0.9ns", "1ns"),
            ("jitter", "1.0000005ms", "1ns"),
            ("rate", "0.5bit", "1bit"),
            ("rate", "1.0001kbit", "1bit"),
            ("queue", "1.5B", "1B"),
            ("queue", "0.1KiB", "1B"),
        ] {
            let mut impairment = Impairment { loss: 7, ..Impairment::default() };
            let before = impairment;
            let refused = set(&mut impairment, name, value).unwrap_err();
            assert_eq!(refused, format!("must be a multiple of {step}, not {value}"), "{name}");
            assert_eq!(impairment, before);
        }
        assert_eq!(share("1.500000000000000000000000000%"), Ok(15_000), "zeros say nothing");
    }

    #[test]
    fn words_that_undo_each_other_are_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (text, expected) in [
            ("up down", "\"up\" and \"down\" both say something of down"),
            ("down loss=1% down=false", "\"down\" and \"down=false\" both say something of down"),
            ("down down", "\"down\" and \"down\" both say something of down"),
            ("loss=1% delay=1ms loss=none", "\"loss=1%\" and \"loss=none\" both say something of loss"),
            ("loss=1% reset", "\"reset\" takes back the words before it; it must be the first"),
            ("reset loss=1% reset", "\"reset\" takes back the words before it; it must be the first"),
        ] {
            assert_eq!(conflict(&words(text)).as_deref(), Some(expected), "{text}");
        }
        for text in ["reset loss=1% down", "up loss=1% corrupt=1%", "down", "reset up"] {
            assert_eq!(conflict(&words(text)), None, "{text}");
        }
    }

    #[test]
    fn rates_and_queues_have_units() {
        for (text, expected) in [
            ("1bit", 1),
            ("64kbit", 64_000),
            ("10mbit", 10_000_000),
            ("1.5Gbit", 1_500_000_000),
            ("1Tbit", RATE_LIMIT),
        ] {
            assert_eq!(rate(text).unwrap().get(), expected, "{text}");
        }
        for text in ["0bit", "10", "10MB", "2Tbit", "-1bit", "0.1bit", "10Mbps"] {
            assert!(rate(text).is_err(), "{text}");
        }
        for (text, expected) in [
            ("100", QueueLimit::Frames(100)),
            ("1500B", QueueLimit::Bytes(1_500)),
            ("64kB", QueueLimit::Bytes(64_000)),
            ("1.5KiB", QueueLimit::Bytes(1_536)),
        ] {
            assert_eq!(queue(text).unwrap(), expected, "{text}");
        }
        for text in ["0", "0B", "-1", "1.5", "99999", "1GB", "kB"] {
            assert!(queue(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let read = |words: &[(&str, &str)]| {
            let mut impairment = Impairment::default();
            words.iter().for_each(|(name, value)| set(&mut impairment, name, value).unwrap());
            contradiction(&impairment).map(|(name, _)| name)
        };
        assert_eq!(read(&[("jitter", "2ms"), ("delay", "1ms")]), Some("jitter"));
        assert_eq!(read(&[("reorder", "1%")]), Some("reorder"));
        assert_eq!(read(&[("queue", "10")]), Some("queue"));
        assert_eq!(read(&[("delay", "2ms"), ("jitter", "2ms"), ("reorder", "1%"), ("rate", "1Mbit")]), None);
    }

    prop_compose! {
        fn anything()(
            (delay, jitter) in (0..60_000_000_000_u64, 0..60_000_000_000_u64),
            shares in prop::array::uniform4(0..=1_000_000_u32),
            rate in prop::option::of(1..=RATE_LIMIT),
            queue in prop::option::of((any::<bool>(), 1..=CABLE_LIMIT as u32)),
            mtu in prop::option::of(LEAST_MTU..),
            down: bool,
        ) -> Impairment {
            let [loss, duplicate, reorder, corrupt] = shares;
            let queue = queue.map(|(by_bytes, limit)| {
                if by_bytes { QueueLimit::Bytes(limit.into()) } else { QueueLimit::Frames(limit) }
            });
            let (delay, jitter) = (Duration::from_nanos(delay), Duration::from_nanos(jitter));
            let rate = rate.and_then(NonZeroU64::new);
            Impairment { delay, jitter, loss, duplicate, reorder, corrupt, rate, queue, mtu, down }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_what_it_was(impairment in anything()) {
            let mut read = Impairment::default();
            for word in text(&impairment).split(' ').filter(|&word| word != "perfect") {
                let (name, value) = word.split_once('=').unwrap_or((word, "true"));
                set(&mut read, name, value).unwrap();
            }
            prop_assert_eq!(read, impairment);
        }

        #[test]
        fn no_text_makes_it_panic(name in prop::sample::select(&NAMES[..]), value in "\\PC{0,24}|[0-9.]{0,24}[a-zA-Z%]{0,4}") {
            let _ = set(&mut Impairment::default(), name, &value);
        }
    }
}
