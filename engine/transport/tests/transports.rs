// SPDX-License-Identifier: Apache-2.0
//! Connections over real sockets of this machine: who gets through, who does not and what both
//! sides are told.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

mod node;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::thread;
use std::time::{Duration, Instant};

use kemari_transport::{Connection, Listener, TlsFileError};
use node::{Node, PATIENCE, address, key_file, meet, meet_at};
use proptest::prelude::*;

/// Sends and receives so much on both sides at the same time; more than all buffers between hold.
const BOTH_WAYS_BYTES: usize = 24 << 20;

fn cluster() -> (Node, Node) {
    let key = key_file(&[1]);
    (Node::with_key(&key), Node::with_key(&key))
}

/// What one side heard and what the other did.
fn refused(active: &Node, passive: &Node) -> (String, String) {
    let (active, passive) = meet(active, passive);
    (active.unwrap_err(), passive.unwrap_err())
}

fn echo(active: &Connection, passive: &Connection) {
    active.send(b"request").unwrap();
    passive.clone().read_exact(&mut [0; 7]).unwrap();
    passive.send(b"answer").unwrap();
    let mut answer = [0; 6];
    active.clone().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn nodes_with_one_key_meet_and_a_key_is_replaced_while_they_do() {
    let old = Node::with_key(&key_file(&[1]));
    let accepts_both = Node::with_key(&key_file(&[1, 2]));
    let shows_new = Node::with_key(&key_file(&[2, 1]));
    let new = Node::with_key(&key_file(&[2]));
    for (one, other) in [
        (&old, &old),
        (&old, &accepts_both),
        (&accepts_both, &shows_new),
        (&shows_new, &new),
        (&new, &new),
    ] {
        for (active, passive) in [(one, other), (other, one)] {
            let (active, passive) = meet(active, passive);
            echo(&active.unwrap(), &passive.unwrap());
        }
    }
    // What was skipped is why there are steps.
    let (active, passive) = refused(&old, &shows_new);
    assert!(active.contains("the other side shows the key"), "{active}");
    assert!(
        passive.contains("does not accept the cluster key"),
        "{passive}"
    );
}

#[test]
fn another_key_is_refused_on_both_sides_with_file_and_fingerprint() {
    let (ours, theirs) = (key_file(&[1]), key_file(&[2]));
    let (active, passive) = refused(&Node::with_key(&ours), &Node::with_key(&theirs));
    for (told, file) in [(&active, &ours), (&passive, &theirs)] {
        assert!(told.contains(&file.path.display().to_string()), "{told}");
        assert!(told.contains(&file.fingerprint()), "{told}");
        assert!(told.contains("copy one key file to both nodes"), "{told}");
    }
    assert!(active.contains(&theirs.fingerprint()), "{active}");
}

#[test]
fn a_side_without_tls_is_named_as_such() {
    let (node, _) = cluster();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    let plain = thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        let _ = caller.read(&mut [0; 4096]);
        caller
            .write_all(b"KMRI\x01\x02 a frame of its own")
            .unwrap();
        caller
    });
    let told = node.connect(&format!("kemari:tls:{place}")).unwrap_err();
    assert!(told.contains("it uses kemari:tcp:"), "{told}");
    assert!(told.contains("kemarictl keygen"), "{told}");
    drop(plain.join().unwrap());

    let (listener, place) = node.listen("kemari:tls:127.0.0.1");
    let caller = thread::spawn(move || {
        let mut socket = TcpStream::connect(place).unwrap();
        socket.write_all(b"KMRI a greeting").unwrap();
        let mut alert = Vec::new();
        socket.read_to_end(&mut alert).unwrap();
        alert
    });
    let told = listener
        .accept()
        .unwrap()
        .greet(Instant::now() + PATIENCE)
        .unwrap_err();
    assert!(told.to_string().contains("is no TLS"), "{told}");
    // By which the plain side sees that it met TLS.
    assert!(caller.join().unwrap().starts_with(&[0x15, 0x03]));
}

#[test]
fn certificates_of_one_authority_meet_by_name_and_by_address() {
    let authority = node::Authority::new("cluster");
    for name in ["localhost", "127.0.0.1"] {
        let (a, b) = (authority.node(&[name]), authority.node(&[name]));
        let (active, passive) = meet_at(&a, &b, name);
        echo(&active.unwrap(), &passive.unwrap());
    }
}

