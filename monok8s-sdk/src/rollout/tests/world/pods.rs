//! Pods, and what the API server and kubelets do with them.

use std::collections::BTreeMap;

use k8s_openapi::jiff::SignedDuration;

use super::{World, Written};
use crate::rollout::{Eviction, EvictionAnswer, PodController, PodData, PodRef, PodRun, PodView};

/// How long pods take to end.
const GRACE: SignedDuration = SignedDuration::from_secs(30);

/// A pod of a `ReplicaSet`.
pub(in crate::rollout::tests) fn pod(name: &str) -> PodView {
    PodView {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        controller: PodController::Other,
        run: PodRun::Running,
        data: PodData::Elsewhere,
        claims: Vec::new(),
        ends: None,
    }
}

impl World {
    /// The pods of cordoned machines that are still there; one that does not run ends none.
    pub(super) fn pods(&self) -> BTreeMap<String, Vec<PodView>> {
        let cordoned = self.machines.values().filter(|machine| machine.cordoned);
        let there = cordoned.map(|machine| {
            let is_there = |pod: &&PodView| {
                !machine.alive
                    || self.stuck.contains(&pod.name)
                    || pod.ends.is_none_or(|ends| ends > self.now)
            };
            (machine.uid.clone(), machine.pods.iter().filter(is_there).cloned().collect())
        });
        there.collect()
    }

    /// Why nothing is known of the pods of cordoned machines.
    pub(super) fn unseen(&self) -> BTreeMap<String, String> {
        let cordoned = self.machines.values().filter(|machine| self.blind && machine.cordoned);
        cordoned.map(|machine| (machine.uid.clone(), "pods are forbidden".to_owned())).collect()
    }

    /// As after a restart of the operator.
    pub(in crate::rollout::tests) fn forget_evictions(&mut self) {
        self.evictions.clear();
    }

    /// What the API server does with an eviction, or a deletion.
    pub(super) fn end(&mut self, of: &PodRef, answer: EvictionAnswer) -> Written {
        let (now, ends) = (self.now, self.now + GRACE);
        let mut pods = self.machines.values_mut().flat_map(|machine| &mut machine.pods);
        let pod = pods.find(|pod| pod.uid == of.uid);
        if let Some(pod) = pod.filter(|_| answer == EvictionAnswer::Accepted) {
            pod.ends.get_or_insert(ends);
        }
        self.evictions.insert(of.uid.clone(), Eviction { at: now, answer });
        Written::Done
    }
}
