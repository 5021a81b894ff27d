// SPDX-License-Identifier: Apache-2.0
//! The thread that carries console output out.
//!
//! Nothing is dropped: while the sink cannot take output, it stays in the event-tap, and when that
//! is full the guest waits.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kemari_api::Generation;
use kemari_api::config::ConsoleSink;

use super::InputSlot;
use super::outlet::{Origin, Outlet};
use super::tap::{Console, Job};

/// Between two attempts at a sink that cannot be opened.
const RETRY: Duration = Duration::from_millis(100);

/// Starts the thread.
pub fn start(
    console: Arc<Console>,
    sink: ConsoleSink,
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
        .name("console-sink".into())
        .spawn(move || carrier.run(&console))
        .map(drop)
}

struct Carrier {
    sink: ConsoleSink,
    origin: Origin,
    input: InputSlot,
    open: Option<(Generation, Outlet)>,
    failing: bool,
}

impl Carrier {
    fn run(mut self, console: &Console) {
        loop {
            let job = console.next();
            match self.write(&job) {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(vm = %self.origin.vm, sink = %self.sink, "console sink takes output again");
                    }
                    console.taken(&job);
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
                    console.not_taken(&job);
                    thread::sleep(RETRY);
                }
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
