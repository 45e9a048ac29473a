//! A worker's bindings against a plain list; TCP's states; redirects.

use super::*;
use proptest::prelude::*;

/// What a binding of UDP is in a plain list.
#[derive(Debug, Clone, Copy)]
struct Plain {
    halves: [HalfKey; 2],
    answered: bool,
    expires: Instant,
}

#[derive(Debug, Clone)]
enum Deed {
    Insert(u32, u32),
    Follow(u32),
    Pass(u64),
    Sweep(usize),
    EndAll(u32),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0u32..6, 0u32..6).prop_map(|(original, reply)| Deed::Insert(original, reply)),
        5 => (0u32..6).prop_map(Deed::Follow),
        2 => prop::sample::select(vec![1u64, 29, 30, 31, 119, 120, 500]).prop_map(Deed::Pass),
        1 => (0usize..5).prop_map(Deed::Sweep),
        1 => (0u32..6).prop_map(Deed::EndAll),
    ]
}

proptest! {
    #[test]
    fn bindings_are_a_plain_list_with_timeouts(deeds in prop::collection::vec(deed(), 1..80)) {
        let (mut bindings, mut plain, mut now) = (Bindings::new(3, [1, 2]), Vec::<Plain>::new(), Instant::ZERO);
        let none = TcpFlags::default();
        for deed in deeds {
            plain.retain(|it| it.expires > now);
            match deed {
                Deed::Insert(original, reply) => {
                    let halves = [key(original, 9, 17), key(reply, 9, 17)];
                    let taken = original == reply
                        || plain.iter().any(|it| it.halves.iter().any(|half| halves.contains(half)));
                    match bindings.insert((halves[0], halves[1]), Answers::Steered, none, now) {
                        Ok(_) => {
                            prop_assert!(!taken);
                            plain.push(Plain { halves, answered: false, expires: now + Duration::from_secs(30) });
                        }
                        Err(Refused::TupleTaken) => prop_assert!(taken),
                        // What has expired fills the table until it is swept.
                        Err(Refused::Full) => prop_assert!(!taken && bindings.len() == 3),
                    }
                }
                Deed::Follow(number) => {
                    let asked = key(number, 9, 17);
                    let found = bindings.follow(&asked, none, now).map(|(_, half, tuple)| (half, tuple));
                    let model = plain.iter_mut().find(|it| it.halves.contains(&asked)).map(|it| {
                        let half = if it.halves[0] == asked { Half::Original } else { Half::Reply };
                        it.answered |= half == Half::Reply;
                        it.expires = now + Duration::from_secs(if it.answered { 120 } else { 30 });
                        (half, it.halves[1 - half as usize].tuple.reversed())
                    });
                    prop_assert_eq!(found, model);
                }
                Deed::Pass(seconds) => now = now + Duration::from_secs(seconds),
                Deed::Sweep(places) => bindings.sweep(places, now),
                Deed::EndAll(number) => {
                    bindings.end_where(|binding| binding.original.tuple.source == number);
                    plain.retain(|it| it.halves[0].tuple.source != number);
                }
            }
            let live = plain.iter().filter(|it| it.expires > now).count();
            prop_assert!(bindings.len() >= live && bindings.len() <= 3);
        }
        bindings.sweep(3, now);
        prop_assert_eq!(bindings.len(), plain.iter().filter(|it| it.expires > now).count());
    }
}

fn key(source: u32, destination: u32, protocol: u8) -> HalfKey {
    let tuple = Tuple { source, destination, source_port: 1000, destination_port: 80, protocol };
    HalfKey { node: NodeId(0), tuple }
}

fn masqueraded(protocol: u8) -> (HalfKey, HalfKey) {
    let original = key(1, 2, protocol);
    let mut reply = HalfKey { tuple: original.tuple.reversed(), ..original };
    reply.tuple.destination = 9;
    (original, reply)
}

#[test]
fn out_and_back_through_a_binding_is_the_identity() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, [1, 2]);
    bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO).unwrap();
    let (_, half, out) = bindings.follow(&original, TcpFlags::default(), Instant::ZERO).unwrap();
    assert_eq!((half, out), (Half::Original, reply.tuple.reversed()));
    let back = HalfKey { tuple: out.reversed(), ..original };
    let (_, half, home) = bindings.follow(&back, TcpFlags::default(), Instant::ZERO).unwrap();
    assert_eq!((half, home), (Half::Reply, original.tuple.reversed()));
}

#[test]
fn a_taken_reply_tuple_is_refused_and_changes_nothing() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, [1, 2]);
    bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO).unwrap();
    let other = key(7, 2, 17);
    let refused = bindings.insert((other, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO);
    assert_eq!((refused, bindings.len()), (Err(Refused::TupleTaken), 1));
    assert!(bindings.is_free(&other, Instant::ZERO));
}

