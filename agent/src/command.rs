// SPDX-License-Identifier: Apache-2.0
//! What an administrator types: the words of `kemarictl` and `kemari-agent`, and their exit statuses.
//!
//! The programs parse with these definitions, and manual pages and shell completions are generated
//! from them (`agent/examples/pages.rs`), so none of the three can say something else. Nothing is
//! done here.

mod exit;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use kemari_api::VmName;

pub use exit::{Ended, Exit, exit_of};

use crate::operator::Keygen;

/// Shows and commands the replicas of fault-tolerant VMs.
///
/// It asks this node's kemari-agent for the cluster, and the engines of this node for themselves over
/// their control sockets, so it is for root. It decides nothing: who may run is decided by the agents
/// and checked once more by the engine.
///
/// Colours are used on a terminal only, and never if NO_COLOR is set.
#[derive(Debug, Parser)]
#[command(name = "kemarictl", version, after_help = exit::TABLE, after_long_help = AFTER)]
pub struct Kemarictl {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command of `kemarictl`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the VMs, their replicas, and why one is not protected.
    ///
    /// As this node's agent knows them; without an agent, the engines of this node. EPOCH is shown of
    /// replicas on this node. LAG, PAUSE and RATE are known of the active replica on this node only: how old the state is that the passive
    /// replica would run from, how long the guest stands still for a checkpoint (median), and what is
    /// sent each second, measured over half a second.
    Status {
        /// Only this VM.
        vm: Option<VmName>,
        /// Print JSON (docs/kemarictl.md names the fields).
        #[arg(long)]
        json: bool,
        /// Exit with status 6 unless every VM shown is protected.
        #[arg(long)]
        check: bool,
    },
    /// Show what `status` shows, live, on the whole terminal.
    ///
    /// Once a second. `q` or Ctrl-C leaves.
    Top,
    /// List the VMs whose engines run on this node.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Attach this terminal to the console of a VM whose active replica is on this node.
    ///
    /// Shows the output that the engine still keeps, at most 256 KiB, then what follows. Several
    /// terminals may be attached. Keys go to the virtio console if the machine has one, else to the
    /// serial port. Ctrl-] detaches; the guest notices nothing. What is said then names the position
    /// reached, and --from goes on there, also on another node after a failover. A terminal too slow
    /// for the guest is skipped ahead and told by how many bytes.
    ///
    /// If standard input is no terminal, it is typed to its end, what was put out until then is shown,
    /// and that is all.
    Console {
        /// The VM.
        vm: VmName,
        /// Go on at this byte of the console's output, as the last detachment named it.
        #[arg(long, value_name = "POSITION")]
        from: Option<u64>,
        /// Only show: do not read standard input, and go on until the console ends or Ctrl-C.
        #[arg(long)]
        read_only: bool,
    },
    /// Type commands to a VM's engine on this node, or run one.
    ///
    /// Without a command, reads one a line until end of file or `exit`. `help` lists them; `quit` ends
    /// the engine.
    Monitor {
        /// The VM.
        vm: VmName,
        /// The command and its arguments, such as `migrate -d kemari:tcp:192.168.0.20:4444`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Begin replication of a VM whose active replica is on this node, and wait for it.
    ///
    /// In a cluster the agents do so by themselves whenever a passive replica waits; this names what
    /// keeps them, and shows how far it is. ADDRESS is for engines that no agent knows.
    Protect {
        /// The VM.
        vm: VmName,
        /// Where the other engine waits: kemari:tcp:HOST:PORT; several links with commas between them.
        address: Option<String>,
    },
    /// End the protection of a VM: Pacemaker stops its passive replica and keeps it away.
    ///
    /// Bans the VM's resource from the node of its passive replica (crm_resource --ban), and waits. That
    /// it was stopped is what lets the active replica go on alone; the guest does not notice. Where a
    /// third node may hold a replica, Pacemaker starts one there. `protect` on the node of the active
    /// replica lifts the ban.
    Unprotect {
        /// The VM.
        vm: VmName,
    },
    /// Move a protected VM to the node of its passive replica; nothing is lost.
    ///
    /// Asks Pacemaker, waits until the guest runs there, and takes the constraint back that moved it.
    /// Refused unless the pair is in sync: a move would boot the guest anew.
    Handover {
        /// The VM.
        vm: VmName,
        /// Give up after so many seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u32,
    },
    /// Make the passive replica take over now, from the last commit.
    ///
    /// On the node of the active replica: ends its engine, hard, if the pair is in sync; the other node
    /// goes on by itself. On the node of the passive replica: asks for its promotion, which is granted
    /// if the active one is lost. Prefer `handover` while both nodes work.
    Failover {
        /// The VM.
        vm: VmName,
    },
    /// Have the replica on this node synchronised anew.
    ///
    /// Ends an outdated or passive engine and has Pacemaker start it again; it then receives everything
    /// that differs. Refused for an active replica. The VM is not protected meanwhile.
    Resync {
        /// The VM.
        vm: VmName,
    },
    /// Tell the replica on this node that a newer generation is held elsewhere.
    ///
    /// The generation is the newest one that the agents have on record; refused if this replica has it.
    /// An active replica that is told so stops at once and never runs again before a resync.
    Outdate {
        /// The VM.
        vm: VmName,
    },
    /// Compare the disks of both replicas of a VM while the guest runs.
    ///
    /// On the node of the active replica. Exit status 6 if a block differs; what is said then names the
    /// first of them.
    Verify {
        /// The VM.
        vm: VmName,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start the replica on this node although the agents refuse it: what others have may be lost.
    ///
    /// For the node that ran the VM last being gone for good. Says what may be lost and asks for the
    /// VM's name. It is a request to the agents like any other, recorded by a majority of them (with
    /// two nodes: by this one if the other is away), and refused while another replica is known to
    /// run, without quorum, and to disks that are only partly copied.
    ForceActive {
        /// The VM.
        vm: VmName,
        /// The VM's name once more, in place of typing it: what may be lost, is lost.
        #[arg(long, value_name = "VM")]
        yes_i_lose: Option<String>,
    },
    /// Check this node and the cluster's settings, and say what to do.
    ///
    /// A line for each check: OK, WARN (works, and will hurt) or FAIL (does not work). Exit status 6 if
    /// one is FAIL.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make the key by which the replicas of this cluster know each other, or replace it.
    ///
    /// Without an option, makes the first key. Copy the file to every node, mode 0600; engines read it
    /// when they start.
    ///
    /// To replace a key while VMs run: --add, copy the file to every node and start all engines again
    /// one after the other (a VM goes on on its other node); then --switch, and the same; then --retire,
    /// and the same.
    Keygen(Keygen),
    /// Write what a bug report needs into one archive (tar, gzip).
    ///
    /// Status, diagnosis, journal of the units, VM descriptions with the guest's command line left out,
    /// the agents' records, and what Corosync and Pacemaker say, with passwords left out. Look through
    /// it before it leaves the house.
    Report {
        /// The file; kemari-report-NODE-TIME.tar.gz in this directory if not given.
        file: Option<PathBuf>,
    },
}

/// Watches this node's engines and Corosync, and decides with the other agents who may run a VM.
///
/// It needs a running Corosync and waits for it. VMs run on while it is stopped, but no lost node
/// is noticed then.
#[derive(Debug, Parser)]
#[command(name = "kemari-agent", version, after_help = AGENT_ENVIRONMENT)]
pub struct KemariAgent {
    /// Serve metrics for Prometheus at this address; `none` serves them nowhere.
    #[arg(
        long,
        env = "KEMARI_METRICS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:9764"
    )]
    pub metrics: String,
    /// Read settings from here, if it is there; agent.toml among the examples shows them all.
    #[arg(long, value_name = "FILE", default_value = "/etc/kemari/agent.toml")]
    pub settings: PathBuf,
}

