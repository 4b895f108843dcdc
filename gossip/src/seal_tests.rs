#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

const KEY: [u8; 32] = [7; 32];

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([172, 30, 0, n], 7946))
}

fn seal_of(n: u8, epoch: u64) -> Seal {
    Seal::new(&GossipKey::new(KEY), address(n), u64::from(n) ^ epoch, epoch)
}

#[test]
fn opens_once_what_was_sealed() {
    let (mut a, mut b) = (seal_of(1, 5), seal_of(2, 5));
    let packet = a.seal(address(2), Kind::Swim, b"ping").unwrap();
    let opened = b.open(address(1), &packet).unwrap();
    assert_eq!(opened, Opened { source: address(1), kind: Kind::Swim, payload: b"ping".to_vec() });
    assert_eq!(b.open(address(1), &packet), Err(SealError::Replayed { source_address: address(1) }));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (mut a, mut b) = (seal_of(1, 5), seal_of(2, 5));
    let packet = a.seal(address(2), Kind::Swim, b"ping").unwrap();
    for at in 0..packet.len() {
        for bit in 0..8 {
            let mut bad = packet.clone();
            bad[at] ^= 1 << bit;
            assert!(b.open(address(1), &bad).is_err(), "byte {at} bit {bit}");
        }
    }
    assert!(b.open(address(1), &packet).is_ok(), "forgeries must not use up the counter");
}

#[test]
fn another_key_another_destination_and_oneself_are_refused() {
    let (mut a, mut b, mut c) = (seal_of(1, 5), seal_of(2, 5), seal_of(3, 5));
    let packet = a.seal(address(2), Kind::Swim, b"ping").unwrap();
    let mut stranger = Seal::new(&GossipKey::new([8; 32]), address(2), 1, 5);
    assert_eq!(stranger.open(address(1), &packet), Err(SealError::Forged { from: address(1) }));
    assert!(matches!(c.open(address(1), &packet), Err(SealError::Misdirected { .. })));
    assert!(matches!(a.open(address(1), &packet), Err(SealError::Misdirected { .. })));
    assert!(b.open(address(1), &packet).is_ok());
}

#[test]
fn a_lower_epoch_is_stale_and_a_higher_one_starts_afresh() {
    let mut b = seal_of(2, 5);
    let old = seal_of(1, 5).seal(address(2), Kind::Swim, b"old").unwrap();
    let new = seal_of(1, 6).seal(address(2), Kind::Swim, b"new").unwrap();
    assert!(b.open(address(1), &new).is_ok());
    assert_eq!(b.open(address(1), &old), Err(SealError::Stale { source_address: address(1), known: 6 }));
}

#[test]
fn what_was_heard_is_not_accepted_by_the_next_instance() {
    let (mut a, mut b) = (seal_of(1, 5), seal_of(2, 5));
    let packets: Vec<_> = (0..4u8).map(|n| a.seal(address(2), Kind::Swim, &[n]).unwrap()).collect();
    // The second never arrived, and might still.
    for n in [0, 2] {
        b.open(address(1), &packets[n]).unwrap();
    }
    assert_eq!(b.heard(), [Heard { source: address(1), epoch: 5, counter: 3 }]);
    let mut next = seal_of(2, 6);
    next.remember(b.heard());
    for packet in &packets[..3] {
        assert_eq!(next.open(address(1), packet), Err(SealError::Replayed { source_address: address(1) }));
    }
    assert!(next.open(address(1), &packets[3]).is_ok(), "what is newer is heard at once");
    // Something older does not take that back.
    next.remember(b.heard());
    assert!(next.open(address(1), &packets[3]).is_err());
    let before = seal_of(1, 4).seal(address(2), Kind::Swim, b"before").unwrap();
    let mut next = seal_of(2, 7);
    next.remember(b.heard());
    assert_eq!(next.open(address(1), &before), Err(SealError::Stale { source_address: address(1), known: 5 }));
    let restarted = seal_of(1, 6).seal(address(2), Kind::Swim, b"new").unwrap();
    assert!(next.open(address(1), &restarted).is_ok(), "a restarted source is heard at once");
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut b = seal_of(2, 5);
    let source = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 7946));
    b.remember((0..MAX_PEERS as u32 + 500).map(|n| Heard { source: source(n), epoch: 1, counter: 1 }));
    b.remember([Heard { source: address(2), epoch: 1, counter: 1 }]);
    assert_eq!(b.heard().len(), MAX_PEERS);
}

#[test]
fn state_is_bounded() {
    let mut b = seal_of(2, 5);
    for n in 0..(MAX_PEERS as u32 + 500) {
        let source = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 7946));
        let mut peer = Seal::new(&GossipKey::new(KEY), source, u64::from(n), 1);
        let packet = peer.seal(address(2), Kind::Swim, b"x").unwrap();
        assert!(b.open(source, &packet).is_ok());
    }
    assert_eq!(b.peers.len(), MAX_PEERS);
}

#[test]
fn the_largest_payload_fits_and_a_larger_one_is_refused() {
    let mut a = seal_of(1, u64::MAX);
    let packet = a.seal(address(2), Kind::Swim, &[0; MAX_PAYLOAD_BYTES]).unwrap();
    assert!(packet.len() <= MAX_PACKET_BYTES);
    assert!(matches!(a.seal(address(2), Kind::Swim, &[0; MAX_PAYLOAD_BYTES + 1]), Err(SealError::TooLarge { .. })));
}

proptest! {
    /// In whatever order packets arrive and are repeated, none is accepted twice, and none that
    /// lies within the window is lost.
    #[test]
    fn accepted_at_most_once(order in proptest::collection::vec(0usize..100, 1..400)) {
        let (mut a, mut b) = (seal_of(1, 5), seal_of(2, 5));
        let packets: Vec<_> =
            (0..100u8).map(|n| a.seal(address(2), Kind::Swim, &[n]).unwrap()).collect();
        let mut accepted = std::collections::HashSet::new();
        for n in order {
            let fresh = b.open(address(1), &packets[n]).is_ok();
            prop_assert_eq!(fresh, accepted.insert(n));
        }
    }
}