#[test]
fn an_ended_binding_renews_no_cached_flow() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(1, [1, 2]);
    let first =
        bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO).unwrap();
    assert!(bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
    let refused =
        bindings.insert((key(5, 6, 17), key(6, 5, 17)), Answers::Steered, TcpFlags::default(), Instant::ZERO);
    assert_eq!(refused, Err(Refused::Full));
    let later = Instant::ZERO + Duration::from_secs(31);
    bindings.sweep(10, later);
    assert!(bindings.is_empty());
    let second = bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), later).unwrap();
    assert_eq!(second.index, first.index);
    assert!(!bindings.renew(first.index, first.generation, Half::Original, later));
}

#[test]
fn a_connection_opened_anew_is_established_although_the_cache_knows_it() {
    let (original, reply) = masqueraded(6);
    let mut bindings = Bindings::new(1, [1, 2]);
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    let first = bindings.insert((original, reply), Answers::Steered, ack, Instant::ZERO).unwrap();
    for (key, flags) in [(reply, TcpFlags::RST), (original, syn), (reply, syn.with(ack))] {
        bindings.follow(&key, flags, Instant::ZERO).unwrap();
    }
    assert!(!bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
    bindings.follow(&original, ack, Instant::ZERO).unwrap();
    assert!(bindings.renew(first.index, first.generation, Half::Original, Instant::ZERO));
    assert_eq!(bindings.iter(NodeId(0)).next().unwrap().tcp, TcpState::Established);
}

#[test]
fn tcp_goes_through_its_states_with_conntracks_timeouts() {
    let (original, reply) = masqueraded(6);
    let mut bindings = Bindings::new(4, [1, 2]);
    let (syn, ack, fin) = (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN.with(TcpFlags::ACK));
    bindings.insert((original, reply), Answers::Steered, syn, Instant::ZERO).unwrap();
    let steps = [
        (original, syn, TcpState::SynSent, 120),
        (reply, syn.with(ack), TcpState::SynReceived, 60),
        (original, ack, TcpState::Established, 432_000),
        (reply, ack, TcpState::Established, 432_000),
        (original, fin, TcpState::FinWait, 120),
        (reply, ack, TcpState::FinWait, 120),
        (reply, fin, TcpState::TimeWait, 120),
        (original, ack, TcpState::TimeWait, 120),
        (original, syn, TcpState::SynSent, 120),
        (reply, TcpFlags::RST, TcpState::Closed, 10),
    ];
    for (number, (key, flags, state, seconds)) in steps.into_iter().enumerate() {
        bindings.follow(&key, flags, Instant::ZERO).unwrap();
        let binding = bindings.iter(NodeId(0)).next().unwrap();
        assert_eq!((binding.tcp, binding.timeout().as_secs()), (state, seconds), "step {number}");
    }
}

#[test]
fn a_redirect_takes_its_tuple_until_its_holder_says_that_the_binding_ended() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, [1, 2]);
    assert!(bindings.elsewhere(&reply).is_none());
    assert!(bindings.redirect(reply, 3, Instant::ZERO));
    let (found, worker) = bindings.elsewhere(&reply).unwrap();
    assert_eq!((worker, bindings.is_live(found.index, found.generation)), (3, true));
    let refused = bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO);
    assert_eq!(refused, Err(Refused::TupleTaken));
    bindings.end_redirect(&reply, 2);
    assert!(bindings.elsewhere(&reply).is_some(), "another worker's word");
    bindings.end_redirect(&reply, 3);
    assert!(bindings.elsewhere(&reply).is_none() && bindings.is_empty());
    assert!(!bindings.is_live(found.index, found.generation));
    bindings.insert((original, reply), Answers::Steered, TcpFlags::default(), Instant::ZERO).unwrap();
    assert!(!bindings.redirect(reply, 3, Instant::ZERO), "a binding has the tuple");
}

#[test]
fn only_what_others_wait_for_is_news() {
    let (original, reply) = masqueraded(17);
    let mut bindings = Bindings::new(4, [1, 2]);
    for (answers, tell_ends, news) in [
        (Answers::Steered, false, vec![]),
        (Answers::Steered, true, vec![News::Ended(reply, Answers::Steered)]),
        (Answers::Granted(1), false, vec![News::Ended(reply, Answers::Granted(1))]),
        (Answers::Announced, false, vec![News::Begun(reply), News::Ended(reply, Answers::Announced)]),
    ] {
        bindings.tell_ends = tell_ends;
        bindings.insert((original, reply), answers, TcpFlags::default(), Instant::ZERO).unwrap();
        bindings.end_where(|_| true);
        assert_eq!(std::mem::take(&mut bindings.news), news, "{answers:?}");
    }
}
