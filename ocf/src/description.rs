// SPDX-License-Identifier: Apache-2.0
//! Which VM the resource is, and whether this node can run it.
//!
//! The parameter `config` names a file; the file names the VM. `start` leaves a note
//! (`kemari_api::place::unit_environment`) that says which VM was started from which file, so that
//! a running VM can still be monitored and stopped after its file was damaged or removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use kemari_api::config::{ConfigError, VmConfig, shown};
use kemari_api::{VmName, note, place};

use crate::actions::shutdown;
use crate::environment::{CheckLevel, Environment};
use crate::exit::{Code, Failure, inform};

/// The device every VM needs.
const KVM: &str = "/dev/kvm";
/// The engine as the package installs it.
const ENGINE: &str = "/usr/sbin/kemari-engine";

/// The parameter `config`, checked in itself.
///
/// # Errors
/// `OCF_ERR_CONFIGURED`.
pub(crate) fn config_path(environment: &Environment) -> Result<&Path, Failure> {
    let wrong = |reason: String| Err(Failure::new(Code::Configured, reason));
    let Some(path) = environment.config.as_deref() else {
        return wrong(
            "The parameter 'config' is not set: give the path of the VM description, as in \
             config=/etc/kemari/vm.toml"
                .to_owned(),
        );
    };
    if !path.is_absolute() {
        return wrong(format!(
            "config={} is no absolute path: begin it with '/'",
            path.display()
        ));
    }
    if !fits_environment_file(path) {
        return wrong(format!(
            "config={} has characters systemd would change in an environment file: use no quotes, \
             backslashes or control characters, and no blank at the end",
            path.display()
        ));
    }
    Ok(path)
}

/// systemd.exec(5), "EnvironmentFile=": quotes and backslashes are interpreted, trailing blanks
/// are cut off.
fn fits_environment_file(path: &Path) -> bool {
    path.to_str().is_some_and(|text| {
        !text.ends_with(char::is_whitespace)
            && !text
                .chars()
                .any(|c| c.is_control() || matches!(c, '"' | '\'' | '\\'))
    })
}

/// Reads the description.
///
/// # Errors
/// `OCF_ERR_INSTALLED` if this node has no such file, `OCF_ERR_PERM` if it may not be read,
/// `OCF_ERR_CONFIGURED` if its content is wrong.
pub(crate) fn load(path: &Path) -> Result<VmConfig, Failure> {
    VmConfig::load(path).map_err(|error| {
        let code = match &error {
            ConfigError::Read { cause, .. } => code_of_missing(cause),
            ConfigError::Invalid { .. } => Code::Configured,
        };
        Failure::new(code, error.to_string())
    })
}

/// Checks the parameters, and deep also what a start needs of this node.
///
/// A basic check passes on a node without the description: it may be one that only votes, and the
/// parameters are right all the same. A description that is here is read.
///
/// # Errors
/// `OCF_ERR_CONFIGURED`, `OCF_ERR_INSTALLED` or `OCF_ERR_PERM` with the remedy.
pub(crate) fn validate(environment: &Environment, check: CheckLevel) -> Result<(), Failure> {
    if check == CheckLevel::Deep {
        return startable(environment).map(drop);
    }
    shutdown::timeout_of(environment)?;
    match load(config_path(environment)?) {
        Err(failure) if failure.code == Code::Installed => {
            inform(format!("No replica can run on this node: {failure}"));
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Checks everything a start needs of this node, and says which VM would be started.
///
/// # Errors
/// `OCF_ERR_CONFIGURED`, `OCF_ERR_INSTALLED` or `OCF_ERR_PERM` with the remedy.
pub(crate) fn startable(environment: &Environment) -> Result<VmName, Failure> {
    shutdown::timeout_of(environment)?;
    let config = load(config_path(environment)?)?;
    for file in config.boot_files().chain(config.disk_files()) {
        let key = shown(&file.key);
        readable(file.path, &format!("correct {key} in the VM description"))?;
    }
    readable(Path::new(ENGINE), "install the package kemari on this node")?;
    kvm_usable()?;
    Ok(config.vm.name)
}

fn readable(path: &Path, remedy: &str) -> Result<(), Failure> {
    let failed = |error: &io::Error| {
        let text = format!("Cannot read {}: {error}; {remedy}", path.display());
        Failure::new(code_of_missing(error), text)
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(failed(&ErrorKind::IsADirectory.into()));
    }
    Ok(())
}

fn kvm_usable() -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    opened.map(drop).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => "run the agent as root",
            _ => "enable virtualisation in the firmware and load kvm_intel or kvm_amd",
        };
        let text = format!("Cannot open {KVM}: {error}; {remedy}");
        Failure::new(code_of_missing(&error), text)
    })
}

fn code_of_missing(error: &io::Error) -> Code {
    match error.kind() {
        ErrorKind::PermissionDenied => Code::Permission,
        _ => Code::Installed,
    }
}

/// The VM this resource is on this node: the one that was started from the file, else the one the
/// file describes now. None if neither is known: then nothing of it can be running.
pub(crate) fn vm(path: &Path) -> Option<VmName> {
    started_from(path).or_else(|| Some(VmConfig::load(path).ok()?.vm.name))
}

fn started_from(path: &Path) -> Option<VmName> {
    let note = note::description(path);
    fs::read_dir(place::run_dir())
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|file| {
            file.extension().is_some_and(|end| end == "env")
                && fs::read_to_string(file).is_ok_and(|text| text == note)
        })
        .and_then(|file| file.file_stem()?.to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn with_config(path: &str) -> Environment {
        Environment {
            config: Some(PathBuf::from(path)),
            ..Environment::default()
        }
    }

    #[test]
    fn a_missing_parameter_is_a_configuration_error_that_names_it() {
        let failure = config_path(&Environment::default()).unwrap_err();
        assert_eq!(failure.code, Code::Configured);
        assert!(failure.reason.contains("'config'"), "{failure}");
    }

    #[test]
    fn a_path_the_unit_could_not_be_told_is_refused() {
        for bad in ["vm.toml", "/etc/a\"b", "/etc/a\\b", "/etc/a\nb", "/etc/a "] {
            let failure = config_path(&with_config(bad)).unwrap_err();
            assert_eq!(failure.code, Code::Configured, "{bad:?}");
        }
        assert!(config_path(&with_config("/etc/ke mari/vm.toml")).is_ok());
    }

    #[test]
    fn a_missing_description_concerns_this_node_and_a_wrong_one_every_node() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.toml");
        assert_eq!(load(&path).unwrap_err().code, Code::Installed);
        fs::write(&path, "[vm]\nname = \"a\"\n").unwrap();
        assert_eq!(load(&path).unwrap_err().code, Code::Configured);
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let failure = readable(Path::new("/nonexistent/bzImage"), "give another").unwrap_err();
        assert_eq!(failure.code, Code::Installed);
        assert!(
            failure.reason.contains("/nonexistent/bzImage")
                && failure.reason.ends_with("give another"),
            "{failure}"
        );
        assert_eq!(
            readable(Path::new("/"), "").unwrap_err().code,
            Code::Installed
        );
    }
}
