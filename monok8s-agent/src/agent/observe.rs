//! What the agent sees of its own host.

use monok8s_sdk::api::GuardState;
use monok8s_sdk::disk::SlotMap;
use monok8s_sdk::image::GuardFiles;
use monok8s_sdk::node_upgrade::{
    ApiView, Attempt, BootId, Booted, Check, HeldToken, NodeFacts, TrialHealth, passed_trial,
};
use monok8s_sdk::slot::Slot;
use monok8s_sdk::version::OsVersion;
use tokio::task::block_in_place;

use super::error::NodeError;
use super::health::OnTrial;
use super::node::Node;
#[cfg(feature = "failpoints")]
use crate::failpoints::{Point, reached};
use crate::guard::{GuardReport, Seen};
use crate::host;
use crate::machine::Loader;

/// What is looked at on the host itself.
pub(super) struct Sight {
    pub(super) facts: NodeFacts,
    pub(super) slots: SlotMap,
}

impl Node {
    /// What the kernel, the disk, the loader and the record say.
    pub(super) async fn look(&mut self) -> Result<Sight, NodeError> {
        let host = self.workshop.host.clone();
        let host = &host;
        let boot_id = BootId(host::boot_id(host)?);
        let uptime = host::uptime(host)?;
        self.recall()?;
        let slots = if let Some(slots) = &self.slots {
            slots.clone()
        } else {
            let found = block_in_place(|| SlotMap::discover(host, &self.workshop.layout))?;
            self.slots.insert(found).clone()
        };
        self.look_for_loader()?;
        let loader = block_in_place(|| self.loader.backend().status())?;
        let slot = slots.booted().slot;
        let (version, known) = self.booted_version(slot, &boot_id).await.ok_or(NodeError::NoVersion)?;
        let on_trial = loader.trial.is_some_and(|trial| trial.slot == slot);
        #[cfg(feature = "failpoints")]
        if on_trial {
            reached(Point::TrialSeen);
        }
        let health = if on_trial {
            let trial = loader.trial.map(|trial| trial.attempt);
            let attempt = self.record.attempt.as_ref().filter(|attempt| Some(attempt.id) == trial);
            let checks = attempt.map_or(&[][..], |attempt| &attempt.trial.checks);
            let on_trial = OnTrial { boot_id: &boot_id, checks, uptime };
            self.probe.observe(host, Some(&self.cluster), on_trial, known).await
        } else {
            TrialHealth::unknown()
        };
        let token = self.token.as_ref().map(|token| HeldToken { slot: token.slot(), digest: token.image() });
        let facts = NodeFacts {
            booted: Booted { slot, version, boot_id },
            loader,
            record: self.record.clone(),
            token,
            health,
            // Now: the API server may have taken its time to answer.
            time_in_trial: host::uptime(host)?,
            api: ApiView::NotRead,
        };
        Ok(Sight { facts, slots })
    }

    /// A loader that was not there may be by now. One that is gone in the middle of an upgrade must
    /// not pass for one on which every slot is confirmed.
    fn look_for_loader(&mut self) -> Result<(), NodeError> {
        if !matches!(self.loader, Loader::Unknown(_)) {
            return Ok(());
        }
        if let Some(found) = block_in_place(|| self.machine.loader())? {
            self.loader = found;
            return Ok(());
        }
        let under_way = self.record.attempt.as_ref().is_some_and(Attempt::may_be_committed);
        let command_line = self.workshop.host.kernel_command_line().ok().flatten().unwrap_or_default();
        if under_way || passed_trial(&command_line).is_some() {
            return Err(NodeError::LoaderGone);
        }
        Ok(())
    }

    /// The version that runs: the host's os-release has the first word. An image that states none
    /// is what its kubelet is, and while nobody can say that, what was written to the slot: good
    /// enough to go on with, and not to confirm.
    pub(super) async fn booted_version(
        &mut self,
        slot: Slot,
        boot_id: &BootId,
    ) -> Option<(OsVersion, Check)> {
        if let Some(stated) = host::booted_version(&self.workshop.host) {
            return Some((stated, Check::Holds));
        }
        if self.kubelet_version.is_none() {
            let info = self.cluster.node().await.ok().and_then(|node| node.status?.node_info);
            let info = info.filter(|info| info.boot_id == boot_id.0);
            self.kubelet_version = info.and_then(|info| OsVersion::of_kubelet(&info.kubelet_version));
        }
        if let Some(version) = &self.kubelet_version {
            return Some((version.clone(), Check::Holds));
        }
        let unknown = "the version is not known yet: the image states none, and the Node object shows \
                       no kubelet of this boot";
        let written = self.record.slots.get(slot)?.version.clone();
        Some((written, Check::Fails(unknown.to_owned())))
    }

    fn has_guard(&self) -> bool {
        let GuardFiles { programs, services } = &*self.workshop.guard;
        let host = &self.workshop.host;
        host::holds_any(host, programs) && (services.is_empty() || host::holds_any(host, services))
    }

    pub(super) fn guard_state(&self, boot_id: &BootId) -> GuardState {
        let host = &self.workshop.host;
        let said = GuardReport::read(host, boot_id).map_or(Seen::Unknown, |report| report.state);
        match said {
            Seen::OnTrial | Seen::SentBack => GuardState::OnTrial,
            Seen::StoodDown => GuardState::StoodDown,
            Seen::Blind => GuardState::Blind,
            Seen::Unknown if self.has_guard() => GuardState::Installed,
            Seen::Unknown => GuardState::Missing,
        }
    }
}
