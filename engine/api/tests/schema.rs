// SPDX-License-Identifier: Apache-2.0
//! The JSON schema, the commented example, the manual page and the reference know the same keys.
#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::BTreeSet;
use std::path::Path;

use kemari_api::config::{Description, schema};
use serde_json::Value;

const EXAMPLE: &str = include_str!("../../../packaging/examples/vm.toml");
const MANUAL: &str = include_str!("../../../packaging/man/kemari-vm.toml.5");
const REFERENCE: &str = include_str!("../../../docs/vm-description.md");

/// What a `$ref` leads to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(path) => root.pointer(path.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Section, key and the key's schema, of every key.
fn keys(root: &Value) -> Vec<(String, String, &Value)> {
    let sections = root["properties"].as_object().unwrap();
    let mut found = Vec::new();
    for (name, section) in sections {
        let (name, section) = match section.get("items") {
            Some(items) => (format!("[[{name}]]"), resolved(root, items)),
            None => (format!("[{name}]"), resolved(root, section)),
        };
        for (key, schema) in section["properties"].as_object().unwrap() {
            found.push((name.clone(), key.clone(), schema));
        }
    }
    assert!(found.len() > 35, "{} keys", found.len());
    found
}

/// Section and key wherever `key` finds one in the lines below the line that `section` names.
fn known<'a>(
    text: &'a str,
    section: impl Fn(&'a str) -> Option<&'a str>,
    key: impl Fn(&'a str) -> Option<&'a str>,
) -> BTreeSet<(&'a str, &'a str)> {
    let mut now = "";
    let mut found = BTreeSet::new();
    for line in text.lines() {
        match (section(line), key(line)) {
            (Some(section), _) => now = section,
            (None, Some(key)) => {
                found.insert((now, key));
            }
            (None, None) => {}
        }
    }
    found
}

fn knows_every_key(name: &str, known: &BTreeSet<(&str, &str)>) {
    let schema = schema();
    let keys = keys(&schema);
    let described: BTreeSet<_> = keys
        .iter()
        .map(|(section, key, _)| (section.as_str(), key.as_str()))
        // A table of its own, below.
        .filter(|pair| name != "example" || *pair != ("[replication]", "addresses"))
        .collect();
    let missing: Vec<_> = described.difference(known).collect();
    let unknown: Vec<_> = known.difference(&described).collect();
    assert!(missing.is_empty(), "the {name} lacks {missing:?}");
    assert!(
        unknown.is_empty(),
        "the {name} has {unknown:?}, which no description has"
    );
}

/// A line of the example that is a key or header, perhaps with "#" directly before it.
fn live(line: &str) -> Option<&str> {
    let bare = line.strip_prefix('#').unwrap_or(line);
    bare.starts_with(|c: char| c.is_ascii_lowercase() || c == '[')
        .then_some(bare)
}

#[test]
fn the_example_knows_every_key() {
    let found = known(
        EXAMPLE,
        |line| live(line).filter(|line| line.starts_with('[')),
        |line| live(line)?.split_once(" = ").map(|(key, _)| key),
    );
    let found = found
        .into_iter()
        .filter(|(section, _)| *section != "[replication.addresses]")
        .collect();
    knows_every_key("example", &found);
    assert!(EXAMPLE.contains("\n#[replication.addresses]\n"));
}

#[test]
fn the_manual_page_knows_every_key() {
    let found = known(
        MANUAL,
        |line| {
            let heading = line.strip_prefix(".SS ");
            heading.or_else(|| line.strip_prefix(".SH "))
        },
        {
            let mut lines = BTreeSet::new();
            for pair in MANUAL.lines().collect::<Vec<_>>().windows(2) {
                if pair[0] == ".TP" {
                    lines.insert(pair[1].as_ptr());
                }
            }
            // Only what stands directly below .TP is a key.
            move |line| {
                lines
                    .contains(&line.as_ptr())
                    .then(|| line.strip_prefix(".B "))?
            }
        },
    );
    let found = found
        .into_iter()
        .filter(|(section, _)| section.starts_with('['))
        .collect();
    knows_every_key("manual page", &found);
}

#[test]
fn the_reference_knows_every_key() {
    let found = known(
        REFERENCE,
        |line| line.strip_prefix("## `")?.split('`').next(),
        |line| {
            line.strip_prefix("| `")?
                .split_once("` |")
                .map(|(key, _)| key)
        },
    );
    // The table of what an interface's keys do together has keys in its first column too.
    let found = found
        .into_iter()
        .filter(|(section, key)| section.starts_with('[') && !key.contains(", "))
        .collect();
    knows_every_key("reference", &found);
}

#[test]
fn the_example_fits_the_schema_and_is_accepted() {
    let path = Path::new("packaging/examples/vm.toml");
    Description::parse(path, EXAMPLE).unwrap();
    fits(&schema(), EXAMPLE).unwrap();
}

/// The example with every comment sign before a key removed, started from its disk, with
/// certificates.
fn everything() -> String {
    EXAMPLE
        .lines()
        .filter_map(live)
        .filter(|line| !line.starts_with("kernel") && !line.starts_with("initrd"))
        // Certificates take its place.
        .filter(|line| !line.starts_with("cluster_key"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn the_example_with_everything_fits_the_schema_and_is_accepted() {
    let text = everything();
    if let Err(problems) = Description::parse(Path::new("everything"), &text) {
        panic!("{problems:?} in\n{text}");
    }
    fits(&schema(), &text).unwrap();
}

#[test]
fn what_the_example_shows_commented_out_is_the_default() {
    let schema = schema();
    let text = everything();
    let values: Value = serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap();
    let mut compared = 0;
    for (section, key, schema) in keys(&schema) {
        let Some(default) = schema
            .get("default")
            .filter(|_| !["cmdline", "addresses"].contains(&key.as_str()))
        else {
            continue;
        };
        let name = section.trim_matches(['[', ']']);
        let section = &values[name];
        let section = section.get(0).unwrap_or(section);
        assert_eq!(&section[key.as_str()], default, "{name}.{key}");
        compared += 1;
    }
    assert!(compared > 20, "only {compared} defaults in the schema");
}

#[test]
fn every_key_is_described_with_its_default_or_that_it_is_required() {
    let schema = schema();
    for (section, key, schema) in keys(&schema) {
        let text = schema["description"].as_str().unwrap_or_default();
        assert!(text.len() > 30, "{section} {key}: {text:?}");
        if let Some(default) = schema.get("default").and_then(Value::as_u64) {
            assert!(
                text.contains(&format!("default {default}")),
                "{key}: {text}"
            );
        }
        if let Some(most) = schema.get("maximum").and_then(Value::as_u64) {
            assert!(text.contains(&format!(" to {most}")), "{key}: {text}");
        }
    }
}

#[test]
fn what_is_wrong_does_not_fit_the_schema() {
    let schema = schema();
    let good = "[vm]\nname = \"a\"\nmemory_mib = 64\n[boot]\nkernel = \"/k\"\n";
    fits(&schema, good).unwrap();
    for bad in [
        good.replace("64", "4"),
        good.replace("64", "\"64\""),
        good.replace("name = \"a\"\n", ""),
        good.replace("kernel", "kernl"),
        good.replace("kernel = \"/k\"", ""),
        format!("{good}disk = \"a\"\n"),
        format!("{good}[memory]\nhuge_pages = \"3M\"\n"),
        format!("{good}[[network]]\nid = \"a\"\n"),
    ] {
        assert!(fits(&schema, &bad).is_err(), "{bad}");
    }
}

fn fits(schema: &Value, text: &str) -> Result<(), String> {
    let value = serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap();
    valid(schema, schema, &value, "")
}

/// Validates by the words that our schema uses; another word is an error, so that none is passed
/// over. (A whole validator would be fifty crates for one test.)
fn valid(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let schema = resolved(root, schema);
    for (word, rule) in schema.as_object().unwrap() {
        let holds = match word.as_str() {
            "type" => type_fits(rule.as_str().unwrap(), value),
            "const" => rule == value,
            "minimum" => value.as_i64() >= rule.as_i64(),
            "maximum" => value.as_i64() <= rule.as_i64(),
            "maxItems" => {
                value.as_array().map(Vec::len)
                    <= rule.as_u64().map(|most| usize::try_from(most).unwrap())
            }
            "minItems" => {
                value.as_array().map(Vec::len)
                    >= rule.as_u64().map(|least| usize::try_from(least).unwrap())
            }
            "uniqueItems" => {
                let items = value.as_array().into_iter().flatten();
                let mut seen = Vec::new();
                items.into_iter().all(|item| {
                    let new = !seen.contains(&item);
                    seen.push(item);
                    new
                })
            }
            "required" => rule
                .as_array()
                .unwrap()
                .iter()
                .all(|key| value.get(key.as_str().unwrap()).is_some()),
            "oneOf" | "anyOf" => {
                let fitting = rule
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| valid(root, one, value, at).is_ok());
                let fitting = fitting.count();
                fitting == 1 || (fitting > 1 && word == "anyOf")
            }
            "properties" | "patternProperties" | "additionalProperties" => {
                properties_fit(root, schema, value, at).map(|()| true)?
            }
            "items" => {
                for (index, element) in value.as_array().into_iter().flatten().enumerate() {
                    valid(root, rule, element, &format!("{at}[{index}]"))?;
                }
                true
            }
            // What patterns mean is tested where the texts are read.
            "pattern" | "description" | "title" | "default" | "$schema" | "$defs" => true,
            _ => {
                return Err(format!(
                    "the schema has the word {word:?}, which this test does not know"
                ));
            }
        };
        if !holds {
            return Err(format!("{at}: {value} does not fit {word}: {rule}"));
        }
    }
    Ok(())
}

fn type_fits(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        _ => panic!("the schema has the type {name:?}, which TOML has not"),
    }
}

fn properties_fit(root: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    // One pattern, which every key that was read fits.
    let of_pattern = schema.get("patternProperties").and_then(Value::as_object);
    let of_pattern = of_pattern.and_then(|patterns| patterns.values().next());
    for (key, value) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        let own = schema.get("properties").and_then(|all| all.get(key));
        match own.or(of_pattern) {
            Some(schema) => valid(root, schema, value, &at)?,
            None if schema["additionalProperties"] == false => {
                return Err(format!("{at} is unknown"));
            }
            None => {}
        }
    }
    Ok(())
}