#[test]
fn certificates_that_do_not_hold_are_refused_with_the_reason() {
    let authority = node::Authority::new("cluster");
    let good = authority.node(&["localhost"]);

    let expired = authority.node_valid(&["localhost"], -30, -3);
    let (active, passive) = refused(&good, &expired);
    assert!(active.contains("has expired since 3 days"), "{active}");
    assert!(active.contains("clock"), "{active}");
    assert!(passive.contains("by the other node's clock"), "{passive}");
    let (active, passive) = refused(&expired, &good);
    assert!(passive.contains("has expired since 3 days"), "{passive}");
    assert!(active.contains("by the other node's clock"), "{active}");

    let early = authority.node_valid(&["localhost"], 5, 30);
    let (active, _) = refused(&good, &early);
    assert!(active.contains("will not be valid for another"), "{active}");

    let misnamed = authority.node(&["node7.example.org"]);
    let (active, passive) = refused(&good, &misnamed);
    assert!(active.contains("node7.example.org"), "{active}");
    assert!(passive.contains("not for the name"), "{passive}");

    let foreign = node::Authority::new("another").node(&["localhost"]);
    let (active, passive) = refused(&good, &foreign);
    assert!(active.contains("is not accepted by"), "{active}");
    assert!(passive.contains("tls_authority"), "{passive}");
    let (active, _) = refused(&foreign, &good);
    assert!(active.contains("is not accepted by"), "{active}");

    let keyed = Node::with_key(&key_file(&[1]));
    for (one, other) in [(&good, &keyed), (&keyed, &good)] {
        let (active, passive) = refused(one, other);
        assert!(active.contains("different means"), "{active}");
        assert!(passive.contains("different means"), "{passive}");
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let authority = node::Authority::new("cluster");
    let node = authority.files(&["localhost"]);
    let with = |change: &dyn Fn(&mut node::CertificateFiles)| {
        let mut files = node.clone();
        change(&mut files);
        files.load().unwrap_err()
    };
    let error = with(&|files| files.key = authority.files(&["localhost"]).key);
    assert!(error.to_string().contains(".key"), "{error}");
    let error = with(&|files| files.certificate = files.key.clone());
    assert!(
        error.to_string().contains("holds no certificate"),
        "{error}"
    );
    let error = with(&|files| files.authority = "/nonexistent/ca.pem".into());
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
    std::fs::set_permissions(&node.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = node.load().unwrap_err();
    assert!(error.to_string().contains("chmod 0600"), "{error}");
    let missing = Node::load(&node::KeyFile::missing()).unwrap_err();
    assert!(missing.is_missing_key(), "{missing}");
    assert!(!matches!(error, TlsFileError::Library(_)), "{error}");
}

/// Two sides that send more than fits before either receives, each with one thread a direction.
fn both_ways(active: &Connection, passive: &Connection) {
    thread::scope(|scope| {
        for (seed, from, to) in [(1, active, passive), (2, passive, active)] {
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut left = BOTH_WAYS_BYTES;
                while left > 0 {
                    let mut piece = vec![0; random.usize(1..300_000).min(left)];
                    left -= piece.len();
                    piece.fill(u8::try_from(left % 251).unwrap());
                    from.send(&piece).unwrap();
                }
                from.finish();
            });
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut left = BOTH_WAYS_BYTES;
                let mut to = to.clone();
                while left > 0 {
                    let mut piece = vec![0; random.usize(1..300_000).min(left)];
                    to.read_exact(&mut piece).unwrap();
                    left -= piece.len();
                    let expected = u8::try_from(left % 251).unwrap();
                    assert!(piece.iter().all(|byte| *byte == expected));
                }
                assert_eq!(to.read(&mut [0]).unwrap(), 0, "and the end is seen");
            });
        }
    });
}

#[test]
fn both_directions_can_be_full_over_every_transport() {
    let (a, b) = cluster();
    let directory = tempfile::tempdir().unwrap();
    let path = format!("kemari:unix:{}/link", directory.path().display());
    for (listen, connect) in [
        ("kemari:tls:127.0.0.1", None),
        ("kemari:tcp:127.0.0.1", None),
        (path.as_str(), Some(path.as_str())),
    ] {
        let (active, passive) = node::meet_over(&a, &b, listen, connect);
        let (active, passive) = (active.unwrap(), passive.unwrap());
        for side in [&active, &passive] {
            side.set_receive_patience(PATIENCE).unwrap();
            side.set_send_patience(PATIENCE).unwrap();
        }
        both_ways(&active, &passive);
    }
}

#[test]
fn silence_and_a_peer_that_takes_nothing_end_a_wait() {
    let (a, b) = cluster();
    let (active, passive) = meet(&a, &b);
    let (active, _passive) = (active.unwrap(), passive.unwrap());
    active
        .set_receive_patience(Duration::from_millis(20))
        .unwrap();
    let silent = active.receive(&mut [0; 16]).unwrap_err().kind();
    assert!(matches!(silent, std::io::ErrorKind::WouldBlock), "{silent}");
    active.set_send_patience(Duration::from_millis(20)).unwrap();
    let full = vec![0; 64 << 20];
    let stuck = active.send(&full).unwrap_err().kind();
    assert!(matches!(stuck, std::io::ErrorKind::WouldBlock), "{stuck}");
}

