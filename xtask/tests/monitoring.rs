//! The alert rules and the dashboard: with Prometheus' own tool, and with what the operator really exposes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use monok8s_operator::metrics::{Metrics, UpgradeGauges};
use monok8s_sdk::rollout::fixtures::{node, upgrade};
use monok8s_sdk::rollout::{Fleet, plan};
use xtask::generate::monitoring::{ALERTS, PANELS};
use xtask::host::workspace_root;
use xtask::promtool::promtool;

const RULES: &str = "deploy/monitoring/alerts.yaml";
const TESTS: &str = "testdata/monitoring/alerts.test.yaml";

/// The names in an expression that are metrics of ours.
fn names(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("monok8s_operator_"))
}

/// The series of an operator with one upgrade, by name.
fn exposed() -> BTreeSet<String> {
    let fleet = Fleet {
        nodes: vec![node("a").view().into()],
        upgrades: vec![upgrade("up").view()],
        ..Fleet::default()
    };
    let metrics = Metrics::default();
    let plan = plan(&fleet, "2026-11-24T12:00:00Z".parse().unwrap());
    let mut outlook = plan.outlooks["up-uid"].clone();
    // Series that are there only at times.
    outlook.ends = Some("2026-11-24T13:00:00Z".parse().unwrap());
    outlook.waits.insert(
        "a".to_owned(),
        monok8s_sdk::rollout::Wait {
            reason: monok8s_sdk::api::UpgradeReason::Paused,
            message: String::new(),
        }
        .into(),
    );
    metrics.show_upgrades(&[UpgradeGauges::new("up", &outlook)]);
    metrics.show_refusing_budgets([("a".to_owned(), "default/web".to_owned())].into());
    metrics.watch_failed("nodes");
    metrics.unreadable("nodes", 0);
    metrics.read_catalog("url", "ok");
    let text = metrics.text().unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn alerts_and_panels_ask_only_for_what_the_operator_exposes() {
    let exposed = exposed();
    let alerts = ALERTS.iter().map(|alert| (alert.name, alert.expr));
    let panels = PANELS.iter().flat_map(|panel| panel.queries.iter().map(|(expr, _)| (panel.title, *expr)));
    for (who, expr) in alerts.chain(panels) {
        let asked: Vec<_> = names(expr).collect();
        assert!(!asked.is_empty(), "{who}: {expr}");
        for name in asked {
            assert!(exposed.contains(name), "{who} asks for {name}; there are {exposed:#?}");
        }
    }
}

#[test]
fn every_alert_is_tested_to_fire_and_to_be_quiet() {
    let tests = fs::read_to_string(workspace_root().join(TESTS)).unwrap();
    let tests: serde_json::Value = serde_yaml::from_str(&tests).unwrap();
    let cases = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap());
    let cases: Vec<_> = cases
        .map(|case| (case["alertname"].as_str().unwrap(), !case["exp_alerts"].as_array().unwrap().is_empty()))
        .collect();
    for alert in ALERTS {
        for fires in [true, false] {
            assert!(
                cases.contains(&(alert.name, fires)),
                "{}: no case in which it fires: {fires}",
                alert.name
            );
        }
    }
}

#[tokio::test]
async fn promtool_takes_the_rules_and_their_tests() {
    let promtool = promtool().await.unwrap();
    for arguments in [["check", "rules", RULES], ["test", "rules", TESTS]] {
        let output = Command::new(&promtool).args(arguments).current_dir(workspace_root()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    // A dashboard's queries are rules of no name.
    let rules: Vec<_> = PANELS
        .iter()
        .flat_map(|panel| panel.queries)
        .map(|(expr, _)| serde_json::json!({ "record": "panel", "expr": expr.replace("$upgrade", ".*") }))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let rules = serde_json::json!({ "groups": [{ "name": "panels", "rules": rules }] });
    fs::write(file.path(), rules.to_string()).unwrap();
    let output =
        Command::new(&promtool).args(["check", "rules", "--lint=none"]).arg(file.path()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
