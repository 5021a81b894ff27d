// SPDX-License-Identifier: Apache-2.0
//! Both hosts of a VM lose their power, in each order, and come back singly and together: the guest boots where it ran
//! last, and nowhere else. The disks are replicated, so a host that comes back first may have an old one.
//!
//! `kemarictl force-active`, the way past this, is in `operator.rs`.

use std::fmt;
use std::time::{Duration, Instant};

use kemari_cluster_tests::bed::Bed;
use kemari_cluster_tests::histories::Lives;
use kemari_cluster_tests::ledger_vm::{self, HEAD_BYTES, delivered, delivers};
use kemari_cluster_tests::namespaces::Namespaces;
use kemari_cluster_tests::protected::ProtectedVm;
use kemari_cluster_tests::supervisor;

/// Who loses power, and in which order.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// The active replica had gone on alone: only its host has the newest disk.
    PassiveFirst,
    /// The passive replica had taken over: only its host has the newest disk.
    ActiveFirst,
    /// At the same moment.
    Both,
}

/// Who comes back, and in which order.
#[derive(Debug, Clone, Copy)]
enum Return {
    /// The host where the guest ran last, and later the other one.
    HolderFirst,
    /// The other one, and later the host where the guest ran last.
    OtherFirst,
    Together,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PassiveFirst => "the passive one lost first",
            Self::ActiveFirst => "the active one lost first",
            Self::Both => "both lost",
        })
    }
}

impl fmt::Display for Return {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HolderFirst => "back is first where the guest ran last",
            Self::OtherFirst => "back is first the other one",
            Self::Together => "both back",
        })
    }
}

/// Two hosts, a witness, and the VM.
struct Scene<'a> {
    bed: &'a Namespaces,
    vm: ProtectedVm<'a>,
    witness: String,
}

impl<'a> Scene<'a> {
    fn begin(bed: &'a Namespaces) -> Self {
        let vm =
            ledger_vm::install_overheard(bed, ledger_vm::options(Some(16))).expect("installed");
        vm.configure_with_crm().expect("crm takes it");
        let witness = bed.nodes().last().expect("there are nodes").clone();
        vm.only_votes(&witness).expect("crm takes the constraint");
        Self { bed, vm, witness }
    }

    fn see_more(&self, bytes: usize) {
        delivers(&self.vm, bytes).expect("the guest prints");
    }

    fn generation(&self, node: &str) -> u64 {
        let replica = self.vm.replica(node).expect("the node answers");
        replica.expect("it runs").generation
    }

    /// Takes the power from both. Returns (where the guest ran last, the other one).
    fn lose(&self, loss: Loss) -> (String, String) {
        let (active, passive) = self.vm.wait_protected(self.bed.nodes()).expect("a pair");
        self.see_more(HEAD_BYTES);
        self.vm.wait_promoted(&active).expect("Pacemaker shows it");
        let before = self.generation(&active);
        let kill = |node: &str| self.bed.kill(node).expect("power can be taken");
        let goes_on = |node: &str| {
            self.vm.wait_active(node, before).expect("it goes on");
            self.see_more(2_000);
        };
        let lost = match loss {
            Loss::PassiveFirst => {
                kill(&passive);
                goes_on(&active);
                kill(&active);
                (active, passive)
            }
            Loss::ActiveFirst => {
                kill(&active);
                goes_on(&passive);
                kill(&passive);
                (passive, active)
            }
            Loss::Both => {
                std::thread::scope(|both| {
                    both.spawn(|| kill(&active));
                    kill(&passive);
                });
                (active, passive)
            }
        };
        self.witness_notices(&[lost.0.as_str(), lost.1.as_str()]);
        lost
    }

    /// No host boots as fast as a node of this bed. Where one joins in the very change of membership that another one
    /// leaves in, Pacemaker 2.1.5 may hold the lost one for online, and wait for it again and again.
    fn witness_notices(&self, lost: &[&str]) {
        let offline = |status: &str, node: &str| {
            let name = format!("<node name=\"{node}\"");
            let mut lines = status.lines().filter(|line| line.contains(&name));
            lines.any(|line| line.contains("online=\"false\""))
        };
        self.bed
            .wait_for_status(&self.witness, "both hosts offline", |status| {
                lost.iter().all(|node| offline(status, node))
            })
            .expect("the loss is noticed");
    }

