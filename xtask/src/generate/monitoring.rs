//! `deploy/monitoring/`: alert rules and a dashboard for what the operator's `/metrics` tells.

mod alerts;
mod dashboard;

use serde_json::json;

pub use alerts::{ALERTS, Alert, Severity};
pub use dashboard::{PANELS, Panel};

/// The rules as Prometheus reads them, and as the Prometheus Operator does.
pub(super) fn yaml_files() -> [(&'static str, String); 2] {
    let groups = alerts::groups();
    let resource = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": { "name": "monok8s-os-upgrades", "namespace": "mono-system" },
        "spec": groups,
    });
    [("monitoring/alerts.yaml", yaml(&groups)), ("monitoring/prometheus-rule.yaml", yaml(&resource))]
}

/// The dashboard as Grafana imports it.
pub(super) fn dashboard_file() -> (&'static str, String) {
    ("monitoring/dashboard.json", format!("{:#}\n", dashboard::dashboard()))
}

#[allow(clippy::expect_used, reason = "values of strings, numbers, lists and maps always serialize")]
fn yaml(value: &serde_json::Value) -> String {
    serde_yaml::to_string(value).expect("YAML of a JSON value")
}
