// SPDX-License-Identifier: Apache-2.0
//! What Debian's and rpm's own judges say. Exceptions are in `packaging/lintian` and `packaging/rpm/rpmlint.toml`,
//! each with its reason.

use std::process::Command;

use kemari_cluster_tests::package::{self, Role};

use crate::{Sound, repository};

#[test]
fn lintian_finds_nothing() {
    for role in [Role::Host, Role::Witness] {
        let output = Command::new("lintian")
            .args(["--allow-root", "--no-cfg", "--fail-on", "error,warning"])
            .args(["--tag-display-limit", "0"])
            .arg(package::deb(role).sound())
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("make installs lintian");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{output:?}");
    }
}

#[test]
fn rpmlint_finds_nothing() {
    for role in [Role::Host, Role::Witness] {
        let output = Command::new("rpmlint")
            .arg("--config")
            .arg(repository().join("packaging/rpm/rpmlint.toml"))
            .arg(package::rpm(role).sound())
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("make installs rpmlint");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains(" 0 warnings"),
            "{said}{output:?}"
        );
    }
}
