// SPDX-License-Identifier: Apache-2.0
//! Nodes, scenarios, test guests, the demo and the benchmarks.
#![forbid(unsafe_code)]

pub mod baseline;
pub mod bed;
pub mod bench;
pub mod book;
pub mod cache;
pub mod clean_root;
pub mod clients;
pub mod console;
pub mod control;
pub mod corosync;
pub mod cts;
pub mod debian_guest;
pub mod fencing;
pub mod guests;
pub mod histories;
pub mod host;
pub mod kernel;
pub mod ledger;
pub mod ledger_vm;
pub mod linux_guest;
pub mod machines;
pub mod namespaces;
pub mod new_nodes;
pub mod observer;
pub mod package;
pub mod protected;
pub mod protected_server;
pub mod rootfs;
pub mod server_guest;
pub mod server_vmm;
pub mod site;
pub mod supervisor;
pub mod switch;
pub mod virtual_domain;
