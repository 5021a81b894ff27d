// SPDX-License-Identifier: Apache-2.0
//! Votes become durable in a thread of their own, since a disk may be slow, and count only then.

use std::sync::mpsc as std_mpsc;

use anyhow::Context;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{error, info};

use crate::arbitration::message::Record;
use crate::records::Store;

/// What the record thread is asked, in order.
pub(super) enum Durable {
    /// A vote.
    Record(Record),
    /// That this agent votes from now on.
    Admitted,
}

/// The thread that makes records durable and says when they are.
pub(super) fn start(
    store: Store,
) -> anyhow::Result<(std_mpsc::Sender<Durable>, UnboundedReceiver<Record>)> {
    let (sender, wanted) = std_mpsc::channel();
    let (written, from_durable) = unbounded_channel();
    std::thread::Builder::new()
        .name("records".to_owned())
        .spawn(move || keep(&store, &wanted, &written))
        .context("Cannot start the record thread")?;
    Ok((sender, from_durable))
}

fn keep(store: &Store, wanted: &std_mpsc::Receiver<Durable>, written: &UnboundedSender<Record>) {
    for what in wanted {
        let result = match &what {
            Durable::Record(record) => store.write(record),
            Durable::Admitted => store.admit(),
        };
        match (result, what) {
            (Ok(()), Durable::Record(record)) => {
                let _ = written.send(record);
            }
            (Ok(()), Durable::Admitted) => info!("This agent votes from now on"),
            (Err(error), _) => {
                let error = anyhow::Error::new(error);
                error!(
                    error = format!("{error:#}"),
                    "A vote could not be made durable, so it was not given: check the disk"
                );
            }
        }
    }
}
