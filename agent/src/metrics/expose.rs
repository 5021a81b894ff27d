// SPDX-License-Identifier: Apache-2.0
//! A snapshot as OpenMetrics text, which Prometheus reads.

use std::fmt;

use kemari_api::agent::ReplicaView;
use kemari_api::figures::{BOUNDS_US, Histogram};
use kemari_api::replica::ReplicaStatus;
use kemari_api::{Licence, Role, VmName};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{Kind, Metric, Snapshot};

/// The form of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const ROLES: [Role; 4] = [Role::Waiting, Role::Passive, Role::Active, Role::Outdated];
const LICENCES: [Licence; 4] = [Licence::None, Licence::Solo, Licence::Paired, Licence::Cut];

/// The text of a snapshot.
///
/// # Errors
/// When the text cannot be made, which would be a defect of this program.
pub fn text_of(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut Exposition(&mut encoder);
        self.cluster(out)?;
        self.replicas(out)?;
        self.figures(out)?;
        self.counted(out)
    }
}

/// A label: name and value.
type Label<'a> = (&'static str, &'a str);

/// Writes one metric at a time.
struct Exposition<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Exposition<'_, '_> {
    fn gauges<'l>(
        &mut self,
        metric: Metric,
        values: impl IntoIterator<Item = (Vec<Label<'l>>, f64)>,
    ) -> fmt::Result {
        let mut family =
            self.0
                .encode_descriptor(metric.name, metric.help, None, MetricType::Gauge)?;
        debug_assert_eq!(metric.kind, Kind::Gauge);
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        metric: Metric,
        values: impl IntoIterator<Item = (Vec<Label<'l>>, u64)>,
    ) -> fmt::Result {
        let mut family =
            self.0
                .encode_descriptor(metric.name, metric.help, None, MetricType::Counter)?;
        debug_assert_eq!(metric.kind, Kind::Counter);
        for (labels, value) in values {
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }

    fn histograms<'l>(
        &mut self,
        metric: Metric,
        values: impl IntoIterator<Item = (Vec<Label<'l>>, &'l Histogram)>,
    ) -> fmt::Result {
        let mut family =
            self.0
                .encode_descriptor(metric.name, metric.help, None, MetricType::Histogram)?;
        debug_assert_eq!(metric.kind, Kind::Histogram);
        for (labels, histogram) in values {
            let bounds = BOUNDS_US.iter().map(|bound| seconds(*bound));
            let buckets: Vec<(f64, u64)> = bounds
                .chain([f64::INFINITY])
                .zip(histogram.counts.iter().copied())
                .collect();
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(histogram.sum_us),
                    histogram.count(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

impl Snapshot {
    fn cluster(&self, out: &mut Exposition<'_, '_>) -> fmt::Result {
        let view = &self.view;
        let bare = |value: f64| [(Vec::new(), value)];
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        out.gauges(super::AGENT, [(version, 1.0)])?;
        out.gauges(super::QUORATE, bare(yes(view.quorate)))?;
        out.gauges(super::NODES, bare(number(self.nodes as u64)))?;
        out.gauges(super::MEMBERS, bare(number(view.members.len() as u64)))?;
        out.gauges(super::AGENTS, bare(number(view.agents.len() as u64)))?;
        let recorded = view.generations.iter();
        out.gauges(
            super::RECORDED,
            recorded.map(|(vm, generation, _)| (of(vm), number(generation.get()))),
        )
    }

    fn here(&self) -> impl Iterator<Item = &ReplicaStatus> {
        let here = |replica: &&ReplicaView| replica.status.node == self.view.node;
        self.view
            .replicas
            .iter()
            .filter(here)
            .map(|replica| &replica.status)
    }

    fn replicas(&self, out: &mut Exposition<'_, '_>) -> fmt::Result {
        let roles = ROLES.map(|role| (role, role.to_string()));
        let licences = LICENCES.map(|licence| (licence, licence.to_string()));
        out.gauges(
            super::ROLE,
            self.here().flat_map(|status| {
                roles.iter().map(|(role, name)| {
                    let labels = vec![("vm", status.vm.as_str()), ("role", name.as_str())];
                    (labels, yes(status.role == *role))
                })
            }),
        )?;
        out.gauges(
            super::LICENCE,
            self.here().flat_map(|status| {
                licences.iter().map(|(licence, name)| {
                    let labels = vec![("vm", status.vm.as_str()), ("licence", name.as_str())];
                    (labels, yes(status.licence == *licence))
                })
            }),
        )?;
        let each = |value: fn(&ReplicaStatus) -> f64| {
            self.here()
                .map(move |status| (of(&status.vm), value(status)))
        };
        out.gauges(super::IN_SYNC, each(|status| yes(status.in_sync)))?;
        out.gauges(
            super::GENERATION,
            each(|status| number(status.generation.get())),
        )?;
        out.gauges(super::EPOCH, each(|status| number(status.epoch.get())))?;
        let active = self.here().filter(|status| status.role == Role::Active);
        out.gauges(
            super::PROTECTED,
            active.map(|status| {
                let protected = status.licence == Licence::Paired && status.in_sync;
                (of(&status.vm), yes(protected))
            }),
        )
    }

    fn figures(&self, out: &mut Exposition<'_, '_>) -> fmt::Result {
        let told = |status: &ReplicaStatus| self.figures.contains_key(&status.vm);
        out.gauges(
            super::ENGINE,
            self.here()
                .map(|status| (of(&status.vm), yes(told(status)))),
        )?;
        let figures = || self.figures.iter();
        out.gauges(
            super::LAG,
            figures().map(|(vm, it)| (of(vm), seconds(it.lag_us))),
        )?;
        out.gauges(
            super::COPYING,
            figures().map(|(vm, it)| (of(vm), yes(it.copying))),
        )?;
        out.gauges(
            super::QUEUE_OUTPUTS,
            figures().map(|(vm, it)| (of(vm), number(it.queue_outputs))),
        )?;
        out.gauges(
            super::QUEUE_BYTES,
            figures().map(|(vm, it)| (of(vm), number(it.queue_bytes))),
        )?;
        out.counters(
            super::CHECKPOINTS,
            figures().map(|(vm, it)| (of(vm), it.checkpoints)),
        )?;
        out.counters(
            super::SENT,
            figures().map(|(vm, it)| (of(vm), it.sent_bytes)),
        )?;
        out.counters(
            super::DIRTY,
            figures().map(|(vm, it)| (of(vm), it.dirty_bytes)),
        )?;
        out.counters(
            super::LINK_FAILURES,
            figures().map(|(vm, it)| (of(vm), it.link_failures)),
        )?;
        out.histograms(super::PAUSE, figures().map(|(vm, it)| (of(vm), &it.pause)))?;
        out.histograms(
            super::COMMIT,
            figures().map(|(vm, it)| (of(vm), &it.commit)),
        )
    }

    fn counted(&self, out: &mut Exposition<'_, '_>) -> fmt::Result {
        let counters = &self.counters;
        out.counters(
            super::CLAIMS,
            counters.claims.iter().map(|((vm, purpose), count)| {
                (
                    vec![("vm", vm.as_str()), ("purpose", purpose.as_str())],
                    *count,
                )
            }),
        )?;
        out.counters(
            super::PROMOTIONS,
            counters
                .promotions
                .iter()
                .map(|((vm, how, grounds), count)| {
                    let labels = vec![("vm", vm.as_str()), ("how", *how), ("grounds", *grounds)];
                    (labels, *count)
                }),
        )?;
        // A counter that appears with its first event has no increase that an alert could see.
        let from_zero = |counts: &std::collections::BTreeMap<VmName, u64>| {
            let count = |vm: &VmName| counts.get(vm).copied().unwrap_or_default();
            let names = self.view.generations.iter().map(|(vm, ..)| vm);
            let mut all: Vec<(Vec<Label<'_>>, u64)> = names.map(|vm| (of(vm), count(vm))).collect();
            all.dedup();
            all
        };
        out.counters(super::FAILOVERS, from_zero(&counters.failovers))?;
        out.counters(super::SOLO, from_zero(&counters.solo))?;
        out.counters(super::OUTDATED, from_zero(&counters.outdated))?;
        out.counters(super::REFUSALS, [(Vec::new(), counters.refusals)])
    }
}

fn of(vm: &VmName) -> Vec<Label<'_>> {
    vec![("vm", vm.as_str())]
}

const fn yes(it: bool) -> f64 {
    if it { 1.0 } else { 0.0 }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Prometheus knows 64-bit floating point only"
)]
const fn number(it: u64) -> f64 {
    it as f64
}

const fn seconds(us: u64) -> f64 {
    number(us) / 1e6
}

#[cfg(test)]
mod tests {
    use super::super::ALL;
    use super::super::counters::Counters;
    use super::*;
    use kemari_api::agent::ClusterView;
    use kemari_api::figures::ReplicaFigures;
    use kemari_api::replica::{DiskState, FailoverPolicy};
    use kemari_api::{Epoch, Generation};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn snapshot() -> Snapshot {
        let vm: VmName = "web".parse().unwrap();
        let mut figures = ReplicaFigures {
            lag_us: 12_000,
            sent_bytes: 7,
            ..ReplicaFigures::default()
        };
        figures.pause.record(Duration::from_micros(300));
        figures.pause.record(Duration::from_secs(60));
        Snapshot {
            view: ClusterView {
                node: "n1".parse().unwrap(),
                quorate: true,
                members: vec!["n1".parse().unwrap()],
                agents: vec!["n1".parse().unwrap()],
                replicas: vec![ReplicaView {
                    status: ReplicaStatus {
                        vm: vm.clone(),
                        node: "n1".parse().unwrap(),
                        pid: 1,
                        role: Role::Active,
                        licence: Licence::Paired,
                        in_sync: true,
                        running: true,
                        generation: Generation::new(3),
                        epoch: Epoch::new(9),
                        disks: DiskState::None,
                        failover: FailoverPolicy::Auto,
                        peer: String::new(),
                        listen: String::new(),
                        detail: String::new(),
                    },
                    present: true,
                }],
                generations: vec![(vm.clone(), Generation::new(3), "n1".parse().unwrap())],
            },
            nodes: 3,
            counters: Counters::default(),
            figures: BTreeMap::from([(vm, figures)]),
        }
    }

    #[test]
    fn values_stand_under_their_names_and_labels() {
        let text = text_of(snapshot()).unwrap();
        for line in [
            "kemari_quorate 1.0",
            "kemari_nodes 3.0",
            "kemari_vm_protected{vm=\"web\"} 1.0",
            "kemari_replica_role{vm=\"web\",role=\"active\"} 1.0",
            "kemari_replica_role{vm=\"web\",role=\"passive\"} 0.0",
            "kemari_replica_licence{vm=\"web\",licence=\"paired\"} 1.0",
            "kemari_lag_seconds{vm=\"web\"} 0.012",
            "kemari_sent_bytes_total{vm=\"web\"} 7",
            "kemari_pause_seconds_bucket{le=\"0.0002\",vm=\"web\"} 0",
            "kemari_pause_seconds_bucket{le=\"0.0005\",vm=\"web\"} 1",
            "kemari_pause_seconds_bucket{le=\"5.0\",vm=\"web\"} 1",
            "kemari_pause_seconds_bucket{le=\"+Inf\",vm=\"web\"} 2",
            "kemari_pause_seconds_count{vm=\"web\"} 2",
            "kemari_failovers_total{vm=\"web\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
    }

    #[test]
    fn every_metric_of_the_list_is_exposed_with_its_help() {
        let text = text_of(snapshot()).unwrap();
        for metric in ALL {
            let help = format!("# HELP {} {}\n", metric.name, metric.help);
            assert!(text.contains(&help), "{help} in {text}");
        }
        let told = text
            .lines()
            .filter(|line| line.starts_with("# HELP"))
            .count();
        assert_eq!(told, ALL.len());
    }
}