#[test]
fn a_third_thread_ends_a_wait() {
    let (a, b) = cluster();
    let (active, passive) = meet(&a, &b);
    let (active, passive) = (active.unwrap(), passive.unwrap());
    let waiting = active.clone();
    let waiter = thread::spawn(move || waiting.receive(&mut [0; 16]).map_err(|it| it.kind()));
    active.shut();
    let cut = waiter.join().unwrap();
    assert_eq!(cut, Err(std::io::ErrorKind::UnexpectedEof));
    // Not the same as an end in good order.
    let cut = passive.receive(&mut [0; 16]).map_err(|it| it.kind());
    assert_eq!(cut, Err(std::io::ErrorKind::UnexpectedEof));
}

#[test]
fn a_handshake_that_does_not_come_ends_at_the_deadline() {
    let (node, _) = cluster();
    let (listener, place) = node.listen("kemari:tls:127.0.0.1");
    let _silent = TcpStream::connect(place).unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    let told = listener.accept().unwrap().greet(deadline).unwrap_err();
    assert!(told.to_string().contains("did not end within"), "{told}");
    // One byte now and then does not prolong it.
    let mut dripping = TcpStream::connect(place).unwrap();
    let caller = listener.accept().unwrap();
    let done = thread::spawn(move || caller.greet(Instant::now() + Duration::from_millis(200)));
    dripping.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).unwrap();
    while !done.is_finished() && dripping.write_all(&[1]).is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(done.join().unwrap().is_err());
}

#[test]
fn a_unix_socket_is_private_and_replaced_only_when_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("link");
    let address = address(&format!("kemari:unix:{}", path.display()));
    let listener = Listener::bind(&address, None, None).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let told = Listener::bind(&address, None, None)
        .unwrap_err()
        .to_string();
    assert!(told.contains("a path of its own"), "{told}");
    drop(listener);
    Listener::bind(&address, None, None).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "data").unwrap();
    let told = Listener::bind(&address, None, None)
        .unwrap_err()
        .to_string();
    assert!(told.contains("no socket"), "{told}");
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
    let names = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(names, 1, "nothing is left beside it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, the listener is told of it in time and goes on with the next caller.
    #[test]
    fn garbage_ends_a_handshake_and_nothing_else(
        begins_like_tls in any::<bool>(),
        garbage in proptest::collection::vec(any::<u8>(), 1..600),
    ) {
        let (a, b) = cluster();
        let (listener, place) = a.listen("kemari:tls:127.0.0.1");
        let mut bad = TcpStream::connect(place).unwrap();
        if begins_like_tls {
            let length = u16::try_from(garbage.len()).unwrap().to_be_bytes();
            bad.write_all(&[0x16, 0x03, 0x01, length[0], length[1]]).unwrap();
        }
        bad.write_all(&garbage).unwrap();
        bad.shutdown(std::net::Shutdown::Write).unwrap();
        let deadline = Instant::now() + PATIENCE;
        prop_assert!(listener.accept().unwrap().greet(deadline).is_err());
        let good = thread::spawn(move || b.connect(&format!("kemari:tls:{place}")));
        prop_assert!(listener.accept().unwrap().greet(deadline).is_ok());
        prop_assert!(good.join().unwrap().is_ok());
    }

    /// A session whose bytes are changed on the way ends, and nothing wrong comes out of it.
    #[test]
    fn a_changed_byte_ends_the_session(at in 0_usize..40_000, flip in 1_u8..) {
        let (a, b) = cluster();
        let (listener, place) = b.listen("kemari:tls:127.0.0.1");
        let meddler = node::meddle(place, at, flip);
        let deadline = Instant::now() + PATIENCE;
        let passive = thread::spawn(move || listener.accept().unwrap().greet(deadline));
        let active = a.connect(&format!("kemari:tls:{meddler}"));
        let sent = vec![7; 60_000];
        if let Ok(active) = &active {
            let _ = active.send(&sent);
            active.finish();
        }
        let mut received = Vec::new();
        let outcome = match passive.join().unwrap() {
            Ok(mut passive) => passive.read_to_end(&mut received).map_err(drop),
            Err(_) => Err(()),
        };
        prop_assert!(outcome.is_err());
        prop_assert!(received.iter().all(|byte| *byte == 7));
    }
}
