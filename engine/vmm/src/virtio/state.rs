// SPDX-License-Identifier: Apache-2.0
//! What a state keeps of a virtio device: registers, rings, and what the device model remembers.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::balloon::BalloonState;
use super::block::BlockState;
use super::common::CommonState;
use super::net::NetState;
use super::queues::RingState;
use crate::pci::msix::MsixState;

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FunctionState {
    /// PCI configuration space.
    pub(crate) config: Vec<u8>,
    pub(crate) msix: MsixState,
    pub(crate) common: CommonState,
    pub(crate) rings: Vec<RingState>,
    pub(crate) device: DeviceState,
}

/// What device models remember beside their rings. The order of the variants is part of the format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceState {
    /// Entropy source: nothing.
    Rng,
    /// Console: nothing.
    Console,
    /// Balloon.
    Balloon(BalloonState),
    /// A disk: which one it is.
    Block(BlockState),
    /// Network interface.
    Net(NetState),
}

/// The state of another device, or one that no device can have.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("the state does not fit {device}: {reason}")]
pub struct WrongDeviceState {
    /// The device that was to be loaded.
    pub device: String,
    /// What does not fit.
    pub reason: String,
}

impl WrongDeviceState {
    pub(crate) fn new(device: &str, reason: &str) -> Self {
        Self {
            device: device.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// The state is that of another kind of device.
    pub(crate) fn kind(device: &str) -> Self {
        Self::new(device, "it is that of another kind of device")
    }
}