const AFTER: &str = "\
Exit status:
  0  done
  1  failed; standard error says why
  2  wrong usage
  3  the VM is not known, or has no replica on this node
  4  the agent or the engine does not answer
  5  refused by the agents, the engine or a rule; standard error says what stands against it
  6  something is not as it should be: `verify` found a difference, `doctor` a FAIL,
     `status --check` a VM that is not protected

Environment:
  KEMARI_RUN_DIR    where the engines' sockets are [/run/kemari]
  KEMARI_STATE_DIR  where the records are [/var/lib/kemari]
  NO_COLOR          no colours, if set and not empty
  DBUS_SYSTEM_BUS_ADDRESS  another system bus

Examples:
  kemarictl status --check || logger 'a VM is not protected'
  kemarictl handover web
  kemarictl console --from 48210 web
  kemarictl console web < /dev/null > /tmp/recent
  kemarictl monitor web info migrate";

const AGENT_ENVIRONMENT: &str = "Environment:
  KEMARI_LOG         what is logged, such as `debug` or `info,kemari_agent=trace` [info]
  KEMARI_METRICS     as --metrics
  KEMARI_RUN_DIR     control sockets of the engines [/run/kemari]
  KEMARI_STATE_DIR   the agent's votes, in claims/ [/var/lib/kemari]
  DBUS_SYSTEM_BUS_ADDRESS   another system bus";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Kemarictl::command().debug_assert();
        KemariAgent::command().debug_assert();
    }

    #[test]
    fn both_helps_name_every_exit_status() {
        let mut command = Kemarictl::command();
        let (short, long) = (command.render_help(), command.render_long_help());
        for exit in Exit::ALL {
            for help in [short.to_string(), long.to_string()] {
                let number = format!("  {}  ", exit.number());
                assert!(help.contains(&number), "{exit:?} in {help}");
            }
        }
    }
}
