// SPDX-License-Identifier: Apache-2.0
//! Of several calls of one active replica the newest counts.
//!
//! A replica whose link is silent calls again over another one while this side still waits for the
//! silence to last long enough. Its older call, whether it is being served or waits for its turn, is
//! then worth nothing, and the new one need not wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kemari_api::{Generation, NodeName};
use kemari_transport::Connection;

/// Which call it is; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallNumber(pub u64);

/// Who calls. One generation runs on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its node.
    pub node: NodeName,
    /// What it has the right to run by.
    pub generation: Generation,
}

/// What there is to do with a call whose turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Serve it.
    Serve,
    /// Hang up: the same replica has called again.
    Outdone,
}

/// How serving a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Own,
    /// It was ended for a newer call.
    Outdone,
}

/// The calls of active replicas.
#[derive(Debug, Default)]
pub struct Arrivals(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    newest: Option<(Who, CallNumber)>,
    served: Option<Served>,
}

#[derive(Debug)]
struct Served {
    who: Who,
    number: CallNumber,
    connection: Connection,
    ending: Ending,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call waits for its turn. An older one of the same replica that is being served is ended.
    pub fn arrived(&self, who: &Who, number: CallNumber) {
        let mut calls = self.lock();
        let newer = |(other, known): &(Who, CallNumber)| other != who || *known < number;
        if calls.newest.as_ref().is_none_or(newer) {
            calls.newest = Some((who.clone(), number));
        }
        if let Some(served) = &mut calls.served
            && served.who == *who
            && served.number < number
        {
            served.ending = Ending::Outdone;
            served.connection.shut();
        }
    }

    /// A call's turn has come.
    pub fn begin(&self, who: &Who, number: CallNumber, connection: &Connection) -> Turn {
        let mut calls = self.lock();
        let outdone = |(other, newest): &(Who, CallNumber)| other == who && number < *newest;
        if calls.newest.as_ref().is_some_and(outdone) {
            return Turn::Outdone;
        }
        calls.served = Some(Served {
            who: who.clone(),
            number,
            connection: connection.clone(),
            ending: Ending::Own,
        });
        Turn::Serve
    }

    /// The call that was being served has ended.
    pub fn end(&self) -> Ending {
        let served = self.lock().served.take();
        served.map_or(Ending::Own, |served| served.ending)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use kemari_api::config::ReplicationAddress;
    use kemari_transport::{Patience, connect};

    use super::*;

    fn who(node: &str, generation: u64) -> Who {
        Who {
            node: node.parse().unwrap(),
            generation: Generation::new(generation),
        }
    }

    /// A connection to nobody, and its other end, which must stay.
    fn connection() -> (Connection, impl Sized) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("link");
        let listener = UnixListener::bind(&path).unwrap();
        let patience = Patience {
            reach: Duration::from_secs(30),
            answer: Duration::from_secs(30),
        };
        let connection = connect(&ReplicationAddress::Unix(path), None, patience).unwrap();
        let other = listener.accept().unwrap();
        (connection, (directory, listener, other))
    }

    #[test]
    fn a_call_that_is_served_ends_when_the_same_replica_calls_again() {
        let arrivals = Arrivals::default();
        let (mut served, _other) = connection();
        let a = who("a", 3);
        arrivals.arrived(&a, CallNumber(1));
        assert_eq!(arrivals.begin(&a, CallNumber(1), &served), Turn::Serve);
        arrivals.arrived(&a, CallNumber(2));
        // It does not wait for ever.
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        assert_eq!(arrivals.end(), Ending::Outdone);
        assert_eq!(arrivals.begin(&a, CallNumber(2), &served), Turn::Serve);
        assert_eq!(arrivals.end(), Ending::Own);
    }

    #[test]
    fn a_call_that_waits_is_passed_over_when_the_same_replica_calls_again() {
        let arrivals = Arrivals::default();
        let (served, _other) = connection();
        let a = who("a", 3);
        // Greetings may come in another order than the connections.
        arrivals.arrived(&a, CallNumber(2));
        arrivals.arrived(&a, CallNumber(1));
        assert_eq!(arrivals.begin(&a, CallNumber(1), &served), Turn::Outdone);
        assert_eq!(arrivals.begin(&a, CallNumber(2), &served), Turn::Serve);
    }

    #[test]
    fn nobody_else_ends_a_call() {
        let arrivals = Arrivals::default();
        let (served, _other) = connection();
        arrivals.arrived(&who("a", 3), CallNumber(1));
        arrivals.begin(&who("a", 3), CallNumber(1), &served);
        arrivals.arrived(&who("b", 3), CallNumber(2));
        arrivals.arrived(&who("a", 4), CallNumber(3));
        assert_eq!(arrivals.end(), Ending::Own);
    }
}
