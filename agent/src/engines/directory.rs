// SPDX-License-Identifier: Apache-2.0
//! Watches the run directory for control sockets.
//!
//! An engine binds its socket under a temporary name and renames it into place when it can
//! answer, so a name that appears is an engine that answers.

use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use kemari_api::{VmName, place};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc::UnboundedSender;
use tracing::error;

/// Starts a thread that reports every control socket, those already there first.
///
/// # Errors
/// When the directory cannot be made or watched.
pub(super) fn watch(directory: PathBuf, found: UnboundedSender<VmName>) -> io::Result<()> {
    fs::create_dir_all(&directory)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let names = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
    inotify.add_watch(&directory, names)?;
    scan(&directory, &found)?;
    thread::Builder::new()
        .name("run-directory".to_owned())
        .spawn(move || {
            if let Err(error) = follow(&inotify, &directory, &found) {
                error!(directory = %directory.display(), %error, "Cannot watch for engines");
            }
        })?;
    Ok(())
}

fn follow(inotify: &Inotify, directory: &Path, found: &UnboundedSender<VmName>) -> io::Result<()> {
    while !found.is_closed() {
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                scan(directory, found)?;
            }
            let vm = event
                .name
                .as_ref()
                .and_then(|name| name.to_str())
                .and_then(place::vm_of_control_socket);
            if let Some(vm) = vm {
                let _ = found.send(vm);
            }
        }
    }
    Ok(())
}

fn scan(directory: &Path, found: &UnboundedSender<VmName>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if let Some(vm) = name.to_str().and_then(place::vm_of_control_socket) {
            let _ = found.send(vm);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_there_before_and_after_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("old.sock"), "").unwrap();
        let (found, mut names) = tokio::sync::mpsc::unbounded_channel();
        watch(path.clone(), found).unwrap();
        assert_eq!(names.recv().await.unwrap().as_str(), "old");
        fs::write(path.join("new.tmp"), "").unwrap();
        fs::rename(path.join("new.tmp"), path.join("new.sock")).unwrap();
        assert_eq!(names.recv().await.unwrap().as_str(), "new");
    }
}
