// SPDX-License-Identifier: Apache-2.0
//! The shipped state machine in a model cluster: chosen scenarios, and random histories.

#[path = "arbitration/force.rs"]
mod force;
#[path = "arbitration/generations.rs"]
mod generations;
#[path = "arbitration/policies.rs"]
mod policies;
#[path = "arbitration/replicas.rs"]
mod replicas;
#[path = "arbitration/safety.rs"]
mod safety;
#[path = "arbitration/scenarios.rs"]
mod scenarios;
#[path = "arbitration/world.rs"]
mod world;
