// SPDX-License-Identifier: Apache-2.0
//! Whether Pacemaker is done with a lost node: it fenced it, or had stopped everything on it before it left.

use kemari_api::NodeName;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::attribute_of;
use super::command::run;

/// With fencing configured, a node that was lost is `unclean` to Pacemaker until it was fenced; one that left in order
/// is not. Where Pacemaker does not answer, and without fencing, the answer is no.
pub(crate) async fn is_fenced(node: &NodeName) -> bool {
    let shown = run("crm_mon", &["--one-shot", "--output-as=xml"]).await;
    shown.is_ok_and(|xml| says_so(&xml, node))
}

fn says_so(xml: &str, node: &NodeName) -> bool {
    let mut reader = Reader::from_str(xml);
    let (mut fencing, mut fenced) = (false, false);
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => {
                let is = |key: &str, value: &str| attribute_of(&tag, key).as_deref() == Some(value);
                match tag.name().as_ref() {
                    "cluster_options" => fencing = is("stonith-enabled", "true"),
                    "node" if is("name", node.as_str()) && is("type", "member") => {
                        fenced = is("online", "false")
                            && is("pending", "false")
                            && is("unclean", "false");
                    }
                    _ => {}
                }
            }
            Ok(Event::Eof) => return fencing && fenced,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_with_fencing_is_a_node_that_is_away_and_clean_a_fenced_one() {
        let shown = |fencing: &str, online: &str, unclean: &str| {
            // As Pacemaker 2.1.5 writes it.
            format!(
                "<pacemaker-result><summary><cluster_options stonith-enabled=\"{fencing}\"/></summary>\
                 <nodes><node name=\"n1\" id=\"1\" online=\"true\" standby=\"false\" pending=\"false\" \
                 unclean=\"false\" type=\"member\"/><node name=\"n2\" id=\"2\" online=\"{online}\" \
                 pending=\"false\" unclean=\"{unclean}\" type=\"member\"/></nodes>\
                 <resources><resource id=\"vm\"><node name=\"n2\" id=\"2\" cached=\"true\"/></resource>\
                 </resources></pacemaker-result>"
            )
        };
        let n2: NodeName = "n2".parse().unwrap();
        for (fencing, online, unclean, fenced) in [
            ("true", "false", "false", true),
            ("true", "false", "true", false),
            ("true", "true", "false", false),
            ("false", "false", "false", false),
        ] {
            let xml = shown(fencing, online, unclean);
            assert_eq!(says_so(&xml, &n2), fenced, "{xml}");
            assert!(!says_so(&xml, &"n3".parse().unwrap()));
        }
        assert!(!says_so("", &n2));
        assert!(!says_so("<pacemaker-result", &n2));
    }
}
