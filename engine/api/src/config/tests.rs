// SPDX-License-Identifier: Apache-2.0
//! Whole descriptions: what is read, what is refused and how it is told.

use std::path::Path;

use proptest::prelude::*;

use super::*;

const GOOD: &str = "[vm]\nname = \"web\"\nmemory_mib = 256\n\n[boot]\nkernel = \"/k\"\n";
const DISK: &str = "[[disk]]\nid = \"system\"\npath = \"/d\"\n";
const NETWORK: &str = "[[network]]\nid = \"lan\"\nbridge = \"br0\"\n";

fn parse(text: &str) -> Result<VmConfig, Vec<ConfigError>> {
    Description::parse(Path::new("/etc/kemari/web.toml"), text).map(|read| read.config)
}

/// Every problem of a description, one a line.
fn told(text: &str) -> String {
    let problems = parse(text).expect_err("it is wrong");
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// The description is refused with one problem, told as `start` … and with `words`.
fn refused(text: &str, start: &str, words: &[&str]) {
    let said = told(text);
    let start = format!("/etc/kemari/web.toml:{start}: ");
    assert!(said.starts_with(&start), "{start:?} does not begin {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

#[test]
fn the_shortest_description_has_sensible_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.replication.port.number(), 4444);
    assert_eq!(config.vm.vcpus.get(), 1);
    assert!(config.rng.enabled && config.balloon.enabled && config.sandbox.enabled);
    assert_eq!(config.sandbox.user.as_str(), "kemari");
    let address = config
        .replication_places(&"node2".parse().unwrap())
        .remove(0);
    assert_eq!(address.to_string(), "node2:4444");
    assert_eq!(config.to_string(), "VM web: 256 MiB, 1 vCPU, kernel /k");
}

#[test]
fn a_description_with_everything_is_read() {
    let text = include_str!("tests/everything.toml");
    let config = parse(text).unwrap();
    assert_eq!(
        config.to_string(),
        "VM web: 4096 MiB, 4 vCPU, boot from disk system, 2 disks, 2 interfaces"
    );
    assert_eq!(config.memory.huge_pages, HugePages::Size2M);
    assert_eq!(config.memory.numa_node.map(NumaNode::get), Some(1));
    let serials: Vec<_> = config
        .disk
        .iter()
        .map(|disk| disk.serial().to_string())
        .collect();
    assert_eq!(serials, ["system", "WD 0815"]);
    let vm = &config.vm.name;
    let taps: Vec<_> = config
        .network
        .iter()
        .map(|it| it.tap(vm).to_string())
        .collect();
    assert_eq!(taps, ["kmi-web_lan", "tap-backup"]);
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_key() {
    let text = GOOD.replace("memory_mib = 256", "memory_mib = 256\nmemory = 4");
    refused(&text, "4: vm.memory", &["expected one of", "`memory_mib`"]);
    refused(
        &format!("{GOOD}{DISK}size = 4\n"),
        "10: disk.size",
        &["`path`"],
    );
    refused(
        &format!("{GOOD}{NETWORK}{NETWORK}ip = 4\n").replacen("lan", "wan", 1),
        "13: network.ip",
        &[],
    );
    refused(
        &format!("{GOOD}[disks]\n"),
        "7: disks",
        &["unknown section", "network"],
    );
    refused(
        &format!("colour = 1\n{GOOD}"),
        "1: colour",
        &["unknown section"],
    );
}

#[test]
fn a_value_out_of_range_or_of_another_type_is_refused_with_the_range() {
    refused(
        &GOOD.replace("256", "4"),
        "3: vm.memory_mib",
        &["4 is out of range", "16 to 524288"],
    );
    refused(
        &GOOD.replace("256", "\"256\""),
        "3: vm.memory_mib",
        &["\"256\"", "16 to 524288"],
    );
    refused(
        &GOOD.replace("web", "../web"),
        "2: vm.name",
        &["../web", "1 to 63"],
    );
    refused(
        &format!("{GOOD}[replication]\nport = 0\n"),
        "8: replication.port",
        &["1 to 65535"],
    );
    refused(
        &format!("{GOOD}[memory]\nhuge_pages = \"4M\"\n"),
        "8: memory.huge_pages",
        &["`4M`", "`transparent`", "`1G`"],
    );
    refused(
        &format!("{GOOD}[rng]\nenabled = 1\n"),
        "8: rng.enabled",
        &["boolean"],
    );
}

#[test]
fn a_missing_key_or_section_is_named() {
    refused(
        "[vm]\nname = \"a\"\nmemory_mib = 64\n",
        "3: boot",
        &["add [boot]"],
    );
    refused(
        &GOOD.replace("memory_mib = 256\n", ""),
        "1: vm",
        &["memory_mib is missing"],
    );
    refused(
        &format!("{GOOD}{DISK}[[disk]]\nid = \"b\"\n"),
        "10: disk",
        &["path is missing"],
    );
    refused(
        &GOOD.replace("kernel = \"/k\"", ""),
        "5: boot",
        &["give kernel", "disk ="],
    );
    refused(
        &format!("{GOOD}[[network]]\nid = \"lan\"\n"),
        "7: network",
        &["bridge = \"br0\""],
    );
}

#[test]
fn a_table_where_there_may_be_several_is_told_how_to_begin() {
    refused(
        &format!("{GOOD}{}", DISK.replace("[[disk]]", "[disk]")),
        "7: disk",
        &["[[disk]]"],
    );
    assert!(told(&format!("{GOOD}[[console]]\noutput = \"none\"\n")).contains(":7: console: "));
}

#[test]
fn text_that_is_no_toml_is_told_with_its_line() {
    refused(
        &GOOD.replace("256", "256 MiB"),
        "3: memory_mib",
        &["correct the TOML"],
    );
    refused(
        &format!("{GOOD}kernel = \"/l\"\n"),
        "7: kernel",
        &["duplicate"],
    );
}

#[test]
fn every_problem_is_told_and_not_only_the_first() {
    let text = GOOD.replace("web", "a b").replace("256", "4")
        + "[sandbox]\nuser = \"root\"\n\
        cage = true\n[[disk]]\nid = \"a\"\npath = \"d\"\n[[network]]\nid = \"lan\"\n";
    let said = told(&text);
    let lines: Vec<_> = said
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let expected = [2, 3, 8, 9, 12, 13].map(|line| format!("/etc/kemari/web.toml:{line}:"));
    assert_eq!(lines, expected, "{said}");
}

#[test]
fn a_key_that_is_missing_is_told_beside_one_that_is_wrong() {
    let said = told("[vm]\nmemory_mib = 4\n[boot]\nkernel = 4\n");
    let lines: Vec<_> = said.lines().collect();
    let [missing, memory, kernel] = lines.as_slice() else {
        panic!("{said}");
    };
    assert!(missing.contains(":1: vm: name is missing"), "{said}");
    assert!(memory.contains(":2: vm.memory_mib: "), "{said}");
    assert!(kernel.contains(":4: boot.kernel: "), "{said}");
}

#[test]
fn what_does_not_go_together_is_told_at_the_key_that_is_wrong() {
    let huge = format!(
        "{}[memory]\nhuge_pages = \"1G\"\n",
        GOOD.replace("256", "1500")
    );
    refused(&huge, "3: vm.memory_mib", &["1500 MiB", "1024 or 2048"]);
    let from_disk = GOOD.replace("kernel = \"/k\"", "disk = \"sytem\"");
    refused(&from_disk, "6: boot.disk", &["\"sytem\"", "add a [[disk]]"]);
    refused(
        &format!("{from_disk}{DISK}"),
        "6: boot.disk",
        &["name one of the disks: system"],
    );
    refused(
        &format!("{GOOD}{DISK}{}", DISK.replace("/d", "/e")),
        "11: disk.id",
        &["\"system\" is given twice"],
    );
}

#[test]
fn two_devices_never_share_what_must_be_their_own() {
    let second = |disk: &str| format!("{GOOD}{DISK}[[disk]]\nid = \"b\"\n{disk}");
    refused(
        &second("path = \"/d\"\n"),
        "12: disk.path",
        &["read_only = true"],
    );
    refused(
        &second("path = \"/e\"\nserial = \"system\"\n"),
        "13: disk.serial",
        &["twice"],
    );
    let second = |network: &str| {
        format!(
            "{GOOD}{NETWORK}tap = \"t\"\nmac = \"52:54:00:00:00:01\"\n[[network]]\nid = \"b\"\n{network}"
        )
    };
    refused(
        &second("tap = \"t\"\n"),
        "14: network.tap",
        &["\"t\" is given twice"],
    );
    refused(
        &second("tap = \"u\"\nmac = \"52:54:00:00:00:01\"\n"),
        "15: network.mac",
        &["leave mac out"],
    );
    assert!(parse(&second("bridge = \"br0\"\n")).is_ok());
    let read_only = DISK.to_owned() + "read_only = true\n";
    let both = format!("{GOOD}{read_only}{}", read_only.replace("system", "b"));
    assert!(parse(&both).is_ok());
}

#[test]
fn there_is_a_limit_to_devices() {
    let disks = |number: usize| {
        (0..number).fold(GOOD.to_owned(), |text, n| {
            text + &format!("[[disk]]\nid = \"d{n}\"\npath = \"/d{n}\"\n")
        })
    };
    assert_eq!(parse(&disks(16)).unwrap().disk.len(), 16);
    refused(&disks(17), "55: disk", &["17 are described", "at most 16"]);
}

#[test]
fn who_is_told_one_problem_is_told_how_many_there_are() {
    let path = Path::new("web.toml");
    let told = |text: &str| VmConfig::parse(path, text).unwrap_err().to_string();
    let more = told("[vm]\nname = \"a b\"\nmemory_mib = 4\n");
    assert!(more.starts_with("web.toml:2: vm.name: "), "{more}");
    assert!(
        more.ends_with("(and 2 more: kemari-engine check web.toml)"),
        "{more}"
    );
    assert!(!told(&GOOD.replace("256", "4")).contains("more"));
}

#[test]
fn an_address_that_is_none_is_refused() {
    let text = format!("{GOOD}[replication.addresses]\nnode1 = \"a b\"\n");
    refused(&text, "8: replication.addresses.node1", &["\"a b\""]);
}

#[test]
fn a_node_has_one_address_or_several() {
    let text = format!(
        "{GOOD}[replication.addresses]\nnode1 = [\"10.0.1.1\", \"node1-b\"]\nnode2 = \"10.0.1.2\"\n"
    );
    let config = parse(&text).unwrap();
    let places = |node: &str| {
        let places = config.replication_places(&node.parse().unwrap());
        places.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(places("node1"), ["10.0.1.1:4444", "node1-b:4444"]);
    assert_eq!(places("node2"), ["10.0.1.2:4444"]);
    assert_eq!(places("node3"), ["node3:4444"]);
}

#[test]
fn lists_of_addresses_that_make_no_sense_are_refused() {
    let wrong = |value: &str, words: &[&str]| {
        let text = format!("{GOOD}[replication.addresses]\nnode1 = {value}\n");
        refused(&text, "8: replication.addresses.node1", words);
    };
    wrong("[]", &["the list is empty", "leave the node out"]);
    wrong(
        "[\"10.0.1.1\", \"10.0.1.1\"]",
        &["\"10.0.1.1\" is given twice"],
    );
    wrong("[\"fd00::1\", \"fd00:0::1\"]", &["is given twice"]);
    wrong("[\"Node1-a\", \"node1-a\"]", &["is given twice"]);
    wrong(
        "[\"10.0.1.1\", \"0.0.0.0\"]",
        &["\"0.0.0.0\" is the address of no node"],
    );
    wrong("[\"10.0.1.1\", \"10.0.2.1:4444,x\"]", &["without port"]);
    wrong("\"10.0.1.1,10.0.2.1\"", &["without port"]);
    wrong("[\"10.0.1.1\", 4444]", &["4444"]);
    wrong("4444", &["a list of them such as"]);
    let nine: Vec<String> = (1..=9).map(|n| format!("\"10.0.{n}.1\"")).collect();
    wrong(
        &format!("[{}]", nine.join(", ")),
        &["9 addresses", "at most 8"],
    );
}

#[test]
fn an_address_belongs_to_one_node() {
    let text = format!(
        "{GOOD}[replication.addresses]\nnode1 = [\"10.0.1.1\", \"10.0.2.1\"]\nnode2 = [\"10.0.1.2\", \"10.0.2.1\"]\n"
    );
    refused(
        &text,
        "9: replication.addresses.node2",
        &["\"10.0.2.1\" is an address of node1 too"],
    );
}

#[test]
fn a_missing_file_is_named_with_a_remedy() {
    let error = VmConfig::load(Path::new("/nonexistent.toml")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent.toml") && text.contains("create it"),
        "{text}"
    );
    assert_eq!(error.line(), 0);
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\PC|\n){0,200}") {
        let _ = parse(&text);
    }

    /// A hostile file: the good one with stretches cut out, doubled and overwritten.
    #[test]
    fn no_damage_panics_or_is_without_line(
        cuts in prop::collection::vec((0_usize..800, 0_usize..40, "[\\[\\]a-z=\".\n0-9]{0,6}"), 1..6)
    ) {
        let mut text = include_str!("tests/everything.toml").to_owned();
        for (at, length, new) in cuts {
            let start = at.min(text.len());
            let end = (start + length).min(text.len());
            text.replace_range(start..end, &new);
        }
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.is_empty());
            let lines = text.lines().count() + 1;
            prop_assert!(problems.iter().all(|problem| (1..=lines).contains(&problem.line())));
        }
    }
}
