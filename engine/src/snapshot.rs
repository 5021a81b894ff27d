// SPDX-License-Identifier: Apache-2.0
//! `kemari-engine snapshot`: a guest into a file, seen from outside the engine that runs it.
//!
//! The file is opened here and handed to the engine, which cannot open any: it is sandboxed. It is
//! written beside its final name and renamed when it is whole, so a file of that name is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use kemari_api::replica::{self, AfterSnapshot, ReplicaProxy, refusal_text};
use kemari_api::{NodeName, VmName};
use zbus::Fd;

use crate::RunArguments;
use crate::exit::{Failure, FailureKind};

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Write a running guest, memory and all, to a file, and end its engine
    ///
    /// The guest stands still from the cut on, so nothing it does is lost or done twice when it is
    /// restored. Its disks belong to the snapshot: do not change them before the restore.
    Save(SaveArguments),
    /// Run a guest on from a file
    ///
    /// The description must be that of the saved guest, on this or another node; its disks must be
    /// as they were at the save.
    Restore(RestoreArguments),
}

/// What `snapshot save` was told.
#[derive(Debug, Args)]
pub struct SaveArguments {
    /// The VM's name
    vm: VmName,
    /// The file to make; it must not exist
    file: PathBuf,
    /// Let the guest go on. The snapshot is then worth something only with a copy of its disks made
    /// at the same moment
    #[arg(long = "continue")]
    go_on: bool,
}

/// What `snapshot restore` was told.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The description of the VM, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The snapshot
    snapshot: PathBuf,
    /// The name of this node in the cluster; the host name if not given
    #[arg(long, value_name = "NAME", env = "KEMARI_NODE")]
    node: Option<NodeName>,
    /// Restore although the guest may have run on since the snapshot was made
    #[arg(long)]
    force: bool,
    /// Keep all rights while the guest runs; for debugging only
    #[arg(long)]
    no_sandbox: bool,
}

impl RestoreArguments {
    /// The same as a run.
    pub fn into_run(self) -> RunArguments {
        RunArguments {
            config: self.config,
            incoming: None,
            node: self.node,
            force: self.force,
            no_sandbox: self.no_sandbox,
            restore: Some(self.snapshot),
        }
    }
}

/// Saves a guest.
pub fn save(arguments: &SaveArguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    runtime.block_on(save_to_file(arguments))
}

async fn save_to_file(arguments: &SaveArguments) -> Result<(), Failure> {
    let (engine, _) = replica::connect(&arguments.vm)
        .await
        .map_err(|error| Failure::new(FailureKind::Other, &error))?;
    let target = &arguments.file;
    if target.exists() {
        return Err(Failure::told(
            FailureKind::Other,
            format!("{} exists already; name another file", target.display()),
        ));
    }
    let partial = partial_name(target);
    let file = create(&partial)?;
    let after = if arguments.go_on {
        AfterSnapshot::Continue
    } else {
        AfterSnapshot::Stop
    };
    let saved = tokio::select! {
        saved = engine.save_snapshot(Fd::from(file.as_fd()), after) => saved,
        () = show_progress(&engine) => Ok(()),
    };
    if let Err(error) = saved {
        let _ = fs::remove_file(&partial);
        return Err(Failure::told(FailureKind::Other, refusal_text(&error)));
    }
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    fs::rename(&partial, target).map_err(|error| cannot("name", target, &error))?;
    println!("{}: {} MiB", target.display(), bytes >> 20);
    Ok(())
}

fn partial_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// A new file that only its owner may read: it holds the guest's memory.
fn create(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| cannot("create", path, &error))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::told(
        FailureKind::Other,
        format!(
            "Cannot {what} {}: {error}; check the directory and its free space",
            path.display()
        ),
    )
}

/// Shows how far the engine is, on a terminal; never ends.
async fn show_progress(engine: &ReplicaProxy<'_>) {
    let terminal = std::io::stderr().is_terminal();
    if let Ok(mut changes) = engine.receive_changed().await {
        while let Some(change) = changes.next().await {
            if terminal && let Ok(arguments) = change.args() {
                let mut out = std::io::stderr().lock();
                let _ = write!(out, "\r{}\x1b[K", arguments.status.detail);
            }
        }
    }
    std::future::pending::<()>().await;
}
