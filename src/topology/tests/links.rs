//! Links: settings for both ways or one, and what they cannot be.

use super::*;

#[test]
fn links_and_defaults_are_read() {
    let text = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  time: virtual\n  workers: 2\n  poll: 50us\n  nodes:\n    \
                - {name: a, address: 192.168.1.2/24}\n    - {name: b, address: 192.168.1.3/24}\n  links:\n    \
                - {between: [a, b], delay: 1ms, loss: 0.1%, mtu: 1400}\n";
    let (topology, _) = parse(&file(text)).unwrap();
    let impairment =
        Impairment { delay: Duration::from_millis(1), loss: 1_000, mtu: Some(1400), ..Impairment::default() };
    let link = |from: &str, to: &str| Link { from: from.into(), to: to.into(), impairment };
    assert_eq!(topology.links, [link("a", "b"), link("b", "a")]);
    assert_eq!((topology.time, topology.workers), (Some(TimeMode::Virtual), Some(2)));
    assert_eq!(topology.poll, Duration::from_micros(50));
    assert_eq!(topology.service_network.to_string(), "10.96.0.0/12");
}

/// A topology of two networks and a pod, with one entry of `links:` per line from line 7.
fn with_links(entries: &[&str]) -> String {
    let machines = "apiVersion: flatnet.dev/v1\nkind: Topology\nspec:\n  nodes: [{name: a, address: 192.168.1.2/24}, {name: b, \
                    address: 192.168.1.3/24}]\n  hosts: [{name: far, address: 203.0.113.1/24}]\n  links:\n";
    let entries: String = entries.iter().map(|entry| format!("    - {{{entry}}}\n")).collect();
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: a, containers: [{name: c, image: nginx}]}\n";
    format!("{machines}{entries}{pod}")
}

#[test]
fn links_have_settings_for_both_ways_or_one_and_reach_pods() {
    let text = with_links(&[
        "from: a, to: b, delay: 10ms, jitter: 1ms, duplicate: 1%, reorder: 2%, corrupt: 0.5%, rate: 10Mbit, queue: 64kB",
        "from: b, to: a, down: true",
        "between: [p, a], rate: 1Gbit, queue: 50",
    ]);
    let (topology, _) = parse(&file(&text)).unwrap();
    let written: Vec<_> = topology
        .links
        .iter()
        .map(|link| format!("{} {} {}", link.from, link.to, crate::impairment::text(&link.impairment)))
        .collect();
    assert_eq!(
        written,
        [
            "a b delay=10ms jitter=1ms duplicate=1% reorder=2% corrupt=0.5% rate=10Mbit queue=64000B",
            "b a down",
            "p a rate=1Gbit queue=50",
            "a p rate=1Gbit queue=50",
        ]
    );
}

#[test]
fn all_errors_of_links_come_at_once() {
    let text = with_links(&[
        "from: a, delay: 1ms",
        "between: [a, b], delay: 5 ms, loss: -1%, corrupt: 101%, rate: 10MB, queue: 0, mtu: 95, down: maybe",
        "from: b, to: a, jitter: 2ms, delay: 1ms",
        "between: [p, b]",
        "between: [a, far], speed: 1",
        "from: p, to: far",
        "from: a, to: a, reorder: 1%",
        "from: a, to: p, queue: 10",
    ]);
    assert_eq!(
        findings(&text),
        [
            "7:7 a link names its machines by between, or by from and to for one direction",
            "8:32 delay: \"5 ms\" is not a duration; write for example 250us, 1.5ms or 2s",
            "8:44 loss: must be a share such as 0.1% (0% to 100%)",
            "8:58 corrupt: must be a share such as 0.1% (0% to 100%)",
            "8:70 rate: \"10MB\" is not a rate; write for example 64kbit, 10Mbit or 1.5Gbit (up to 1Tbit)",
            "8:83 queue: \"0\" is no queue; write frames such as 100 (up to 16384) or bytes such as 64kB or 1MiB",
            "8:91 mtu: must be between 96 and 65535 bytes, not 95",
            "8:101 down: must be true or false, not \"maybe\"",
            "9:7 link between b and a is described twice",
            "9:32 jitter: is longer than the delay: no frame arrives before it was sent",
            "10:7 there is no link between p and b",
            "11:7 there is no link between a and far",
            "11:27 unknown field \"speed\" in a link",
            "12:7 there is no link between p and far",
            "13:21 link between a and itself",
            "13:33 reorder: needs a delay: a frame overtakes those that are on their way",
            "14:31 queue: needs a rate: without one no frame waits",
        ]
    );
}

#[test]
fn numbers_that_a_link_cannot_have_are_refused_and_not_rounded() {
    let text = with_links(&[
        "between: [a, b], loss: 0.00001%, corrupt: NaN%, duplicate: -5, reorder: 5, delay: infs, jitter: 0.5ns",
        "between: [a, p], rate: 1e9, queue: -1, mtu: 70000, delay: 18446744073.709551616s",
    ]);
    let duration = |text| format!("{text:?} is not a duration; write for example 250us, 1.5ms or 2s");
    let share = "must be a share such as 0.1% (0% to 100%)";
    assert_eq!(
        findings(&text),
        [
            "7:31 loss: must be a multiple of 0.0001%, not 0.00001%".to_owned(),
            format!("7:50 corrupt: {share}"),
            format!("7:67 duplicate: {share}"),
            format!("7:80 reorder: {share}"),
            format!("7:90 delay: {}", duration("infs")),
            "7:104 jitter: must be a multiple of 1ns, not 0.5ns".to_owned(),
            "8:31 rate: \"1000000000\" is not a rate; write for example 64kbit, 10Mbit or 1.5Gbit (up to 1Tbit)".to_owned(),
            "8:43 queue: \"-1\" is no queue; write frames such as 100 (up to 16384) or bytes such as 64kB or 1MiB".to_owned(),
            "8:52 mtu: must be between 96 and 65535 bytes, not 70000".to_owned(),
            format!("8:66 delay: {}", duration("18446744073.709551616s")),
        ]
    );
}
