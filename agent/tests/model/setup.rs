// SPDX-License-Identifier: Apache-2.0
//! Which cluster is checked, and which known-bad rule it is checked with.

/// A cluster of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Configured nodes, an agent each.
    pub nodes: usize,
    /// The first so many may have an engine of the VM; two have one at the start.
    pub hosts: usize,
    /// `None`: everything as it is shipped.
    pub variant: Option<Variant>,
    /// How much of its inbox an agent takes in one step.
    pub grain: Grain,
}

/// How much of its inbox an agent takes in one step of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grain {
    /// All of it, so nothing strikes between two events of one agent.
    Burst,
    /// One event.
    Event,
}

/// Known-bad rules. The model is worth something only if it finds each of them out. They are
/// switches in the model's glue, never in what is shipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// An active replica goes solo when its link is lost, without asking anybody.
    SoloOnLinkLoss,
    /// With three agents, Pacemaker's word that the other replica was fenced is enough for solo.
    SoloByFencing,
    /// A passive replica takes over when the active one's node left and its own partition calls
    /// itself quorate.
    TakeOverByQuorum,
    /// The first checkpoint of a pair is captured before outputs are held.
    JoinBeforeHold,
    /// A checkpoint is acknowledged before its state was decoded.
    AckBeforeDecode,
}

impl Setup {
    /// Two nodes, each with an engine: Pacemaker's word, which follows fencing, decides.
    pub const TWO: Self = Self::new(2, 2);
    /// Two hosts and a witness: the majority decides.
    pub const WITNESS: Self = Self::new(3, 2);
    /// Three hosts: the third takes the place of a lost one.
    pub const THREE: Self = Self::new(3, 3);

    const fn new(nodes: usize, hosts: usize) -> Self {
        Self {
            nodes,
            hosts,
            variant: None,
            grain: Grain::Burst,
        }
    }

    /// The same cluster with a known-bad rule.
    pub const fn with(self, variant: Variant) -> Self {
        Self {
            variant: Some(variant),
            ..self
        }
    }

    /// The same cluster, an event a step.
    pub const fn fine(self) -> Self {
        Self {
            grain: Grain::Event,
            ..self
        }
    }

    pub fn is(&self, variant: Variant) -> bool {
        self.variant == Some(variant)
    }

    /// Fewer than three agents: what Pacemaker says must be true, fencing makes it so. Otherwise it
    /// may say anything.
    pub const fn pacemaker_is_truthful(&self) -> bool {
        self.nodes < 3
    }
}
