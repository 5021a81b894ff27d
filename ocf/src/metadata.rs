// SPDX-License-Identifier: Apache-2.0
//! The meta-data: what Pacemaker, crmsh and pcs know of this agent.
//!
//! It follows OCF 1.1 and is valid under `ra-api-1.dtd` of the resource-agents, which ocf-tester
//! checks. Nothing of the node is looked at: it must be the same everywhere, for every user.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use crate::action::Action;
use crate::actions::shutdown::TIMEOUT_DEFAULT_S;

type Xml = Writer<Vec<u8>>;

const LONG: &str = "\
Runs one replica of a fault-tolerant virtual machine. Cloned as a promotable resource with two \
instances, the promoted instance runs the guest and the other one holds, at every moment, a \
complete state it can continue from. When the node or the engine of the promoted instance is lost, \
the other one continues; neither the guest nor its clients can tell.

The agent kemari-agent of the node decides who may run; this resource agent translates Pacemaker's \
actions. It needs corosync, kemari-agent and /dev/kvm on each node that runs a replica, and the \
meta attributes promotable=true notify=true clone-max=2 promoted-max=1.";

const CONFIG_LONG: &str = "\
The description of the VM, an absolute path to a TOML file that is the same on every node. See \
/usr/share/doc/kemari/examples/vm.toml. A node without this file cannot run a replica.";

const SHUTDOWN_LONG: &str = "\
How many seconds a guest may take to shut down when the VM is stopped for good. Its power button is \
pressed; if it is not off by then, it is ended hard. 0 ends it at once. At most half of the timeout \
of the demote action (of stop, where there was no demote) is used for it, so raise those too for a \
guest that takes long. A guest that goes on at the other node is never shut down.";

/// The meta-data as an XML document.
///
/// # Errors
/// None in practice: it is written to memory.
pub(crate) fn document() -> io::Result<String> {
    let mut xml = Writer::new_with_indent(Vec::new(), b' ', 2);
    xml.write_event(Event::Decl(BytesDecl::new("1.0", None, None)))?;
    xml.write_event(Event::DocType(BytesText::from_escaped(
        "resource-agent SYSTEM \"ra-api-1.dtd\"",
    )))?;
    xml.create_element("resource-agent")
        .with_attribute(("name", "vm"))
        .with_attribute(("version", env!("CARGO_PKG_VERSION")))
        .write_inner_content(|xml| {
            text(xml, "version", "1.1")?;
            described(xml, LONG, "Fault-tolerant virtual machine")?;
            parameters(xml)?;
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

fn parameters(xml: &mut Xml) -> io::Result<()> {
    let shutdown_default = TIMEOUT_DEFAULT_S.to_string();
    xml.create_element("parameters")
        .write_inner_content(|xml| {
            xml.create_element("parameter")
                .with_attribute(("name", "config"))
                .with_attribute(("required", "1"))
                .with_attribute(("unique", "1"))
                .write_inner_content(|xml| {
                    described(xml, CONFIG_LONG, "Description of the VM")?;
                    xml.create_element("content")
                        .with_attribute(("type", "string"))
                        .write_empty()?;
                    Ok(())
                })?;
            xml.create_element("parameter")
                .with_attribute(("name", "shutdown_timeout"))
                .with_attribute(("required", "0"))
                .with_attribute(("unique", "0"))
                .write_inner_content(|xml| {
                    described(xml, SHUTDOWN_LONG, "Seconds for the guest to shut down")?;
                    xml.create_element("content")
                        .with_attribute(("type", "integer"))
                        .with_attribute(("default", shutdown_default.as_str()))
                        .write_empty()?;
                    Ok(())
                })?;
            Ok(())
        })?;
    Ok(())
}

fn actions(xml: &mut Xml) -> io::Result<()> {
    xml.create_element("actions").write_inner_content(|xml| {
        for action in Action::ALL {
            match action {
                // Two intervals: Pacemaker tells recurring monitors apart by it alone.
                Action::Monitor => {
                    monitor(xml, "10s", "Promoted")?;
                    monitor(xml, "11s", "Unpromoted")?;
                }
                other => {
                    xml.create_element("action")
                        .with_attribute(("name", other.name()))
                        .with_attribute(("timeout", seconds(other).as_str()))
                        .write_empty()?;
                }
            }
        }
        Ok(())
    })?;
    Ok(())
}

fn monitor(xml: &mut Xml, interval: &str, role: &str) -> io::Result<()> {
    xml.create_element("action")
        .with_attribute(("name", Action::Monitor.name()))
        .with_attribute(("depth", "0"))
        .with_attribute(("timeout", seconds(Action::Monitor).as_str()))
        .with_attribute(("interval", interval))
        .with_attribute(("role", role))
        .write_empty()?;
    Ok(())
}

fn seconds(action: Action) -> String {
    format!("{}s", action.timeout().as_secs())
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
    <action name=\"promote\" timeout=\"60s\"/>
    <action name=\"demote\" timeout=\"60s\"/>
    <action name=\"notify\" timeout=\"20s\"/>
    <action name=\"validate-all\" timeout=\"20s\"/>
    <action name=\"meta-data\" timeout=\"5s\"/>
  </actions>
</resource-agent>
"
        );
        let head = format!(
            "<?xml version=\"1.0\"?>
<!DOCTYPE resource-agent SYSTEM \"ra-api-1.dtd\">
<resource-agent name=\"vm\" version=\"{}\">
  <version>1.1</version>
  <longdesc lang=\"en\">",
            env!("CARGO_PKG_VERSION")
        );
        assert!(document.starts_with(&head), "{document}");
        assert!(document.contains("<parameter name=\"config\" required=\"1\" unique=\"1\">"));
        assert!(
            document.contains("<parameter name=\"shutdown_timeout\" required=\"0\" unique=\"0\">")
        );
        assert!(document.contains("<content type=\"integer\" default=\"30\"/>"));
    }
}
