// SPDX-License-Identifier: Apache-2.0
//! The licence's table of transitions, over every state and every event.

use kemari_replication::Generation;
use kemari_replication::licence::{Joining, Licence, LicenceEvent, Permission};

const G: Generation = Generation::new(3);
const NEXT: Generation = Generation::new(4);
const SOLO: Licence = Licence::Solo { generation: G };

fn after(state: Licence, events: &[LicenceEvent]) -> Licence {
    events
        .iter()
        .fold(state, |state, event| state.after(*event).expect("it fits"))
}

fn every_state() -> Vec<Licence> {
    let generation = G;
    let mut states = vec![
        Licence::None,
        SOLO,
        Licence::Reverting { generation },
        Licence::Paired { generation },
        Licence::Cut { generation },
        Licence::Rejoining { generation },
        Licence::HandedOver { generation },
        Licence::Outdated { generation },
    ];
    for stage in [Joining::Holding, Joining::Recorded, Joining::Offered] {
        states.push(Licence::Joining { generation, stage });
    }
    states
}

fn every_event() -> Vec<LicenceEvent> {
    let mut events = vec![
        LicenceEvent::Hold,
        LicenceEvent::PairedRecorded,
        LicenceEvent::CommitSent,
        LicenceEvent::Committed,
        LicenceEvent::SessionLost,
        LicenceEvent::Rejoin,
        LicenceEvent::HandedOver,
    ];
    for generation in [Generation::new(2), G, NEXT] {
        events.push(LicenceEvent::SoloGranted { generation });
        events.push(LicenceEvent::Learned { generation });
    }
    events
}

const JOIN: [LicenceEvent; 4] = [
    LicenceEvent::Hold,
    LicenceEvent::PairedRecorded,
    LicenceEvent::CommitSent,
    LicenceEvent::Committed,
];

#[test]
fn joining_holds_outputs_until_the_first_commit() {
    let mut state = SOLO;
    for event in JOIN {
        assert_eq!(state.permission() == Permission::Nothing, state != SOLO);
        state = after(state, &[event]);
    }
    assert_eq!(state.permission(), Permission::Committed);
}

#[test]
fn paired_is_on_disk_before_the_first_commit_is_sent() {
    let holding = after(SOLO, &JOIN[..1]);
    assert!(holding.after(LicenceEvent::CommitSent).is_err());
}

#[test]
fn a_join_that_may_have_arrived_never_falls_back_to_solo() {
    let offered = after(SOLO, &JOIN[..3]);
    let lost = after(offered, &[LicenceEvent::SessionLost]);
    assert_eq!(lost, Licence::Cut { generation: G });
    assert!(
        lost.after(LicenceEvent::SoloGranted { generation: G })
            .is_err()
    );
}

#[test]
fn a_join_that_cannot_have_arrived_goes_back_once_solo_is_on_disk() {
    for steps in [1, 2] {
        let lost = after(after(SOLO, &JOIN[..steps]), &[LicenceEvent::SessionLost]);
        assert_eq!(lost.permission(), Permission::Nothing);
        assert_eq!(
            after(lost, &[LicenceEvent::SoloGranted { generation: G }]),
            SOLO
        );
    }
}

/// Found by the simulator: the agents grant a solo licence while the join is going back.
#[test]
fn a_join_on_its_way_back_may_be_granted_a_new_generation() {
    let reverting = Licence::Reverting { generation: G };
    let granted = reverting.after(LicenceEvent::SoloGranted { generation: NEXT });
    assert_eq!(granted, Ok(Licence::Solo { generation: NEXT }));
    let older = Generation::new(2);
    let granted = reverting.after(LicenceEvent::SoloGranted { generation: older });
    assert!(granted.is_err(), "{granted:?}");
}

#[test]
fn trap_2_a_lost_session_never_widens_what_may_leave() {
    let width = |licence: Licence| match licence.permission() {
        Permission::Nothing => 0,
        Permission::Committed => 1,
        Permission::All => 2,
    };
    for state in every_state() {
        if let Ok(lost) = state.after(LicenceEvent::SessionLost) {
            assert!(width(lost) <= width(state), "{state:?} -> {lost:?}");
        }
    }
}

#[test]
fn only_a_grant_of_a_new_generation_ends_cut_in_solo() {
    let cut = Licence::Cut { generation: G };
    for event in every_event() {
        let solo = matches!(cut.after(event), Ok(Licence::Solo { .. }));
        assert_eq!(
            solo,
            event == LicenceEvent::SoloGranted { generation: NEXT },
            "{event:?}"
        );
    }
}

#[test]
fn all_outputs_leave_only_after_a_grant() {
    for state in every_state() {
        for event in every_event() {
            if let Ok(next @ Licence::Solo { .. }) = state.after(event) {
                let granted = matches!(event, LicenceEvent::SoloGranted { .. });
                assert!(
                    granted || next == state,
                    "{state:?} --{event:?}--> {next:?}"
                );
            }
        }
    }
}

#[test]
fn outdated_and_handed_over_are_final() {
    for state in [
        Licence::HandedOver { generation: G },
        Licence::Outdated { generation: G },
    ] {
        for event in every_event() {
            if let Ok(next) = state.after(event) {
                assert_eq!(next.permission(), Permission::Nothing, "{event:?}");
            }
        }
    }
}

#[test]
fn a_newer_generation_outdates_and_an_older_one_does_not() {
    let learned = |generation| LicenceEvent::Learned { generation };
    assert_eq!(after(SOLO, &[learned(G)]), SOLO);
    assert_eq!(
        after(SOLO, &[learned(NEXT)]),
        Licence::Outdated { generation: NEXT }
    );
    assert_eq!(after(Licence::None, &[learned(NEXT)]), Licence::None);
}

#[test]
fn a_generation_never_goes_back() {
    for state in every_state() {
        for event in every_event() {
            if let (Ok(next), Some(before)) = (state.after(event), state.generation()) {
                assert!(
                    next.generation() >= Some(before),
                    "{state:?} --{event:?}--> {next:?}"
                );
            }
        }
    }
}
