//! Looking at the cluster as a person does.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use monok8s_sdk::api::{
    ConditionType, OSUpgrade, OSUpgradeProgress, OSUpgradeStatus, ProgressPhase, UpgradePhase, find_condition,
};
use xtask::testbed::Testbed;

/// For whatever takes no reboot.
const SOON: Duration = Duration::from_secs(30);
/// For a whole upgrade of a node.
pub(super) const UPGRADE: Duration = Duration::from_secs(60);

/// What `kubectl get` prints.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// Splits by where the columns begin in the header, so that an empty cell is one.
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        let starts: Vec<_> = header
            .char_indices()
            .filter(|(at, character)| {
                !character.is_whitespace() && (*at == 0 || header[..*at].ends_with(' '))
            })
            .map(|(at, _)| at)
            .collect();
        let cells = |line: &str| {
            let ends = starts.iter().skip(1).map(Some).chain([None]);
            let cell = |(start, end): (&usize, Option<&usize>)| {
                let end = end.map_or(line.len(), |end| (*end).min(line.len()));
                line.get(*start..end).unwrap_or_default().trim().to_owned()
            };
            starts.iter().zip(ends).map(cell).collect()
        };
        Self { columns: cells(header), rows: lines.map(cells).collect() }
    }

    /// The line that begins with `name`, without it.
    pub(super) fn row(&self, name: &str) -> Vec<&str> {
        let row = self.rows.iter().find(|row| row[0] == name);
        let row = row.unwrap_or_else(|| panic!("no line {name} in {self:?}"));
        row[1..].iter().map(String::as_str).collect()
    }
}

/// `kubectl get KIND`.
pub(super) async fn get(testbed: &Testbed, kind: &str) -> Table {
    Table::parse(&testbed.kubectl().succeed(&["get", kind]).await.unwrap())
}

/// The value of a field in `kubectl describe`, where fields are words with capitals: empty if it is
/// shown without a value, `None` if it is not shown. Only fields of the status's first level.
pub(super) fn described<'a>(description: &'a str, field: &str) -> Option<&'a str> {
    let status = description.lines().skip_while(|line| *line != "Status:").skip(1);
    let mut status = status.take_while(|line| line.starts_with(' '));
    status.find_map(|line| line.strip_prefix("  ")?.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}

/// Waits until the upgrade's whole spec was judged and `test` holds.
pub(super) async fn upgrade_until(
    testbed: &Testbed,
    name: &str,
    what: &str,
    timeout: Duration,
    test: impl Fn(&OSUpgradeStatus) -> bool,
) -> OSUpgrade {
    let look = || async {
        let found = testbed.upgrades().await?.remove(name);
        Ok(found.filter(|upgrade| {
            let status = upgrade.status.as_ref();
            status.is_some_and(|status| {
                status.observed_generation == upgrade.metadata.generation && test(status)
            })
        }))
    };
    found(testbed.wait_for(&format!("{name}: {what}"), timeout, look).await)
}

/// Waits until the upgrade is in `phase` for `reason`, and returns its message.
pub(super) async fn told(testbed: &Testbed, name: &str, phase: &UpgradePhase, reason: &str) -> String {
    let what = format!("{phase} because of {reason}");
    let holds = |status: &OSUpgradeStatus| {
        status.phase.as_ref() == Some(phase) && ready(status).is_some_and(|ready| ready.reason == reason)
    };
    let upgrade = upgrade_until(testbed, name, &what, SOON, holds).await;
    upgrade.status.unwrap().message.unwrap()
}

/// Waits until the upgrade is in `phase`.
pub(super) async fn phase(testbed: &Testbed, name: &str, phase: &UpgradePhase) -> OSUpgradeStatus {
    let holds = |status: &OSUpgradeStatus| status.phase.as_ref() == Some(phase);
    upgrade_until(testbed, name, phase.as_str(), UPGRADE, holds).await.status.unwrap()
}

fn ready(status: &OSUpgradeStatus) -> Option<&Condition> {
    find_condition(&status.conditions, &ConditionType::Ready)
}

/// The truths of `Ready`, `Reconciling` and `Stalled`.
pub(super) fn kstatus(status: &OSUpgradeStatus) -> [&str; 3] {
    [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled].map(|kind| {
        find_condition(&status.conditions, &kind).map_or("-", |condition| condition.status.as_str())
    })
}

/// Waits until a progress object is as `test` wants it.
pub(super) async fn progress_until(
    testbed: &Testbed,
    what: &str,
    test: impl Fn(&OSUpgradeProgress) -> bool,
) -> OSUpgradeProgress {
    let look = || async { Ok(testbed.progresses().await?.into_values().find(&test)) };
    found(testbed.wait_for(what, UPGRADE, look).await)
}

/// Waits until the progress object `name` is in `phase` with every change of its spec seen.
pub(super) async fn progress_in(testbed: &Testbed, name: &str, phase: &ProgressPhase) -> OSUpgradeProgress {
    progress_until(testbed, &format!("{name}: {phase}"), |progress| {
        let observed = progress.status.as_ref().and_then(|status| status.observed_generation);
        progress.metadata.name.as_deref() == Some(name)
            && progress.phase() == *phase
            && observed == progress.metadata.generation
    })
    .await
}

fn found<T>(outcome: Result<T>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error:#}"))
}

/// The upgrades that there are progress objects of.
pub(super) async fn sources(testbed: &Testbed) -> Result<Vec<String>> {
    Ok(testbed.progresses().await?.into_values().map(|progress| progress.spec.source_ref.name).collect())
}
