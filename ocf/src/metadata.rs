// SPDX-License-Identifier: Apache-2.0
//! The meta-data: what Pacemaker, crmsh and pcs know of this agent.
//!
//! It follows OCF 1.1. The `ra-api-1.dtd` of Debian's resource-agents, against which ocf-tester
//! checks, is that of OCF 1.0; what 1.1 added stands in the document's own part of the DTD. Nothing
//! of the node is looked at: it must be the same everywhere, for every user.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::action::Action;
use crate::actions::shutdown::TIMEOUT_DEFAULT_S;
use crate::environment::CheckLevel;

type Xml = Writer<Vec<u8>>;

/// The system identifier, and the attributes and the action that only OCF 1.1 has. No defaults: a
/// parser would add them to the document.
const DOCTYPE: &str = "resource-agent SYSTEM \"ra-api-1.dtd\" [
  <!ATTLIST parameter reloadable (0|1) #IMPLIED unique-group CDATA #IMPLIED>
  <!ATTLIST action name NMTOKEN #REQUIRED>
]";

pub(crate) const SHORT: &str = "Fault-tolerant virtual machine";

pub(crate) const LONG: &str = "\
Runs one replica of a fault-tolerant virtual machine. Cloned as a promotable resource, the promoted \
instance runs the guest and another one holds, at every moment, a \
complete state it can continue from. When the node or the engine of the promoted instance is lost, \
that one continues; neither the guest nor its clients can tell.

The agent kemari-agent of the node decides who may run; this resource agent translates Pacemaker's \
actions. It needs corosync, kemari-agent and /dev/kvm on each node that runs a replica, and as a clone the \
meta attributes promotable=true notify=true promoted-max=1 and clone-max, the number of hosts that \
have a disk of the machine, at least 2.

As a plain primitive, without a clone, it is the instance that runs the guest, and the agents keep \
the passive one on the other nodes that have the description. It starts and moves to where that is: \
the guest goes on.";

/// A parameter of the resource.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// One phrase.
    pub(crate) short: &'static str,
    pub(crate) long: &'static str,
    /// `string` or `integer`.
    pub(crate) content: &'static str,
    /// Taken where it is not set; a parameter without one is required.
    pub(crate) default: Option<u32>,
    pub(crate) change: Change,
}

/// What a change of a parameter means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Another VM: no two resources may have the same value, and a change restarts the resource.
    Restart,
    /// It is used from the next action on.
    Reload,
}

pub(crate) const PARAMETERS: [Parameter; 2] = [
    Parameter {
        name: "config",
        short: "Description of the VM",
        long: "\
The description of the VM, an absolute path to a TOML file that is the same on every node. See \
/usr/share/doc/kemari/examples/vm.toml. A node without this file cannot run a replica.",
        content: "string",
        default: None,
        change: Change::Restart,
    },
    Parameter {
        name: "shutdown_timeout",
        short: "Seconds for the guest to shut down",
        long: "\
How many seconds a guest may take to shut down when the VM is stopped for good. Its power button is \
pressed; if it is not off by then, it is ended hard. 0 ends it at once. At most half of the timeout \
of the demote action (of stop, where there was no demote) is used for it, so raise those too for a \
guest that takes long. A guest that goes on at the other node is never shut down.",
        content: "integer",
        default: Some(TIMEOUT_DEFAULT_S),
        change: Change::Reload,
    },
];

/// An advised recurring monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// `OCF_CHECK_LEVEL`.
    pub(crate) depth: u32,
    pub(crate) timeout_s: u64,
    /// Each its own: Pacemaker tells recurring monitors of a resource apart by it alone.
    pub(crate) interval_s: u32,
    /// Without one it is for an unpromoted instance, and for a resource without a clone.
    pub(crate) role: Option<&'static str>,
}

/// The advised monitors.
pub(crate) fn monitors() -> [Monitor; 5] {
    let basic = |interval_s, role| Monitor {
        depth: 0,
        timeout_s: Action::Monitor.timeout().as_secs(),
        interval_s,
        role,
    };
    let deep = |interval_s, role| Monitor {
        depth: CheckLevel::DEEP,
        timeout_s: 60,
        interval_s,
        role,
    };
    [
        basic(10, Some("Promoted")),
        basic(11, Some("Unpromoted")),
        basic(12, None),
        deep(60, Some("Promoted")),
        deep(62, None),
    ]
}

/// The meta-data as an XML document.
///
/// # Errors
/// None in practice: it is written to memory.
pub(crate) fn document() -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", None, None)))?;
    xml.write_event(Event::DocType(BytesText::from_escaped(DOCTYPE)))?;
    xml.create_element("resource-agent")
        .with_attribute(("name", "vm"))
        .with_attribute(("version", env!("CARGO_PKG_VERSION")))
        .write_inner_content(|xml| {
            text(xml, "version", "1.1")?;
            described(xml, LONG, SHORT)?;
            xml.create_element("parameters")
                .write_inner_content(|xml| {
                    PARAMETERS.iter().try_for_each(|one| parameter(xml, one))
                })?;
            actions(xml)
        })?;
    xml.get_mut().push(b'\n');
    String::from_utf8(xml.into_inner()).map_err(io::Error::other)
}

