// SPDX-License-Identifier: Apache-2.0
//! What the cluster's configuration says of VMs: Pacemaker's cluster information base, section `configuration`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use kemari_api::VmName;
use kemari_api::config::VmConfig;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::attribute_of;
use super::command::run;

/// A resource of `ocf:kemari:vm`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resource {
    /// The primitive's id.
    pub primitive: String,
    /// The clone around it; a plain primitive has none.
    pub clone: Option<String>,
    /// The group around it.
    pub group: Option<String>,
    /// The description it was given.
    pub config: String,
    /// Pacemaker is not to run it: `target-role=Stopped`.
    pub stopped: bool,
    /// Pacemaker leaves it as it is: `is-managed=false`, or `maintenance=true`.
    pub unmanaged: bool,
}

impl Resource {
    /// What constraints name.
    pub fn id(&self) -> &str {
        let around = self.clone.as_deref().or(self.group.as_deref());
        around.unwrap_or(&self.primitive)
    }

    /// The description says which VM it is; where it cannot be read, its file name must do.
    pub fn names(&self, vm: &VmName) -> bool {
        let path = Path::new(&self.config);
        match VmConfig::load(path) {
            Ok(config) => config.vm.name == *vm,
            Err(_) => path.file_stem().is_some_and(|stem| stem == vm.as_str()),
        }
    }
}

/// What is read of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// All resources of `ocf:kemari:vm`.
    pub resources: Vec<Resource>,
    /// Nodes on which Pacemaker runs nothing.
    pub standby: BTreeSet<String>,
    /// Nodes that Pacemaker leaves as they are.
    pub maintained: BTreeSet<String>,
    /// Pacemaker leaves everything as it is: `maintenance-mode`.
    pub maintenance: bool,
    /// Pacemaker runs nothing: `stop-all-resources`.
    pub stopped: bool,
    /// A resource, and a node where it must not run.
    pub bans: BTreeSet<(String, String)>,
    /// The ids of all location constraints.
    pub locations: BTreeSet<String>,
}

impl Configuration {
    /// Reads this node's copy; `None` where Pacemaker does not answer.
    pub async fn read() -> Option<Self> {
        let queried = run("cibadmin", &["--query", "--scope", "configuration"]).await;
        Self::parse(&queried.ok()?).ok()
    }

    /// Changes a constraint.
    ///
    /// # Errors
    /// What Pacemaker said.
    pub async fn change_constraint(how: &str, xml: &str) -> Result<(), String> {
        let arguments = [how, "--scope", "constraints", "--xml-text", xml];
        run("cibadmin", &arguments).await.map(drop)
    }

    /// Reads the XML.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(xml: &str) -> anyhow::Result<Self> {
        let mut reader = Reader::from_str(xml);
        let mut parser = Parser::default();
        loop {
            match reader.read_event().context("The CIB is no XML")? {
                Event::Eof => return Ok(parser.end()),
                Event::Start(tag) => {
                    parser.open(&tag);
                    parser.within.push(tag.name().as_ref().to_owned());
                }
                Event::Empty(tag) => {
                    parser.open(&tag);
                    parser.close(tag.name().as_ref());
                }
                Event::End(tag) => {
                    parser.within.pop();
                    parser.close(tag.name().as_ref());
                }
                _ => {}
            }
        }
    }
}

/// Meta attributes: what is nearer wins.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    stopped: Option<bool>,
    unmanaged: Option<bool>,
    maintenance: Option<bool>,
}

impl Marks {
    fn set(&mut self, name: &str, value: &str) {
        match name {
            "target-role" => self.stopped = Some(value.eq_ignore_ascii_case("stopped")),
            "is-managed" => self.unmanaged = Some(!is_true(value)),
            "maintenance" => self.maintenance = Some(is_true(value)),
            _ => {}
        }
    }

    fn or(self, around: Self) -> Self {
        Self {
            stopped: self.stopped.or(around.stopped),
            unmanaged: self.unmanaged.or(around.unmanaged),
            maintenance: self.maintenance.or(around.maintenance),
        }
    }
}

/// A clone or a group that is open.
#[derive(Debug, Clone, Default)]
struct Around {
    id: Option<String>,
    marks: Marks,
    /// The first of the resources in it.
    first: usize,
}

#[derive(Default)]
struct Parser {
    found: Configuration,
    /// What each resource found so far is marked as.
    marks: Vec<Marks>,
    /// The elements around the present one.
    within: Vec<String>,
    clone: Around,
    group: Around,
    resource: Option<(Resource, Marks)>,
    node: String,
}

