//! What people do: they write specs, and take them back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::World;
use crate::api::{OSUpgrade, OSUpgradeProgress, OSUpgradeProgressSpec, ProgressPhase, SourceRef};

impl World {
    /// Creates an upgrade, or changes its spec.
    pub(in crate::rollout::tests) fn apply(&mut self, wanted: &OSUpgrade) {
        let stamp = self.tick();
        let name = wanted.metadata.name.clone();
        if let Some(known) = self.upgrades.iter_mut().find(|known| known.metadata.name == name) {
            known.spec = wanted.spec.clone();
            known.metadata.annotations.clone_from(&wanted.metadata.annotations);
            known.metadata.generation = known.metadata.generation.map(|generation| generation + 1);
            return;
        }
        let mut new = wanted.clone();
        new.metadata.uid = Some(format!("{}-{stamp}", name.unwrap_or_default()));
        new.metadata.creation_timestamp = Some(Time(self.now));
        new.status = None;
        self.upgrades.push(new);
    }

    /// Deletes an upgrade, and what it owns.
    pub(in crate::rollout::tests) fn delete(&mut self, name: &str) {
        let Some(at) = self.upgrades.iter().position(|known| known.metadata.name.as_deref() == Some(name))
        else {
            return;
        };
        let gone = self.upgrades.remove(at).metadata.uid;
        self.progresses.retain(|_, progress| {
            progress.metadata.owner_references.iter().flatten().all(|owner| Some(&owner.uid) != gone.as_ref())
        });
    }

    /// Somebody begins an upgrade of a machine by hand, which commits at once; or it has ended.
    pub(in crate::rollout::tests) fn by_hand(&mut self, node: &str) {
        let name = format!("by-hand-{node}");
        if self.progresses.remove(&name).is_some() {
            return;
        }
        let stamp = self.tick();
        let spec = OSUpgradeProgressSpec {
            source_ref: SourceRef { name: "by-hand".to_owned() },
            node_name: node.to_owned(),
            retry_nonce: None,
            rollback_nonce: None,
            order: None,
        };
        let mut progress = OSUpgradeProgress::new(&name, spec);
        progress.metadata.uid = Some(format!("{name}-{stamp}"));
        progress.status.get_or_insert_default().phase = Some(ProgressPhase::Rebooting);
        self.progresses.insert(name, progress);
    }

    /// Sets a new rollbackNonce on the object of a node, as a person does.
    pub(in crate::rollout::tests) fn send_back(&mut self, node: &str) {
        let stamp = self.tick();
        let mut objects = self.progresses.values_mut();
        let object = objects.find(|object| object.spec.node_name == node && object.spec.order.is_some());
        if let Some(object) = object {
            object.spec.rollback_nonce = Some(format!("back-{stamp}"));
            object.metadata.generation = object.metadata.generation.map(|generation| generation + 1);
            object.metadata.resource_version = Some(stamp.to_string());
        }
    }

    /// Sets a new retryNonce on the newest object of a node, as a person does. One that was sent back stays there.
    pub(in crate::rollout::tests) fn retry_node(&mut self, node: &str) {
        let run = |object: &OSUpgradeProgress| object.spec.order.as_ref().map(|order| order.run);
        let objects = self.progresses.values().filter(|object| object.spec.node_name == node);
        let newest = objects.max_by_key(|object| run(object));
        let newest = newest.filter(|object| object.spec.rollback_nonce.is_none());
        if let Some(name) = newest.and_then(|object| object.metadata.name.clone()) {
            let nonce = format!("again-{}", self.tick());
            self.retry(&name, &nonce);
        }
    }

    /// Sets a retryNonce on a progress object, as a person does.
    pub(in crate::rollout::tests) fn retry(&mut self, name: &str, nonce: &str) {
        let stamp = self.tick();
        if let Some(progress) = self.progresses.get_mut(name) {
            progress.spec.retry_nonce = Some(nonce.to_owned());
            progress.metadata.generation = progress.metadata.generation.map(|generation| generation + 1);
            progress.metadata.resource_version = Some(stamp.to_string());
        }
    }
}
