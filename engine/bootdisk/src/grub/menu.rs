// SPDX-License-Identifier: Apache-2.0
//! Choosing from GRUB's menu what `default` says.

use super::run::{Item, Run};
use super::run_config;
use crate::choice::Choice;
use crate::error::BootDiskError;
use crate::limits::INCLUDE_DEPTH_MAX;
use crate::volumes::FileAt;

/// What the default entry boots.
pub(super) fn choose(mut run: Run<'_>, config: &FileAt) -> Result<Choice, BootDiskError> {
    let mut default = run.variable("default").to_owned();
    let mut titles = Vec::new();
    for _ in 0..INCLUDE_DEPTH_MAX {
        let Some((item, rest)) = pick(run.menu(), &default) else {
            // A script may load a kernel without any menu.
            return finish(&run, config, &titles);
        };
        let (item, rest) = (item.clone(), rest.to_owned());
        run.enter(&item)?;
        titles.push(item.title);
        default = rest;
        if let Some(next) = run.take_next_config() {
            run = run_config(run.volumes, &next)?;
            run.variable("default").clone_into(&mut default);
        } else if !item.submenu {
            return finish(&run, config, &titles);
        }
    }
    Err(run.unsupported("its menus lead from one to another without end"))
}

/// The item that `default` means, and what of `default` is left for the submenu. An item that is
/// not there means the first one, as in GRUB.
fn pick<'a, 'b>(menu: &'a [Item], default: &'b str) -> Option<(&'a Item, &'b str)> {
    let (name, rest) = split_path(default);
    let by_number = name.parse::<usize>().ok().and_then(|at| menu.get(at));
    let name = name.replace(">>", ">");
    let by_name = || {
        menu.iter()
            .find(|item| item.id.as_ref() == Some(&name) || item.title == name)
    };
    match by_number.or_else(by_name) {
        Some(item) => Some((item, rest)),
        None => menu.first().map(|first| (first, "")),
    }
}

/// The part before a single `>`, and what comes after it. A double one belongs to a title.
fn split_path(default: &str) -> (&str, &str) {
    let mut from = 0;
    while let Some(found) = default.get(from..).and_then(|rest| rest.find('>')) {
        let at = from + found;
        let after = default.get(at + 1..).unwrap_or_default();
        if after.starts_with('>') {
            from = at + 2;
            continue;
        }
        return (default.get(..at).unwrap_or_default(), after);
    }
    (default, "")
}

fn finish(run: &Run<'_>, config: &FileAt, titles: &[String]) -> Result<Choice, BootDiskError> {
    let title = titles.join(" > ");
    let loaded = &run.loaded;
    if let Some(what) = &loaded.refused {
        return Err(run.unsupported(format!(
            "the default entry \"{title}\" says `{what}`, and only Linux kernels are started"
        )));
    }
    let Some(kernel) = &loaded.kernel else {
        return Err(run.unsupported(format!("the default entry \"{title}\" loads no kernel")));
    };
    Ok(Choice {
        title,
        named_by: format!("the default entry of {}", run.config.path),
        config: config.volume,
        kernel: kernel.clone(),
        initrds: loaded.initrds.clone(),
        cmdline: loaded.cmdline.clone(),
    })
}

#[cfg(test)]
mod tests;
