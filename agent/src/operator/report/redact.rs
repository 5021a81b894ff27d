// SPDX-License-Identifier: Apache-2.0
//! Leaving secrets out.
//!
//! By name: whatever is called password, key, token of access or the like loses its value. The words
//! that Corosync uses otherwise (`totem.token`, keys of cmap) keep theirs.

/// Parts of names whose values are nobody's business.
const SECRET: [&str; 7] = [
    "passw",
    "passphrase",
    "secret",
    "credential",
    "privkey",
    "private_key",
    "snmp_community",
];

const LEFT_OUT: &str = "[left out]";

/// Replaces the values of secret names in XML attributes (`name="…" value="…"`, Pacemaker's form) and
/// after `:` or `=` (Corosync's and systemd's). A line that fits neither is left out as a whole.
pub(super) fn values(text: &str) -> String {
    lines(text, |line| {
        let key = line
            .split_once([':', '='])
            .is_some_and(|(name, _)| is_key(name));
        if !is_secret(line) && !key {
            return line.to_owned();
        }
        if line.contains("value=\"") {
            return without_attribute(line);
        }
        match line.split_once([':', '=']) {
            Some((name, _)) if is_secret(name) || is_key(name) => format!("{name}: {LEFT_OUT}"),
            _ => LEFT_OUT.to_owned(),
        }
    })
}

/// Replaces the guest's command line, where people put such things, and what [`values`] does.
pub(super) fn description(text: &str) -> String {
    let text = lines(text, |line| match line.split_once('=') {
        Some((key, _)) if key.trim() == "cmdline" => format!("{key}= \"{LEFT_OUT}\""),
        _ => line.to_owned(),
    });
    values(&text)
}

fn lines(text: &str, change: impl Fn(&str) -> String) -> String {
    let mut changed = String::with_capacity(text.len());
    for line in text.lines() {
        changed.push_str(&change(line));
        changed.push('\n');
    }
    changed
}

fn is_secret(text: &str) -> bool {
    let text = text.to_lowercase();
    SECRET.iter().any(|word| text.contains(word))
}

/// Corosync's `key` in `totem`, and `totem.key (str)` as cmap shows it.
fn is_key(name: &str) -> bool {
    let word = name.split_whitespace().next().unwrap_or_default();
    word == "key" || word.ends_with(".key")
}

/// Every `value="…"` of the line: one line may hold several attributes of several elements.
fn without_attribute(line: &str) -> String {
    let mut kept = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("value=\"") {
        kept.push_str(before);
        kept.push_str("value=\"");
        kept.push_str(LEFT_OUT);
        rest = after.split_once('"').map_or("", |(_, rest)| rest);
        kept.push('"');
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_what_helps_is_kept() {
        for (line, kept) in [
            (
                r#"<nvpair id="f-p" name="passwd" value="hunter2"/>"#,
                r#"<nvpair id="f-p" name="passwd" value="[left out]"/>"#,
            ),
            ("  Password: hunter2", "  Password: [left out]"),
            ("use the secret hunter2", LEFT_OUT),
            ("token: 1000", "token: 1000"),
            ("    key: hunter2", "    key: [left out]"),
            ("totem.key (str) = hunter2", "totem.key (str) : [left out]"),
            ("totem.keyfile (str) = /a", "totem.keyfile (str) = /a"),
            (
                r#"<nvpair name="ip" value="10.0.0.1"/>"#,
                r#"<nvpair name="ip" value="10.0.0.1"/>"#,
            ),
        ] {
            assert_eq!(values(line), format!("{kept}\n"));
        }
    }

    #[test]
    fn the_guests_command_line_stays_at_home() {
        let text = description("[boot]\ncmdline = \"console=ttyS0 luks=hunter2\"\ndisk = \"a\"\n");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("disk = \"a\""), "{text}");
    }
}