impl Parser {
    fn is_within(&self, element: &str) -> bool {
        self.within.iter().any(|name| name == element)
    }

    fn open(&mut self, tag: &BytesStart<'_>) {
        let around = Around {
            id: attribute_of(tag, "id"),
            first: self.marks.len(),
            ..Around::default()
        };
        match tag.name().as_ref() {
            "clone" | "master" => self.clone = around,
            "group" => self.group = around,
            "primitive" if is_kemari(tag) => {
                self.resource = around.id.map(|primitive| {
                    let resource = Resource {
                        primitive,
                        clone: self.clone.id.clone(),
                        group: self.group.id.clone(),
                        ..Resource::default()
                    };
                    (resource, Marks::default())
                });
            }
            "node" => self.node = attribute_of(tag, "uname").unwrap_or_default(),
            "rsc_location" => self.location(tag),
            "nvpair" => {
                let name = attribute_of(tag, "name").unwrap_or_default();
                self.pair(&name, &attribute_of(tag, "value").unwrap_or_default());
            }
            _ => {}
        }
    }

    fn close(&mut self, element: &str) {
        // The attributes of what is around may stand behind what is in it.
        let around = match element {
            "clone" | "master" => std::mem::take(&mut self.clone),
            "group" => std::mem::take(&mut self.group),
            "primitive" => {
                if let Some((resource, marks)) = self.resource.take() {
                    self.found.resources.push(resource);
                    self.marks.push(marks);
                }
                return;
            }
            _ => return,
        };
        for marks in self.marks.iter_mut().skip(around.first) {
            *marks = marks.or(around.marks);
        }
    }

    fn end(mut self) -> Configuration {
        for (resource, marks) in self.found.resources.iter_mut().zip(self.marks) {
            resource.stopped = marks.stopped.unwrap_or(false);
            resource.unmanaged =
                marks.unmanaged.unwrap_or(false) || marks.maintenance.unwrap_or(false);
        }
        self.found
    }

    fn location(&mut self, tag: &BytesStart<'_>) {
        self.found.locations.extend(attribute_of(tag, "id"));
        let told = |key: &str| attribute_of(tag, key);
        // Of another role it says where that must not be, and nothing of the rest; crm_resource writes "Started".
        let any_role = told("role").is_none_or(|role| role == "Started");
        let never = told("score").as_deref() == Some("-INFINITY");
        if let (true, Some(resource), Some(node)) = (any_role && never, told("rsc"), told("node")) {
            self.found.bans.insert((resource, node));
        }
    }

    fn pair(&mut self, name: &str, value: &str) {
        let is_meta = self.is_within("meta_attributes");
        if self.is_within("crm_config") {
            match name {
                "maintenance-mode" => self.found.maintenance = is_true(value),
                "stop-all-resources" => self.found.stopped = is_true(value),
                _ => {}
            }
        } else if self.is_within("nodes") {
            let nodes = match name {
                "standby" => &mut self.found.standby,
                "maintenance" => &mut self.found.maintained,
                _ => return,
            };
            if is_true(value) {
                nodes.insert(self.node.clone());
            }
        } else if self.is_within("primitive") {
            match &mut self.resource {
                Some((_, marks)) if is_meta => marks.set(name, value),
                Some((resource, _)) if name == "config" => value.clone_into(&mut resource.config),
                _ => {}
            }
        } else if is_meta && self.is_within("group") {
            self.group.marks.set(name, value);
        } else if is_meta && (self.is_within("clone") || self.is_within("master")) {
            self.clone.marks.set(name, value);
        }
    }
}

