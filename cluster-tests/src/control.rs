// SPDX-License-Identifier: Apache-2.0
//! How a person reaches a bed that another process holds: a unix socket in the run's directory.
//!
//! One request line, one answer. `nodes`, `status`, `down`, and `kill`, `on`, `cut`, `heal`, `freeze`, `thaw` and `enter`
//! with a node's name. An answer begins with `ok ` or `error `. `enter` gives the words of a command that runs what is put
//! behind them inside the node, one word a line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::namespaces::Namespaces;
use crate::supervisor::RUNS;

const SOCKET: &str = "control";

/// Answers requests about a bed, one after the other, until one of them is `down`; gives that one's client, to be
/// answered with [`answer_down`] when the bed is gone.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(bed: &Namespaces) -> Result<UnixStream> {
    let path = bed.supervisor().run_directory().join(SOCKET);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("Cannot listen on {}", path.display()))?;
    loop {
        let (client, _) = listener.accept().context("Cannot accept a client")?;
        let mut line = String::new();
        if BufReader::new((&client).take(256))
            .read_line(&mut line)
            .is_ok()
        {
            if line.trim() == "down" {
                return Ok(client);
            }
            let answer = match act(bed, line.trim()) {
                Ok(answer) => format!("ok {answer}"),
                Err(error) => format!("error {error:#}"),
            };
            let _ = (&client).write_all(answer.as_bytes());
        }
    }
}

/// Tells the client that asked for it that the bed is gone.
pub fn answer_down(mut client: UnixStream) {
    let _ = client.write_all(b"ok ");
}

fn act(bed: &Namespaces, line: &str) -> Result<String> {
    let (action, node) = line.split_once(' ').unwrap_or((line, ""));
    match action {
        "nodes" => return Ok(bed.nodes().join(" ")),
        "status" => return status(bed),
        "enter" => return enter(bed, node),
        "kill" => bed.kill(node)?,
        "on" => bed.power_on(node)?,
        "cut" => bed.cut(node)?,
        "heal" => bed.heal(node)?,
        "freeze" => bed.freeze(node)?,
        "thaw" => bed.thaw(node)?,
        _ => bail!("The action {action:?} does not exist"),
    }
    Ok(String::new())
}

fn status(bed: &Namespaces) -> Result<String> {
    let mut text = String::new();
    for node in bed.nodes() {
        let power = if bed.is_on(node)? { "on" } else { "off" };
        text += &format!("{node} {} power {power}\n", bed.address(node)?);
    }
    text += &bed.supervisor().run("ip", &["-br", "link"])?;
    Ok(text)
}

fn enter(bed: &Namespaces, node: &str) -> Result<String> {
    let command = bed.command(node, &[])?;
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    Ok(words.join("\n"))
}

/// The directory of the run with this name, or of the only run that can be reached when there is no name.
pub fn find(name: Option<&str>) -> Result<PathBuf> {
    if let Some(name) = name {
        let run = Path::new(RUNS).join(name);
        ensure!(run.join(SOCKET).exists(), "No bed called {name} is up");
        return Ok(run);
    }
    let mut runs: Vec<PathBuf> = fs::read_dir(RUNS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|run| UnixStream::connect(run.join(SOCKET)).is_ok())
        .collect();
    match (runs.pop(), runs.is_empty()) {
        (Some(run), true) => Ok(run),
        (Some(_), false) => bail!("Several beds are up; name one with --run (see {RUNS})"),
        (None, _) => bail!("No bed is up; `bed up` makes one"),
    }
}

/// Sends one request to a run and gives the answer without its `ok`.
pub fn request(run: &Path, line: &str) -> Result<String> {
    let path = run.join(SOCKET);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("Cannot reach the bed through {}", path.display()))?;
    writeln!(stream, "{line}")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once(' ') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        Some(("error", reason)) => bail!("{reason}"),
        _ => bail!("The bed ended before it answered"),
    }
}
