//! How long a stream takes over a cable that loses, delays, repeats and reorders.

use super::*;

/// Octets of a stream.
const OCTETS: u32 = 1_500_000;

/// A cable: delay and jitter in microseconds; frames in a million that are lost, come twice, overtake, are damaged.
fn cable([delay, jitter]: [u64; 2], [loss, duplicate, reorder, corrupt]: [u32; 4]) -> Impairment {
    let [delay, jitter] = [delay, jitter].map(Duration::from_micros);
    Impairment { delay, jitter, loss, duplicate, reorder, corrupt, ..Impairment::default() }
}

/// Sends a stream to an echo server and back; returns the seconds until all of it came back unchanged.
fn echo(impairment: Impairment, seed: u64) -> f64 {
    let mut segment = echo_pair();
    // Neighbours are known: a lost question for a MAC is not what this is about.
    for (index, to) in [(0, SECOND), (1, FIRST)] {
        segment.exec(index, &format!("ping -c 1 {to}"));
    }
    segment.impair(impairment, seed);
    let input: Vec<u8> = (0..OCTETS).map(|index| (index * 7 + index / 251) as u8).collect();
    let begun = segment.now;
    let id = segment.spawn(0, "nc 10.1.15.3 7");
    segment.pods[0].input(id, &input);
    segment.pods[0].close_input(id);
    let until = begun + Duration::from_secs(3600);
    let mut received = Vec::new();
    loop {
        let output = segment.pods[0].output(id);
        received.extend_from_slice(&output.bytes);
        if let Some(code) = output.exit_code {
            assert!(code == 0 && received == input, "{code}, {} octets", received.len());
            return segment.now.saturating_duration_since(begun).as_secs_f64();
        }
        assert!(segment.step(until), "the stream never ends: {} octets", received.len());
    }
}

/// RFC 9293, 3.10.7.4: acknowledgements are heard whatever else is lost or late, the window is the newest segment's, and data count
/// whatever they acknowledge. Otherwise both sides have their timers alone: these took from 60 to 400 s each.
#[test]
fn both_sides_of_a_bad_cable_hear_each_other() {
    for (name, impairment, limit) in [
        ("reordering", cable([20_000, 20_000], [0, 0, 250_000, 0]), 2.0),
        ("loss and reordering", cable([1000, 500], [50_000, 0, 50_000, 0]), 9.0),
        ("all, near", cable([1000, 1000], [50_000, 10_000, 50_000, 5000]), 25.0),
        ("all, far", cable([100_000, 50_000], [50_000, 10_000, 50_000, 5000]), 44.0),
    ] {
        let times = [1, 2, 3, 4, 5].map(|seed| echo(impairment, seed));
        let mean = times.iter().sum::<f64>() / 5.0;
        assert!(mean < limit, "{name}: {mean:.1} s on average, {times:.1?}");
    }
}

/// A window in the smallest segments is more frames than the pod's own link takes at once: they wait for room, as in a qdisc.
#[test]
fn a_connection_does_not_overrun_its_own_link() {
    let small = |name, address| PodConfig { mtu: 96, ..pod(name, address) };
    let mut segment = Segment::new(vec![small("first", FIRST), small("second", SECOND)]);
    segment.pods[1].start_container(container("echo", Image::Echo, "")).unwrap();
    let input = vec![7; 500_000];
    let begun = segment.now;
    let id = segment.spawn(0, "nc 10.1.15.3 7");
    segment.pods[0].input(id, &input);
    segment.pods[0].close_input(id);
    let (text, code) = segment.finish(0, id);
    assert!(text.as_bytes() == input && code == 0, "{code}, {} octets", text.len());
    assert_eq!([0, 1].map(|index| segment.pods[index].drops().get(PodDrop::LinkFull)), [0; 2]);
    let took = segment.now.saturating_duration_since(begun);
    assert!(took < Duration::from_millis(100), "{took:?}");
}
