// SPDX-License-Identifier: Apache-2.0
//! `kemarictl keygen`: the cluster's key, made and replaced.
//!
//! The file is never changed in place: a new one is written beside it, with mode 0600 from its
//! first byte, and renamed. Copying it to the other nodes is left to the administrator, who has a
//! way to do that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use kemari_api::cluster_key::{
    ClusterKeyError, ClusterKeys, ClusterSecret, DEFAULT_PATH, KEYS_MAX,
};

/// What `kemarictl keygen` is told.
#[derive(Debug, Args)]
pub struct Keygen {
    /// The file.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    file: PathBuf,

    /// Add a new key that is accepted from other nodes and not yet shown to them.
    #[arg(long, group = "step")]
    add: bool,

    /// Show the newest key to other nodes; the old one is still accepted.
    #[arg(long, group = "step")]
    switch: bool,

    /// Keep only the key that is shown.
    #[arg(long, group = "step")]
    retire: bool,

    /// Show the fingerprints of the keys, and change nothing.
    #[arg(long, group = "step")]
    show: bool,
}

impl Keygen {
    /// Does it; returns what there is to say.
    ///
    /// # Errors
    /// There is a key already or none yet, it cannot be read, or the file not written.
    pub fn run(&self) -> anyhow::Result<String> {
        let path = self.file.as_path();
        let (keys, next) = match (self.add, self.switch, self.retire) {
            (true, ..) => {
                let keys = ClusterKeys::read(path)?.with(ClusterSecret::generate()?);
                let keys = keys.with_context(|| {
                    format!(
                        "{} holds {KEYS_MAX} keys already: finish replacing one first (--switch, \
                         --retire)",
                        path.display()
                    )
                })?;
                (keys, "--switch")
            }
            (_, true, _) => {
                let keys = ClusterKeys::read(path)?;
                if keys.accepted().len() < 2 {
                    bail!("{} holds one key: add another with --add", path.display());
                }
                (keys.newest_shown(), "--retire")
            }
            (_, _, true) => (ClusterKeys::read(path)?.only_shown(), ""),
            _ if self.show => return Ok(fingerprints(path, &ClusterKeys::read(path)?)),
            _ => {
                match ClusterKeys::read(path) {
                    Err(ClusterKeyError::Missing { .. }) => {}
                    Ok(_) => bail!(
                        "There is a cluster key {} already: copy it to the other nodes, or replace \
                         it (--add, --switch, --retire)",
                        path.display()
                    ),
                    Err(error) => return Err(error.into()),
                }
                (ClusterKeys::of(ClusterSecret::generate()?), "")
            }
        };
        write(path, &keys.to_text())
            .with_context(|| format!("Cannot write the cluster key {}", path.display()))?;
        Ok(fingerprints(path, &keys) + &advice(path, next))
    }
}

fn fingerprints(path: &Path, keys: &ClusterKeys) -> String {
    let mut text = format!("{}:\n", path.display());
    for (index, secret) in keys.accepted().iter().enumerate() {
        let use_of_it = if index == 0 { "shown" } else { "accepted" };
        let fingerprint = secret.public_key().fingerprint();
        text.push_str(&format!("  {fingerprint}  {use_of_it}\n"));
    }
    text
}

fn advice(path: &Path, next: &str) -> String {
    let path = path.display();
    let mut text = format!(
        "Copy it to every node (scp -p {path} root@NODE:{path}); engines use it when they are \
         started again.\n"
    );
    if !next.is_empty() {
        text.push_str(&format!(
            "When all were: kemarictl keygen {next}, and the same again.\n"
        ));
    }
    text
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(directory)?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        keygen: Keygen,
    }

    fn keygen(path: &Path, options: &[&str]) -> anyhow::Result<String> {
        let file = ["keygen", "--file", path.to_str().unwrap()];
        Line::try_parse_from(file.iter().chain(options))?
            .keygen
            .run()
    }

    fn shown(path: &Path) -> String {
        let keys = ClusterKeys::read(path).unwrap();
        keys.shown().public_key().fingerprint().to_string()
    }

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kemari/cluster.key");
        let told = keygen(&path, &[]).unwrap();
        assert!(
            told.contains(&shown(&path)) && told.contains("scp -p"),
            "{told}"
        );
        let secret = fs::read_to_string(&path).unwrap();
        let digits = secret.split_whitespace().last().unwrap();
        assert!(!told.contains(digits), "the secret stays in its file");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let told = keygen(&path, &[]).unwrap_err().to_string();
        assert!(told.contains("already") && told.contains("--add"), "{told}");
        assert_eq!(fs::read_to_string(&path).unwrap(), secret);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_is_replaced_in_steps_that_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        let told = keygen(&path, &["--add"]).unwrap_err().to_string();
        assert!(told.contains("kemarictl keygen"), "{told}");
        keygen(&path, &[]).unwrap();
        assert!(keygen(&path, &["--switch"]).is_err(), "there is one key");
        let old = shown(&path);
        assert!(keygen(&path, &["--add"]).unwrap().contains("--switch"));
        assert_eq!(shown(&path), old);
        assert!(keygen(&path, &["--switch"]).unwrap().contains("--retire"));
        let new = shown(&path);
        assert_ne!(new, old);
        let told = keygen(&path, &["--show"]).unwrap();
        assert!(told.contains(&old) && told.contains(&new), "{told}");
        keygen(&path, &["--retire"]).unwrap();
        assert_eq!(shown(&path), new);
        assert!(!keygen(&path, &["--show"]).unwrap().contains(&old));
        assert!(
            keygen(&path, &["--add", "--retire"]).is_err(),
            "one step at a time"
        );
    }
}
