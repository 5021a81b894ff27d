// SPDX-License-Identifier: Apache-2.0
//! `kemarictl verify`: are the disks of both replicas equal?

use kemari_api::VmName;
use kemari_api::replica;
use serde::Serialize;

use super::overview::FORMAT;
use super::{Form, print, print_json, progress, refused};
use crate::command::{Ended, Exit};

#[derive(Serialize)]
struct Compared<'a> {
    format: u32,
    vm: &'a str,
    equal: bool,
    detail: &'a str,
}

/// Compares them, with a bar on a terminal.
pub(super) async fn verify(vm: &VmName, form: Form) -> anyhow::Result<()> {
    let (proxy, _) = replica::connect(vm).await?;
    let compared = tokio::select! {
        biased;
        compared = proxy.verify() => compared.map_err(|error| refused(&error))?,
        never = progress::show(&proxy) => match never {},
    };
    if form == Form::Json {
        print_json(&Compared {
            format: FORMAT,
            vm: vm.as_str(),
            equal: compared.equal,
            detail: &compared.detail,
        })?;
    } else if compared.equal {
        print(&format!("{}\n", compared.detail))?;
    }
    if compared.equal {
        Ok(())
    } else {
        Err(Ended::new(Exit::Found, compared.detail).into())
    }
}
