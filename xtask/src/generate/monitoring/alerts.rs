//! What somebody is called for.

use serde_json::{Value, json};

/// One alert.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub expr: &'static str,
    /// For how long.
    pub lasts: &'static str,
    /// How soon somebody must look.
    pub severity: Severity,
    /// What is the matter.
    pub summary: &'static str,
    /// What to type next.
    pub description: &'static str,
}

/// How soon somebody must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// At once.
    Critical,
    /// Today.
    Warning,
    /// Never; it is for the record.
    Info,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

const EXPLAIN: &str = "Next: ctl explain {{ $labels.upgrade }}";
const LOGS: &str = "Next: kubectl --namespace mono-system logs deployment/controller";

/// All of them.
pub const ALERTS: &[Alert] = &[
    Alert {
        name: "MonoK8sNoOperator",
        expr: "sum(monok8s_operator_leading) < 1 or absent(monok8s_operator_leading)",
        lasts: "10m",
        severity: Severity::Critical,
        summary: "No operator of OS upgrades is at work: upgrades stand still, and no cordon is taken off.",
        description: "Next: kubectl --namespace mono-system get pods",
    },
    Alert {
        name: "MonoK8sUpgradeStalled",
        expr: r#"monok8s_operator_upgrade_condition{condition="Stalled"} == 1"#,
        lasts: "5m",
        severity: Severity::Warning,
        summary: "The upgrade {{ $labels.upgrade }} does not go on until somebody acts.",
        description: EXPLAIN,
    },
    Alert {
        name: "MonoK8sUpgradeNotMoving",
        expr: r#"(monok8s_operator_upgrade_condition{condition="Reconciling"} == 1) unless on (upgrade) (monok8s_operator_upgrade_condition{condition=~"Paused|WaitingForWindow"} == 1) unless on (upgrade) (monok8s_operator_waiting_nodes{reason="Soaking"} > 0) unless on (upgrade) (delta(monok8s_operator_nodes{state="upToDate"}[10m]) > 0)"#,
        lasts: "3h",
        severity: Severity::Warning,
        summary: "No node of the upgrade {{ $labels.upgrade }} was done for three hours, and none soaks or waits for a window.",
        description: EXPLAIN,
    },
    Alert {
        name: "MonoK8sNodesFailed",
        expr: r#"monok8s_operator_nodes{state="failed"} > 0"#,
        lasts: "5m",
        severity: Severity::Warning,
        summary: "{{ $value }} nodes of the upgrade {{ $labels.upgrade }} have failed, and stay on their old version.",
        description: "Next: ctl status {{ $labels.upgrade }}",
    },
    Alert {
        name: "MonoK8sNodeRolledBack",
        expr: r#"increase(monok8s_operator_node_outcomes_total{phase="RolledBack"}[1h]) > 0"#,
        lasts: "0m",
        severity: Severity::Warning,
        summary: "A node did not keep the version that it had booted, and is back on its old one.",
        description: "Next: kubectl get osupgradeprogresses",
    },
    Alert {
        name: "MonoK8sDrainBlocked",
        expr: r#"monok8s_operator_upgrade_condition{condition="DrainBlocked"} == 1"#,
        lasts: "15m",
        severity: Severity::Warning,
        summary: "The upgrade {{ $labels.upgrade }} cannot drain a node: a disruption budget or a pod is in its way.",
        description: EXPLAIN,
    },
    Alert {
        name: "MonoK8sHealthGate",
        expr: r#"monok8s_operator_upgrade_condition{condition="HealthGate"} == 1"#,
        lasts: "30m",
        severity: Severity::Warning,
        summary: "A health check holds back the upgrade {{ $labels.upgrade }}.",
        description: EXPLAIN,
    },
    Alert {
        name: "MonoK8sCatalogUnreachable",
        expr: r#"(monok8s_operator_upgrade_condition{condition="CatalogReachable"} == 0) unless on (upgrade) (monok8s_operator_upgrade_condition{condition="Ready"} == 1)"#,
        lasts: "1h",
        severity: Severity::Warning,
        summary: "The catalog of the upgrade {{ $labels.upgrade }} cannot be read; what it blocks by now is not known.",
        description: EXPLAIN,
    },
    Alert {
        name: "MonoK8sForcedDrain",
        expr: "increase(monok8s_operator_forced_drains_total[1h]) > 0",
        lasts: "0m",
        severity: Severity::Info,
        summary: "A node was drained by force: pods were deleted against their budgets, as drain.onTimeout asks.",
        description: "Next: kubectl get osupgradeprogresses --output yaml",
    },
    Alert {
        name: "MonoK8sPassesFail",
        expr: "sum by (stage) (rate(monok8s_operator_failed_passes_total[15m])) > 0.01",
        lasts: "30m",
        severity: Severity::Warning,
        summary: "The operator cannot carry out or report what it plans ({{ $labels.stage }}).",
        description: LOGS,
    },
    Alert {
        name: "MonoK8sWatchesFail",
        expr: "sum by (resource) (rate(monok8s_operator_watch_errors_total[15m])) > 0.01",
        lasts: "30m",
        severity: Severity::Warning,
        summary: "The operator cannot watch {{ $labels.resource }}, and decides on what it knew before.",
        description: LOGS,
    },
    Alert {
        name: "MonoK8sUnreadableObjects",
        expr: "monok8s_operator_unreadable_objects > 0",
        lasts: "15m",
        severity: Severity::Warning,
        summary: "{{ $value }} {{ $labels.kind }} cannot be read by the operator, and are left alone.",
        description: LOGS,
    },
    Alert {
        name: "MonoK8sSlowPlanner",
        expr: "histogram_quantile(0.99, sum by (le) (rate(monok8s_operator_plan_duration_seconds_bucket[15m]))) > 0.5",
        lasts: "30m",
        severity: Severity::Warning,
        summary: "One in a hundred decisions of the operator takes more than half a second.",
        description: "Next: kubectl --namespace mono-system top pods",
    },
];

/// The rules, as one group.
pub(super) fn groups() -> Value {
    let rules: Vec<_> = ALERTS.iter().map(rule).collect();
    json!({ "groups": [{ "name": "monok8s-os-upgrades", "rules": rules }] })
}

fn rule(alert: &Alert) -> Value {
    json!({
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasts,
        "labels": { "severity": alert.severity.word() },
        "annotations": { "summary": alert.summary, "description": alert.description },
    })
}