    /// Gives a host its power back, and waits until its replica is there.
    fn give_back(&self, node: &str) {
        self.bed.power_on(node).expect("it boots again");
        self.bed.start_cluster_on(node).expect("it joins again");
        self.vm.start_agent(node).expect("the agent starts");
        let begun = Instant::now();
        while self.vm.replica(node).expect("it answers").is_none() {
            assert!(begun.elapsed() < self.vm.patience(), "no replica starts");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The guest boots on this host.
    fn boots(&self, node: &str) {
        self.vm.wait_active(node, 0).expect("it boots the guest");
        self.see_more(1_000);
    }

    /// The other host alone boots nothing, and says for whom it waits.
    fn waits(&self, node: &str, holder: &str) {
        let before = self.vm.observer.with(delivered);
        self.vm.settle(&self.witness).expect("Pacemaker rests");
        let replica = self.vm.replica(node).expect("it answers");
        assert_eq!(replica.expect("it is there").role, "waiting");
        let promote =
            "busctl call org.kemari.Agent /org/kemari/Agent1 org.kemari.Agent1 Promote s vm";
        let refused = self.vm.run(node, promote).expect_err("it must not boot");
        let reason = format!("{refused:#}");
        assert!(reason.contains(holder), "{reason}");
        println!("  {node} waits: {reason}");
        assert_eq!(self.vm.observer.with(delivered), before, "nothing ran");
    }

    fn come_back(&self, back: Return, holder: &str, other: &str) {
        match back {
            Return::HolderFirst => {
                self.give_back(holder);
                self.boots(holder);
                self.give_back(other);
            }
            Return::OtherFirst => {
                self.give_back(other);
                self.waits(other, holder);
                self.give_back(holder);
                self.boots(holder);
            }
            Return::Together => {
                std::thread::scope(|both| {
                    both.spawn(|| self.give_back(other));
                    self.give_back(holder);
                });
                self.boots(holder);
            }
        }
        let pair = self.vm.wait_protected(self.bed.nodes()).expect("a pair");
        assert_eq!(pair, (holder.to_owned(), other.to_owned()));
    }
}

/// Each of these, one after the other.
fn each(courses: impl IntoIterator<Item = (Loss, Return)>) {
    let _turn = supervisor::turn().expect("tests run as root");
    let bed = ledger_vm::clustered(Namespaces::builder()).expect("the cluster forms");
    let scene = Scene::begin(&bed);
    let mut lives = 1;
    for (loss, back) in courses {
        let begun = Instant::now();
        println!("{loss}, {back}");
        let (holder, other) = scene.lose(loss);
        scene.come_back(back, &holder, &other);
        lives += 1;
        let seen = scene.vm.observer.with(Lives::of);
        seen.judge()
            .unwrap_or_else(|error| panic!("{loss}, {back}: {error:?}"));
        assert_eq!(seen.count(), lives, "a boot each time");
        println!("  {:.1?}: {holder} boots, {other} follows", begun.elapsed());
    }
    let (active, _) = scene.vm.wait_protected(bed.nodes()).expect("a pair");
    let verified = scene.vm.run(&active, "kemarictl verify vm");
    println!("{}", verified.expect("the disks are equal"));
}

/// The order in which the agents on record and those that are there know least of each other.
#[test]
fn after_both_hosts_lost_power_the_guest_boots_where_it_ran_last() {
    each([(Loss::ActiveFirst, Return::OtherFirst)]);
}

#[test]
#[ignore = "ten minutes: make campaign-pacemaker"]
fn every_loss_and_every_return() {
    let losses = [Loss::PassiveFirst, Loss::ActiveFirst, Loss::Both];
    let returns = [Return::HolderFirst, Return::OtherFirst, Return::Together];
    each(
        losses
            .into_iter()
            .flat_map(|loss| returns.map(|back| (loss, back))),
    );
}
