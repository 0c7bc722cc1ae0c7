//! A dashboard: how far upgrades are, what they wait for, how long nodes take, how the operator is.

use serde_json::{Value, json};

/// One panel.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    /// Its title.
    pub title: &'static str,
    /// What it asks, and what each answer is called.
    pub queries: &'static [(&'static str, &'static str)],
    about: &'static str,
    kind: Kind,
    unit: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Lines over time.
    Lines,
    /// Lines upon each other.
    Stack,
    /// The last value of each.
    Now,
}

const fn panel(
    title: &'static str,
    about: &'static str,
    (kind, unit): (Kind, &'static str),
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, queries, about, kind, unit }
}

/// All of them, two in a row.
pub const PANELS: &[Panel] = &[
    panel(
        "Phase",
        "The phase that each upgrade is in.",
        (Kind::Now, "none"),
        &[(r#"monok8s_operator_upgrade_phase{upgrade=~"$upgrade"} == 1"#, "{{upgrade}}: {{phase}}")],
    ),
    panel(
        "Time left",
        "Until the run is expected to end, while that can be said.",
        (Kind::Now, "s"),
        &[(
            r#"monok8s_operator_upgrade_expected_completion_timestamp_seconds{upgrade=~"$upgrade"} - time()"#,
            "{{upgrade}}",
        )],
    ),
    panel(
        "Nodes",
        "The nodes of the upgrades by where they stand.",
        (Kind::Stack, "none"),
        &[(r#"sum by (state) (monok8s_operator_nodes{upgrade=~"$upgrade"})"#, "{{state}}")],
    ),
    panel(
        "What nodes wait for",
        "How many nodes wait, by reason. DrainBlocked and HealthGate want a look.",
        (Kind::Stack, "none"),
        &[(r#"sum by (reason) (monok8s_operator_waiting_nodes{upgrade=~"$upgrade"})"#, "{{reason}}")],
    ),
    panel(
        "Conditions that want a person",
        "1 while they hold.",
        (Kind::Lines, "none"),
        &[(
            r#"monok8s_operator_upgrade_condition{upgrade=~"$upgrade", condition=~"Stalled|DrainBlocked|HealthGate"}"#,
            "{{upgrade}}: {{condition}}",
        )],
    ),
    panel(
        "Budgets that hold up a drain",
        "Each disruption budget that refuses an eviction, with the node.",
        (Kind::Now, "none"),
        &[("monok8s_operator_refusing_budgets", "{{node}}: {{budget}}")],
    ),
    panel(
        "How attempts ended",
        "Nodes in an hour.",
        (Kind::Stack, "none"),
        &[
            ("increase(monok8s_operator_node_outcomes_total[1h])", "{{phase}}"),
            ("increase(monok8s_operator_forced_drains_total[1h])", "drained by force"),
        ],
    ),
    panel(
        "How long phases take",
        "The median and the 95th percentile of the last day, by the nodes' own clocks.",
        (Kind::Lines, "s"),
        &[
            (
                "histogram_quantile(0.5, sum by (le, phase) (rate(monok8s_operator_node_phase_duration_seconds_bucket[1d])))",
                "{{phase}}, half",
            ),
            (
                "histogram_quantile(0.95, sum by (le, phase) (rate(monok8s_operator_node_phase_duration_seconds_bucket[1d])))",
                "{{phase}}, 95 %",
            ),
        ],
    ),
    panel(
        "Writes of the operator",
        "In a second, by what they do. At rest there are none.",
        (Kind::Stack, "ops"),
        &[
            ("sum by (kind) (rate(monok8s_operator_actions_total[5m]))", "{{kind}}"),
            ("rate(monok8s_operator_conflicts_total[5m])", "refused: the object had changed"),
        ],
    ),
    panel(
        "How long the operator takes",
        "The 99th percentile of a decision, and of a whole pass with its writes.",
        (Kind::Lines, "s"),
        &[
            (
                "histogram_quantile(0.99, sum by (le) (rate(monok8s_operator_plan_duration_seconds_bucket[5m])))",
                "decision",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(monok8s_operator_pass_duration_seconds_bucket[5m])))",
                "pass",
            ),
        ],
    ),
    panel(
        "Trouble of the operator",
        "In a second: passes that ended early, watches that broke off, catalogs that could not be read.",
        (Kind::Lines, "ops"),
        &[
            ("sum by (stage) (rate(monok8s_operator_failed_passes_total[5m]))", "pass: {{stage}}"),
            ("sum by (resource) (rate(monok8s_operator_watch_errors_total[5m]))", "watch: {{resource}}"),
            (
                r#"sum by (source) (rate(monok8s_operator_catalog_reads_total{result="error"}[5m]))"#,
                "catalog: {{source}}",
            ),
        ],
    ),
    panel(
        "Objects that cannot be read",
        "What a newer release wrote, most often.",
        (Kind::Lines, "none"),
        &[("monok8s_operator_unreadable_objects", "{{kind}}")],
    ),
];

pub(super) fn dashboard() -> Value {
    let panels: Vec<_> = PANELS.iter().enumerate().map(|(at, panel)| drawn(at, panel)).collect();
    json!({
        "title": "MonoK8s OS upgrades",
        "uid": "monok8s-os-upgrades",
        "description": "Generated by `cargo xtask gen`.",
        "tags": ["monok8s"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "30s",
        "time": { "from": "now-6h", "to": "now" },
        "templating": { "list": [
            { "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus" },
            {
                "name": "upgrade", "type": "query", "label": "Upgrade", "datasource": source(),
                "query": "label_values(monok8s_operator_upgrade_phase, upgrade)",
                "refresh": 2, "includeAll": true, "multi": true, "current": { "text": "All", "value": "$__all" },
            },
        ] },
        "panels": panels,
    })
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

fn drawn(at: usize, panel: &Panel) -> Value {
    let targets = panel.queries.iter().zip(["A", "B", "C", "D"]).map(|((expr, legend), id)| {
        json!({
            "refId": id, "expr": expr, "legendFormat": legend, "datasource": source(),
            "instant": panel.kind == Kind::Now, "range": panel.kind != Kind::Now,
        })
    });
    let (kind, options) = match panel.kind {
        Kind::Now => {
            ("stat", json!({ "textMode": "value_and_name", "reduceOptions": { "calcs": ["lastNotNull"] } }))
        }
        Kind::Lines | Kind::Stack => {
            ("timeseries", json!({ "legend": { "displayMode": "list", "placement": "bottom" } }))
        }
    };
    let (fill, stacking) = if panel.kind == Kind::Stack { (30, "normal") } else { (0, "none") };
    json!({
        "id": at + 1,
        "title": panel.title,
        "description": panel.about,
        "type": kind,
        "datasource": source(),
        "gridPos": { "h": 8, "w": 12, "x": at % 2 * 12, "y": at / 2 * 8 },
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit, "min": 0,
                "custom": { "fillOpacity": fill, "stacking": { "mode": stacking } },
            },
            "overrides": [],
        },
        "options": options,
        "targets": targets.collect::<Vec<_>>(),
    })
}
