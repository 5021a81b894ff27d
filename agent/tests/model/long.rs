// SPDX-License-Identifier: Apache-2.0
//! The longer run: `make model`.

use super::check;
use super::moves::Bounds;
use super::setup::Setup;

const CLUSTERS: [(&str, Setup); 3] = [
    ("two nodes", Setup::TWO),
    ("two hosts and a witness", Setup::WITNESS),
    ("three hosts", Setup::THREE),
];

fn check_all(what: &str, grain: fn(Setup) -> Setup, bounds: Bounds) {
    for (name, setup) in CLUSTERS {
        check(&format!("{name}, {what}"), grain(setup), bounds);
    }
}

#[test]
#[ignore = "takes minutes: make model"]
fn between_any_two_events_of_an_agent() {
    let bounds = Bounds {
        moves: 2,
        failures: 2,
        midst: 1,
        delays: 1,
    };
    check_all("event by event", Setup::fine, bounds);
}

#[test]
#[ignore = "takes minutes: make model"]
fn two_moves_whenever() {
    let bounds = Bounds {
        moves: 2,
        failures: 2,
        midst: 2,
        delays: 1,
    };
    check_all("two moves, whenever", |setup| setup, bounds);
}

#[test]
#[ignore = "takes minutes: make model"]
fn three_moves_and_a_delay() {
    let bounds = Bounds {
        moves: 3,
        failures: 2,
        midst: 0,
        delays: 1,
    };
    check_all("three moves, delays", |setup| setup, bounds);
}

#[test]
#[ignore = "takes minutes: make model"]
fn three_moves_of_which_one_races() {
    let bounds = Bounds {
        moves: 3,
        failures: 2,
        midst: 1,
        delays: 0,
    };
    check_all("three moves, one races", |setup| setup, bounds);
}

#[test]
#[ignore = "takes minutes: make model"]
fn four_moves_one_after_the_other() {
    let bounds = Bounds {
        moves: 4,
        failures: 2,
        midst: 0,
        delays: 0,
    };
    check_all("four moves", |setup| setup, bounds);
}
