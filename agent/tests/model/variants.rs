// SPDX-License-Identifier: Apache-2.0
//! Known-bad rules, each of which must be found out. What strikes is narrowed to what a person
//! would think of; the shipped rules hold under all of it and more.

use super::checker::{Cluster, RULES};
use super::moves::{Bounds, Move};
use super::setup::{Setup, Variant};
use super::world::World;

/// Explores it as shipped, where the rules must hold, and with the variant, where they must not.
fn finds(variant: Variant, from: fn(Setup) -> World, bounds: Bounds, only: fn(Move) -> bool) {
    for setup in [Setup::WITNESS, Setup::THREE] {
        let cluster = |setup| Cluster {
            from: vec![from(setup)],
            bounds,
            only: Some(only),
        };
        let shipped = cluster(setup).explore(&format!("without {variant:?}"));
        assert!(shipped.broken.is_empty(), "{:?}", shipped.broken);
        let report = cluster(setup.with(variant)).explore(&format!("{variant:?}"));
        let found = report.broken.iter().find(|(name, _)| *name == RULES);
        let (_, story) = found.unwrap_or_else(|| panic!("{variant:?} was not found"));
        assert!(!story.contains("Panicked"), "by an assertion only: {story}");
        println!("{story}\n");
    }
}

/// So many moves, two of them failures, none while something is under way.
const fn quiet(moves: u8) -> Bounds {
    Bounds {
        moves,
        failures: 2,
        midst: 0,
        delays: 0,
    }
}

#[test]
fn solo_on_link_loss() {
    let cuts = |one| matches!(one, Move::CutLink(..) | Move::Isolate(_));
    finds(Variant::SoloOnLinkLoss, World::paired, quiet(2), cuts);
}

#[test]
fn solo_by_fencing_alone_with_three_agents() {
    let fencing = |one| {
        matches!(
            one,
            Move::Isolate(_) | Move::KillNode(_) | Move::HealCorosync | Move::PassiveGone { .. }
        )
    };
    finds(Variant::SoloByFencing, World::paired, quiet(4), fencing);
}

#[test]
fn takeover_by_quorum_alone() {
    let split = |one| matches!(one, Move::Delude(_) | Move::Output(_));
    finds(Variant::TakeOverByQuorum, World::paired, quiet(2), split);
}

#[test]
fn joining_a_pair_before_outputs_are_held() {
    let bounds = Bounds {
        midst: 2,
        ..quiet(2)
    };
    let joining = |one| matches!(one, Move::Output(_) | Move::KillNode(_));
    finds(Variant::JoinBeforeHold, World::starting, bounds, joining);
}

#[test]
fn acknowledged_before_decoded() {
    let spoilt = |one| matches!(one, Move::SpoilState(_) | Move::Output(_));
    finds(Variant::AckBeforeDecode, World::paired, quiet(2), spoilt);
}
