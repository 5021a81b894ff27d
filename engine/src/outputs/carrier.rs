// SPDX-License-Identifier: Apache-2.0
//! The thread that lets outputs out: console bytes to the sink, packets to their TAP.
//!
//! Nothing is dropped: while the console's sink cannot take output, it stays in the event-tap with
//! all that came after it, and when that is full the guest waits.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kemari_api::Generation;
use kemari_replication::OutputKind;

use super::InputSlot;
use super::console_outlet::{Origin, Outlet, Sink};
use super::gate::{Job, Outputs};
use crate::sandbox;

/// Between two attempts at a sink that cannot be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Starts the thread.
pub fn start(
    outputs: Arc<Outputs>,
    sink: Sink,
    origin: Origin,
    input: InputSlot,
) -> io::Result<()> {
    let carrier = Carrier {
        sink,
        origin,
        input,
        open: None,
        failing: false,
    };
    thread::Builder::new()
        .name("outputs".into())
        .spawn(move || carrier.run(&outputs))
        .map(drop)
}

struct Carrier {
    sink: Sink,
    origin: Origin,
    input: InputSlot,
    open: Option<(Generation, Outlet)>,
    failing: bool,
}

impl Carrier {
    fn run(mut self, outputs: &Outputs) {
        sandbox::enter(sandbox::Kind::Outputs);
        loop {
            let job = outputs.next();
            match self.carry(&job, outputs) {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(vm = %self.origin.vm, sink = %self.sink, "console sink takes output again");
                    }
                    outputs.taken(&job);
                }
                Err(error) => {
                    self.open = None;
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(
                            vm = %self.origin.vm, sink = %self.sink, %error,
                            "console sink takes no output; it is kept, and the guest waits when \
                             the queue is full"
                        );
                    }
                    outputs.not_taken(&job);
                    thread::sleep(RETRY);
                }
            }
        }
    }

    fn carry(&mut self, job: &Job, outputs: &Outputs) -> io::Result<()> {
        let output = &job.release.output;
        match output.kind {
            OutputKind::Console => {
                self.write(job)?;
                outputs.history().record(output.position, &output.bytes);
                Ok(())
            }
            OutputKind::Network(port) => {
                // A description with fewer interfaces than the peer's is refused before it gets here.
                if let Some(interface) = outputs.interfaces().get(port.index()) {
                    interface.send(&output.bytes);
                }
                Ok(())
            }
        }
    }

    fn write(&mut self, job: &Job) -> io::Result<()> {
        let output = &job.release.output;
        let outlet = match &mut self.open {
            Some((generation, outlet)) if *generation == job.generation => outlet,
            _ => {
                let outlet = Outlet::open(
                    &self.sink,
                    &self.origin,
                    job.generation,
                    output.position,
                    &self.input,
                )?;
                &mut self.open.insert((job.generation, outlet)).1
            }
        };
        outlet.write(&output.bytes)
    }
}
