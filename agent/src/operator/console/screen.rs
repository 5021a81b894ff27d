// SPDX-License-Identifier: Apache-2.0
//! Standard output: the pieces one after the other, and words about what is missing between them.

use std::io::ErrorKind;

use anyhow::Context;
use kemari_api::console::{PIECE_HEADER_BYTES, PieceHeader};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, stderr, stdout};
use tokio::sync::watch;

/// How showing ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The engine closed.
    All,
    /// Nobody reads standard output any more.
    NobodyReads,
    /// It was told to leave.
    Left,
}

/// What was shown.
#[derive(Debug)]
pub(super) struct Screen {
    /// Where the next piece begins, if nothing is missing; not known before the first one.
    expected: Option<u64>,
    raw: bool,
}

impl Screen {
    /// Nothing was shown, or all up to `from`.
    pub(super) fn new(from: Option<u64>, raw: bool) -> Self {
        Self {
            expected: from,
            raw,
        }
    }

    /// Up to where the stream was shown.
    pub(super) fn position(&self) -> u64 {
        self.expected.unwrap_or_default()
    }

    /// Shows what comes until the engine closes, nobody reads, or it shall leave.
    pub(super) async fn show(
        &mut self,
        pieces: impl AsyncRead + Unpin,
        leaving: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Shown> {
        self.show_on(pieces, stdout(), leaving).await
    }

    async fn show_on(
        &mut self,
        mut pieces: impl AsyncRead + Unpin,
        mut out: impl AsyncWrite + Unpin,
        leaving: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Shown> {
        loop {
            let piece = tokio::select! {
                biased;
                _ = leaving.wait_for(|leaving| *leaving) => return Ok(Shown::Left),
                piece = read_piece(&mut pieces) => piece?,
            };
            let Some((position, bytes)) = piece else {
                return Ok(Shown::All);
            };
            if let Some(note) = gap(self.expected, position) {
                self.note(&note).await;
            }
            let written = async {
                out.write_all(&bytes).await?;
                out.flush().await
            };
            match written.await {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    return Ok(Shown::NobodyReads);
                }
                result => result.context("Cannot write to standard output")?,
            }
            self.expected = Some(position.saturating_add(bytes.len() as u64));
        }
    }

    async fn note(&self, text: &str) {
        let line = if self.raw {
            format!("\r\n[kemarictl: {text}]\r\n")
        } else {
            format!("kemarictl: {text}\n")
        };
        // As slow as the terminal, so not in the way of the keyboard.
        let mut words = stderr();
        let _ = words.write_all(line.as_bytes()).await;
        let _ = words.flush().await;
    }
}

/// What to say of a piece that does not begin where the last one ended.
fn gap(expected: Option<u64>, position: u64) -> Option<String> {
    match expected {
        None | Some(0) if position > 0 => Some(format!(
            "the first {position} bytes of the console's output are no longer kept here"
        )),
        Some(expected) if position > expected => Some(format!(
            "{} bytes of the console's output were passed over",
            position - expected
        )),
        Some(expected) if position < expected => Some(format!(
            "the guest was booted anew, or never put out {expected} bytes; from its byte {position}"
        )),
        _ => None,
    }
}

/// `None` when the engine has closed.
async fn read_piece(
    pieces: &mut (impl AsyncRead + Unpin),
) -> anyhow::Result<Option<(u64, Vec<u8>)>> {
    let mut header = [0; PIECE_HEADER_BYTES];
    if !read_all(pieces, &mut header).await? {
        return Ok(None);
    }
    let header = PieceHeader::read(header)?;
    let mut bytes = vec![0; header.len()];
    let whole = read_all(pieces, &mut bytes).await?;
    Ok(whole.then_some((header.position, bytes)))
}

/// False when the engine has closed, or was killed in the middle.
async fn read_all(pieces: &mut (impl AsyncRead + Unpin), bytes: &mut [u8]) -> anyhow::Result<bool> {
    match pieces.read_exact(bytes).await {
        Ok(_) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).context("The console's connection failed"),
    }
}

#[cfg(test)]
mod tests {
    use kemari_api::console::piece;

    use super::*;

    async fn shown(from: Option<u64>, pieces: &[u8]) -> (Vec<u8>, anyhow::Result<Shown>, u64) {
        let mut screen = Screen::new(from, false);
        let mut out = Vec::new();
        let (_leave, mut leaving) = watch::channel(false);
        let end = screen.show_on(pieces, &mut out, &mut leaving).await;
        (out, end, screen.position())
    }

    #[tokio::test]
    async fn pieces_are_shown_and_their_end_is_remembered() {
        let pieces = [piece(0, b"log").unwrap(), piece(3, b"in: ").unwrap()].concat();
        let (out, end, position) = shown(None, &pieces).await;
        assert_eq!(out, b"login: ");
        assert_eq!((end.unwrap(), position), (Shown::All, 7));
    }

    #[tokio::test]
    async fn a_piece_cut_off_is_not_shown_and_nonsense_is_refused() {
        let mut pieces = [piece(5, b"log").unwrap(), piece(8, b"in: ").unwrap()].concat();
        pieces.pop();
        let (out, end, position) = shown(Some(5), &pieces).await;
        assert_eq!(out, b"log");
        assert_eq!((end.unwrap(), position), (Shown::All, 8));
        let (_, end, _) = shown(None, &[0xff; 64]).await;
        assert!(end.unwrap_err().to_string().contains("announces"));
    }

    #[tokio::test]
    async fn who_leaves_is_shown_no_more() {
        let (leave, mut leaving) = watch::channel(false);
        leave.send_replace(true);
        let mut out = Vec::new();
        let pieces = piece(0, b"late").unwrap();
        let mut screen = Screen::new(None, true);
        let end = screen.show_on(&pieces[..], &mut out, &mut leaving);
        assert_eq!(end.await.unwrap(), Shown::Left);
        assert_eq!(out, b"");
    }

    #[test]
    fn what_is_missing_is_told_in_bytes() {
        assert_eq!(gap(None, 0), None);
        assert_eq!(gap(Some(7), 7), None);
        assert!(gap(None, 9).unwrap().contains("first 9 bytes"));
        assert!(gap(Some(7), 9).unwrap().starts_with("2 bytes"));
        assert!(gap(Some(7), 0).unwrap().contains("booted anew"));
    }
}
