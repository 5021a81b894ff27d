// SPDX-License-Identifier: Apache-2.0
//! `org.kemari.Replica1` as an object on a connection: each method becomes one request to the
//! conductor, each refusal a D-Bus error with its sentence.

use std::fs::File;

use kemari_api::Generation;
use kemari_api::config::LinkAddresses;
use kemari_api::figures::{Comparison, ReplicaFigures};
use kemari_api::replica::{AfterSnapshot, LinkView, Promotion, ReplicaStatus};
use zbus::OwnedFd;
use zbus::fdo;
use zbus::object_server::SignalEmitter;

use super::{Consoles, monitor};
use crate::conductor::{Answer, ConductorHandle, Refusal, Request};

/// The object of one connection.
pub struct Interface {
    conductor: ConductorHandle,
    consoles: Consoles,
}

impl Interface {
    /// An object that speaks for this conductor and shows its console.
    pub fn new(conductor: ConductorHandle, consoles: Consoles) -> Self {
        Self {
            conductor,
            consoles,
        }
    }

    async fn ask(&self, request: Request) -> fdo::Result<()> {
        refused(self.conductor.ask(request).await)
    }
}

fn refused(answer: Answer) -> fdo::Result<()> {
    answer.map_err(|refusal| fdo::Error::Failed(refusal.to_string()))
}

#[zbus::interface(name = "org.kemari.Replica1")]
impl Interface {
    fn status(&self) -> ReplicaStatus {
        self.conductor.status()
    }

    #[zbus(signal)]
    pub async fn changed(emitter: &SignalEmitter<'_>, status: ReplicaStatus) -> zbus::Result<()>;

    async fn promote(&self, how: Promotion, generation: Generation) -> fdo::Result<()> {
        self.ask(Request::Promote { how, generation }).await
    }

    async fn demote(&self) -> fdo::Result<()> {
        self.ask(Request::Demote).await
    }

    async fn protect(&self, address: &str) -> fdo::Result<()> {
        match address.parse::<LinkAddresses>() {
            Ok(addresses) => self.ask(Request::Protect(addresses)).await,
            Err(error) => refused(Err(Refusal::Address(error))),
        }
    }

    async fn go_solo(&self, generation: Generation) -> fdo::Result<()> {
        self.ask(Request::GoSolo(generation)).await
    }

    async fn outdate(&self, generation: Generation) -> fdo::Result<()> {
        self.ask(Request::Outdate(generation)).await
    }

    async fn save_snapshot(&self, file: OwnedFd, after: AfterSnapshot) -> fdo::Result<()> {
        let file = File::from(std::os::fd::OwnedFd::from(file));
        self.ask(Request::SaveSnapshot(file, after)).await
    }

    async fn console(&self, from: u64) -> fdo::Result<OwnedFd> {
        self.consoles
            .attach(&self.conductor, from)
            .map(OwnedFd::from)
            .map_err(fdo::Error::Failed)
    }

    async fn power_button(&self) -> fdo::Result<()> {
        self.ask(Request::PowerButton).await
    }

    async fn quit(&self) -> fdo::Result<()> {
        self.ask(Request::Quit).await
    }

    async fn links(&self) -> fdo::Result<Vec<LinkView>> {
        let links = self.conductor.links().await;
        links.map_err(|refusal| fdo::Error::Failed(refusal.to_string()))
    }

    fn figures(&self) -> ReplicaFigures {
        self.conductor.figures()
    }

    async fn verify(&self) -> fdo::Result<Comparison> {
        match self.conductor.ask(Request::Verify).await {
            Ok(()) => Ok(Comparison {
                equal: true,
                detail: "the disks of both replicas are equal".to_owned(),
            }),
            Err(Refusal::Differ(detail)) => Ok(Comparison {
                equal: false,
                detail,
            }),
            Err(refusal) => Err(fdo::Error::Failed(refusal.to_string())),
        }
    }

    async fn monitor(&self, line: &str) -> fdo::Result<String> {
        monitor::run(&self.conductor, line)
            .await
            .map_err(|error| fdo::Error::Failed(error.to_string()))
    }
}