/// As Pacemaker reads a boolean (`crm_str_to_boolean`).
fn is_true(text: &str) -> bool {
    ["true", "on", "yes", "y", "1"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

fn is_kemari(tag: &BytesStart<'_>) -> bool {
    attribute_of(tag, "provider").as_deref() == Some("kemari")
        && attribute_of(tag, "type").as_deref() == Some("vm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIB: &str = r#"<configuration>
      <crm_config><cluster_property_set id="o">
        <nvpair id="o-m" name="maintenance-mode" value="false"/>
        <nvpair id="o-s" name="stop-all-resources" value="on"/>
      </cluster_property_set></crm_config>
      <nodes>
        <node id="1" uname="n1"><instance_attributes id="n1-a">
          <nvpair id="n1-s" name="standby" value="on"/></instance_attributes></node>
        <node id="2" uname="n2"><instance_attributes id="n2-a">
          <nvpair id="n2-s" name="standby" value="off"/>
          <nvpair id="n2-m" name="maintenance" value="true"/></instance_attributes></node>
        <node id="3" uname="n3"/>
      </nodes>
      <resources>
        <primitive id="ip" class="ocf" provider="heartbeat" type="IPaddr2">
          <instance_attributes id="a"><nvpair id="b" name="config" value="/x"/></instance_attributes>
        </primitive>
        <clone id="vm-pair">
          <primitive id="vm" class="ocf" provider="kemari" type="vm">
            <instance_attributes id="vm-a">
              <nvpair id="vm-c" name="config" value="/nowhere/web.toml"/>
            </instance_attributes>
            <operations><op id="o1" name="monitor" interval="10s"/></operations>
          </primitive>
          <meta_attributes id="m"><nvpair id="p" name="target-role" value="Stopped"/></meta_attributes>
        </clone>
        <primitive id="plain" class="ocf" provider="kemari" type="vm">
          <instance_attributes id="q"><nvpair id="r" name="config" value="/nowhere/db.toml"/></instance_attributes>
          <meta_attributes id="t"><nvpair id="u" name="target-role" value="Started"/>
            <nvpair id="v" name="is-managed" value="false"/></meta_attributes>
        </primitive>
        <group id="g">
          <meta_attributes id="gm"><nvpair id="gt" name="target-role" value="Stopped"/></meta_attributes>
          <primitive id="in-group" class="ocf" provider="kemari" type="vm"/>
          <primitive id="in-group-started" class="ocf" provider="kemari" type="vm">
            <meta_attributes id="gs"><nvpair id="gu" name="target-role" value="Started"/></meta_attributes>
          </primitive>
        </group>
        <primitive id="last" class="ocf" provider="kemari" type="vm"/>
      </resources>
      <constraints>
        <rsc_location id="cli-ban-plain-on-n3" rsc="plain" role="Started" node="n3" score="-INFINITY"/>
        <rsc_location id="no" rsc="plain" node="n4" score="-INFINITY"/>
        <rsc_location id="role-only" rsc="plain" role="Promoted" node="n1" score="-INFINITY"/>
        <rsc_location id="likes" rsc="plain" node="n1" score="100"/>
        <rsc_location id="ruled" rsc="plain"><rule id="ru" score="-INFINITY"/></rsc_location>
      </constraints>
    </configuration>"#;

    fn words(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn resources_are_found_with_what_is_around_them() {
        let found = Configuration::parse(CIB).unwrap();
        let shown: Vec<_> = found
            .resources
            .iter()
            .map(|one| (one.primitive.as_str(), one.id(), one.stopped, one.unmanaged))
            .collect();
        assert_eq!(
            shown,
            [
                ("vm", "vm-pair", true, false),
                ("plain", "plain", false, true),
                ("in-group", "g", true, false),
                ("in-group-started", "g", false, false),
                ("last", "last", false, false),
            ]
        );
        let configs: Vec<_> = found
            .resources
            .iter()
            .map(|one| one.config.as_str())
            .collect();
        assert_eq!(
            configs,
            ["/nowhere/web.toml", "/nowhere/db.toml", "", "", ""]
        );
        let named = |vm: &str| {
            let vm = vm.parse().unwrap();
            found.resources.iter().filter(|one| one.names(&vm)).count()
        };
        assert_eq!((named("web"), named("db"), named("vm")), (1, 1, 0));
    }

    #[test]
    fn properties_nodes_and_constraints_are_read() {
        let found = Configuration::parse(CIB).unwrap();
        assert!(!found.maintenance);
        assert!(found.stopped);
        assert_eq!(found.standby, words(&["n1"]));
        assert_eq!(found.maintained, words(&["n2"]));
        assert_eq!(
            found.bans,
            ["n3", "n4"]
                .map(|node| ("plain".to_owned(), node.to_owned()))
                .into()
        );
        assert_eq!(
            found.locations,
            words(&["cli-ban-plain-on-n3", "no", "role-only", "likes", "ruled"])
        );
    }

    #[test]
    fn what_is_no_cib_is_an_error_and_an_empty_one_is_none() {
        assert!(Configuration::parse("<a><b></a>").is_err());
        assert_eq!(
            Configuration::parse("<configuration/>").unwrap(),
            Configuration::default()
        );
    }
}