fn text(xml: &mut Xml, element: &'static str, content: &str) -> io::Result<()> {
    xml.create_element(element)
        .write_text_content(BytesText::new(content))?;
    Ok(())
}

fn described(xml: &mut Xml, long: &str, short: &str) -> io::Result<()> {
    for (element, content) in [("longdesc", long), ("shortdesc", short)] {
        xml.create_element(element)
            .with_attribute(("lang", "en"))
            .write_text_content(BytesText::new(content))?;
    }
    Ok(())
}

fn parameter(xml: &mut Xml, parameter: &Parameter) -> io::Result<()> {
    let required = if parameter.default.is_none() {
        "1"
    } else {
        "0"
    };
    let mut element = xml
        .create_element("parameter")
        .with_attribute(("name", parameter.name))
        .with_attribute(("required", required));
    element = match parameter.change {
        // "unique" is what the tools of OCF 1.0 read.
        Change::Restart => {
            element.with_attributes([("unique", "1"), ("unique-group", parameter.name)])
        }
        Change::Reload => element.with_attributes([("unique", "0"), ("reloadable", "1")]),
    };
    element.write_inner_content(|xml| {
        described(xml, parameter.long, parameter.short)?;
        let content = xml
            .create_element("content")
            .with_attribute(("type", parameter.content));
        match parameter.default {
            Some(default) => content
                .with_attribute(("default", default.to_string().as_str()))
                .write_empty()?,
            None => content.write_empty()?,
        };
        Ok(())
    })?;
    Ok(())
}

fn actions(xml: &mut Xml) -> io::Result<()> {
    xml.create_element("actions").write_inner_content(|xml| {
        for action in Action::ALL {
            if action == Action::Monitor {
                monitors().iter().try_for_each(|one| monitor(xml, one))?;
            } else {
                xml.create_element("action")
                    .with_attribute(("name", action.name()))
                    .with_attribute(("timeout", seconds(action.timeout().as_secs()).as_str()))
                    .write_empty()?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn monitor(xml: &mut Xml, monitor: &Monitor) -> io::Result<()> {
    let mut element = xml
        .create_element("action")
        .with_attribute(("name", Action::Monitor.name()))
        .with_attribute(("depth", monitor.depth.to_string().as_str()))
        .with_attribute(("timeout", seconds(monitor.timeout_s).as_str()))
        .with_attribute(("interval", seconds(monitor.interval_s.into()).as_str()));
    if let Some(role) = monitor.role {
        element = element.with_attribute(("role", role));
    }
    element.write_empty()?;
    Ok(())
}

fn seconds(seconds: u64) -> String {
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything but the prose, which may change freely.
    #[test]
    fn the_document_is_the_one_pacemaker_was_told() {
        let document = document().unwrap();
        let actions = &document[document.find("  <actions>").unwrap()..];
        assert_eq!(
            actions,
            "  <actions>
    <action name=\"start\" timeout=\"60s\"/>
    <action name=\"stop\" timeout=\"60s\"/>
    <action name=\"monitor\" depth=\"0\" timeout=\"20s\" interval=\"10s\" role=\"Promoted\"/>
    <action name=\"monitor\" depth=\"0\" timeout=\"20s\" interval=\"11s\" role=\"Unpromoted\"/>
    <action name=\"monitor\" depth=\"0\" timeout=\"20s\" interval=\"12s\"/>
    <action name=\"monitor\" depth=\"10\" timeout=\"60s\" interval=\"60s\" role=\"Promoted\"/>
    <action name=\"monitor\" depth=\"10\" timeout=\"60s\" interval=\"62s\"/>
    <action name=\"promote\" timeout=\"60s\"/>
    <action name=\"demote\" timeout=\"60s\"/>
    <action name=\"notify\" timeout=\"20s\"/>
    <action name=\"migrate_to\" timeout=\"60s\"/>
    <action name=\"migrate_from\" timeout=\"60s\"/>
    <action name=\"reload-agent\" timeout=\"20s\"/>
    <action name=\"validate-all\" timeout=\"20s\"/>
    <action name=\"meta-data\" timeout=\"5s\"/>
  </actions>
</resource-agent>
"
        );
        let head = format!(
            "<?xml version=\"1.0\"?>
<!DOCTYPE {DOCTYPE}>
<resource-agent name=\"vm\" version=\"{}\">
  <version>1.1</version>
  <longdesc lang=\"en\">",
            env!("CARGO_PKG_VERSION")
        );
        assert!(document.starts_with(&head), "{document}");
        for part in [
            "<parameter name=\"config\" required=\"1\" unique=\"1\" unique-group=\"config\">",
            "<parameter name=\"shutdown_timeout\" required=\"0\" unique=\"0\" reloadable=\"1\">",
            "<content type=\"integer\" default=\"30\"/>",
        ] {
            assert!(document.contains(part), "{part} in {document}");
        }
    }
}
