// SPDX-License-Identifier: Apache-2.0
//! Making disk images with the tools that people make them with.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kemari_bootdisk::{BootDiskError, BootFiles};
use tempfile::TempDir;

/// Identification of each ext4 file system made here, by partition.
pub const UUIDS: [&str; 3] = [
    "11111111-2222-3333-4444-000000000000",
    "11111111-2222-3333-4444-000000000001",
    "11111111-2222-3333-4444-000000000002",
];
/// Serial number of each FAT file system made here.
pub const SERIAL: &str = "CAFE-0123";

const SECTOR: u64 = 512;
pub const MIB: u64 = 1 << 20;

/// Ends the test early, and says so, where a tool is missing.
#[macro_export]
macro_rules! needs_tools {
    ($($tool:literal),+) => {
        for tool in [$($tool),+] {
            if !common::is_there(tool) {
                eprintln!("SKIPPED: {tool} is not installed");
                return;
            }
        }
    };
}

/// Whether a program is in the places that root's programs are in.
pub fn is_there(tool: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|directory| Path::new(directory).join(tool).exists())
}

pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    run_with_input(program, arguments, "")
}

pub fn run_with_input(program: &str, arguments: &[&dyn AsRef<OsStr>], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A place for images, gone with the test.
pub struct Workshop {
    directory: TempDir,
    made: std::cell::Cell<u32>,
}

impl Workshop {
    pub fn new() -> Self {
        Self {
            directory: TempDir::new().unwrap(),
            made: 0.into(),
        }
    }

    /// A path that nothing is at.
    pub fn path(&self, name: &str) -> PathBuf {
        self.made.set(self.made.get() + 1);
        self.directory
            .path()
            .join(format!("{}-{name}", self.made.get()))
    }

    /// A directory with these files; a content `-> x` makes a symbolic link.
    pub fn tree(&self, files: &[(&str, &str)]) -> PathBuf {
        let root = self.path("tree");
        fs::create_dir(&root).unwrap();
        for (path, content) in files {
            let path = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                None => fs::write(&path, content).unwrap(),
            }
        }
        root
    }

    /// An ext4 image of `mib` MiB with these files.
    pub fn ext4(&self, number: usize, mib: u64, files: &[(&str, &str)]) -> PathBuf {
        self.ext4_with(number, mib, files, &[])
    }

    pub fn ext4_with(
        &self,
        number: usize,
        mib: u64,
        files: &[(&str, &str)],
        options: &[&str],
    ) -> PathBuf {
        let image = self.path("ext4");
        let tree = self.tree(files);
        let size = format!("{mib}M");
        let mut arguments: Vec<&dyn AsRef<OsStr>> =
            vec![&"-q", &"-F", &"-L", &"guest", &"-U", &UUIDS[number], &"-d"];
        arguments.push(&tree);
        for option in options {
            arguments.push(option);
        }
        arguments.push(&image);
        arguments.push(&size);
        run("mkfs.ext4", &arguments);
        image
    }

    /// A FAT image of `mib` MiB with these files.
    pub fn fat(&self, mib: u64, bits: &str, files: &[(&str, &str)]) -> PathBuf {
        let image = self.path("fat");
        let tree = self.tree(files);
        let kib = (mib * 1024).to_string();
        let serial = SERIAL.replace('-', "");
        run(
            "mkfs.vfat",
            &[
                &"-C", &"-F", &bits, &"-n", &"ESP", &"-i", &serial, &image, &kib,
            ],
        );
        for entry in fs::read_dir(tree).unwrap() {
            run(
                "mcopy",
                &[&"-s", &"-i", &image, &entry.unwrap().path(), &"::/"],
            );
        }
        image
    }

    /// A GPT disk of these partitions: type as sgdisk knows it, and content.
    pub fn gpt(&self, partitions: &[(&str, &Path)]) -> PathBuf {
        let (disk, layout) = self.disk(partitions.iter().map(|(_, content)| *content));
        let mut arguments: Vec<String> = vec!["-o".into()];
        for (number, ((kind, _), (start, sectors))) in (1..).zip(partitions.iter().zip(layout)) {
            arguments.push(format!("--new={number}:{start}:{}", start + sectors - 1));
            arguments.push(format!("--typecode={number}:{kind}"));
            arguments.push(format!(
                "--partition-guid={number}:0fc63daf-8483-4772-8e79-00000000000{number}"
            ));
        }
        let mut all: Vec<&dyn AsRef<OsStr>> = Vec::new();
        for argument in &arguments {
            all.push(argument);
        }
        all.push(&disk);
        run("sgdisk", &all);
        disk
    }

    /// An MBR disk of these partitions, all of Linux' type, with disk signature 0x00c0ffee.
    pub fn mbr(&self, partitions: &[&Path]) -> PathBuf {
        let (disk, layout) = self.disk(partitions.iter().copied());
        let mut script = "label: dos\nlabel-id: 0x00c0ffee\n".to_owned();
        for (start, sectors) in layout {
            script.push_str(&format!("start={start}, size={sectors}, type=83\n"));
        }
        run_with_input("sfdisk", &[&"-q", &disk], &script);
        disk
    }

    /// A disk with the contents one after another, and their start and length in sectors.
    fn disk<'a>(&self, contents: impl Iterator<Item = &'a Path>) -> (PathBuf, Vec<(u64, u64)>) {
        let disk = self.path("disk.raw");
        let file = fs::File::create(&disk).unwrap();
        let mut at = MIB;
        let mut layout = Vec::new();
        for content in contents {
            let bytes = fs::read(content).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
            layout.push((at / SECTOR, bytes.len() as u64 / SECTOR));
            at += (bytes.len() as u64).next_multiple_of(MIB);
        }
        // Room for the table's copy.
        file.set_len(at + MIB).unwrap();
        (disk, layout)
    }
}

pub fn find(disk: &Path) -> Result<BootFiles, BootDiskError> {
    kemari_bootdisk::find(disk)
}

pub fn found(disk: &Path) -> BootFiles {
    find(disk).unwrap_or_else(|error| panic!("{error}"))
}

pub fn refusal(disk: &Path) -> String {
    find(disk).unwrap_err().to_string()
}

/// The kernel and initrd as text.
pub fn texts(files: &BootFiles) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        text(&files.kernel),
        files.initrd.as_deref().map(text).unwrap_or_default(),
    )
}
