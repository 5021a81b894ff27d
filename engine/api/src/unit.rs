// SPDX-License-Identifier: Apache-2.0
//! The systemd unit of an engine, through systemd's own D-Bus interface.
//!
//! `org.freedesktop.systemd1(5)` is the source of the names and values here. Jobs are waited for by
//! looking at the unit until it has none left: no signal can be missed that way.

use std::time::Duration;

use tokio::time::sleep;
use zbus::OwnedObjectPath;
use zbus::proxy::CacheProperties;

/// How a unit is started. It is ordered before `pacemaker.service`, so that it ends after it; a start that respected
/// the order would wait for a stop of Pacemaker that is under way, and Pacemaker for this start.
const START_MODE: &str = "ignore-dependencies";
/// What that leaves out: the slice with the replicas' weights.
const SLICE: &str = "kemari.slice";
/// Between two looks at a unit.
const LOOK: Duration = Duration::from_millis(20);
/// `si_code` of a process that ended by exit(2), as `ExecMainCode` reports it.
const CLD_EXITED: i32 = 1;
/// The unit has no process (any more), which is as good as a signal that was heard.
const NO_PROCESS: &str = "org.freedesktop.systemd1.NoSuchProcess";

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(property)]
    fn system_state(&self) -> zbus::Result<String>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait AnyUnit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn job(&self) -> zbus::Result<(u32, OwnedObjectPath)>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1"
)]
trait Service {
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    #[zbus(property)]
    fn exec_main_status(&self) -> zbus::Result<i32>;
}

/// The signals that end a unit's processes, with Linux's numbers.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub enum Signal {
    /// SIGTERM: the engine ends in order.
    Terminate = 15,
    /// SIGKILL.
    Kill = 9,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, …
    pub active: String,
    /// A job is queued or running.
    pub job: bool,
    /// `success`, `exit-code`, `signal`, `timeout`, …
    pub result: String,
    /// The last `STATUS=` of the process.
    pub text: String,
    /// How the last main process ended.
    pub end: ProcessEnd,
}

/// How a main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEnd {
    /// It has not, or systemd does not know.
    Unknown,
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl UnitState {
    /// No process is left. A job may be queued all the same, at shutdown for one.
    pub fn is_over(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed")
    }

    /// One sentence about how it ended. Only an engine that ended by itself had time to say why;
    /// the words of a killed one are those of its good days.
    pub fn ending(&self, unit: &str) -> String {
        let end = match self.end {
            ProcessEnd::Exit(status) if status != 0 && !self.text.is_empty() => {
                let text = self.text.trim_end_matches('.');
                return format!("{text} ({unit}: exit status {status})");
            }
            ProcessEnd::Exit(status) => format!("exit status {status}"),
            ProcessEnd::Signal(signal) => format!("killed by signal {signal}"),
            ProcessEnd::Unknown => self.result.clone(),
        };
        format!("{unit} ended ({end}): see journalctl -u {unit}")
    }
}

/// The node's systemd.
#[derive(Debug)]
pub struct Systemd {
    manager: ManagerProxy<'static>,
}

impl Systemd {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// zbus's error; there is no systemd, or no bus.
    pub async fn connect() -> zbus::Result<Self> {
        let connection = zbus::Connection::system().await?;
        let manager = ManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(Self { manager })
    }

    /// Looks at a unit, loading it if need be.
    ///
    /// # Errors
    /// zbus's error.
    pub async fn look(&self, unit: &str) -> zbus::Result<UnitState> {
        let path = self.manager.load_unit(unit).await?;
        let connection = self.manager.inner().connection();
        let any = AnyUnitProxy::builder(connection)
            .path(path.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let service = ServiceProxy::builder(connection)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(UnitState {
            load: any.load_state().await?,
            job: any.job().await?.0 != 0,
            active: any.active_state().await?,
            result: service.result().await?,
            text: service.status_text().await?,
            end: match (
                service.exec_main_code().await?,
                service.exec_main_status().await?,
            ) {
                (0, _) => ProcessEnd::Unknown,
                (CLD_EXITED, status) => ProcessEnd::Exit(status),
                (_, signal) => ProcessEnd::Signal(signal),
            },
        })
    }

    /// Starts a unit and waits until systemd is done with it.
    ///
    /// # Errors
    /// zbus's error. Whether it runs now is in the state.
    pub async fn start(&self, unit: &str) -> zbus::Result<UnitState> {
        self.begin(unit).await?;
        self.settled(unit).await
    }

    /// Has systemd start a unit, and does not wait.
    ///
    /// # Errors
    /// zbus's error.
    pub async fn begin(&self, unit: &str) -> zbus::Result<()> {
        self.manager.start_unit(SLICE, "replace").await?;
        self.manager.start_unit(unit, START_MODE).await?;
        Ok(())
    }

    /// Whether the node shuts down: nothing is to be started any more.
    ///
    /// # Errors
    /// zbus's error.
    pub async fn is_stopping(&self) -> zbus::Result<bool> {
        Ok(self.manager.system_state().await? == "stopping")
    }

    /// Signals every process of a unit. This queues no job, so it works while systemd shuts the
    /// node down and waits for Pacemaker before it would stop the unit itself.
    ///
    /// # Errors
    /// zbus's error; a unit without processes is none.
    pub async fn signal(&self, unit: &str, signal: Signal) -> zbus::Result<()> {
        match self.manager.kill_unit(unit, "all", signal as i32).await {
            Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_PROCESS => Ok(()),
            other => other,
        }
    }

    /// Waits until a unit has no process, and how it ended.
    ///
    /// # Errors
    /// zbus's error.
    pub async fn ended(&self, unit: &str) -> zbus::Result<UnitState> {
        loop {
            let state = self.look(unit).await?;
            if state.is_over() {
                return Ok(state);
            }
            sleep(LOOK).await;
        }
    }

    /// Lets systemd forget how a unit ended.
    ///
    /// # Errors
    /// zbus's error; a unit that did not fail is none.
    pub async fn forget_end(&self, unit: &str) -> zbus::Result<()> {
        self.manager.reset_failed_unit(unit).await
    }

    async fn settled(&self, unit: &str) -> zbus::Result<UnitState> {
        loop {
            let state = self.look(unit).await?;
            if !state.job && !matches!(state.active.as_str(), "activating" | "deactivating") {
                return Ok(state);
            }
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(end: ProcessEnd, text: &str) -> UnitState {
        UnitState {
            load: "loaded".to_owned(),
            active: "failed".to_owned(),
            job: false,
            result: "exit-code".to_owned(),
            text: text.to_owned(),
            end,
        }
    }

    #[test]
    fn the_engines_own_words_come_first() {
        let state = ended(ProcessEnd::Exit(69), "No /dev/kvm: load kvm_amd.");
        assert_eq!(
            state.ending("kemari-vm@vm.service"),
            "No /dev/kvm: load kvm_amd (kemari-vm@vm.service: exit status 69)"
        );
        let silent = ended(ProcessEnd::Signal(9), "vm: active").ending("u.service");
        assert_eq!(
            silent,
            "u.service ended (killed by signal 9): see journalctl -u u.service"
        );
    }
}
