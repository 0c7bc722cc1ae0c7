//! What kubectl shows at every stage of an upgrade is what docs/kubectl.md says.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use monok8s_sdk::api::find_condition;
use xtask::host::workspace_root;
use xtask::kubelet::NodeSpec;

use super::agent::Manner;
use super::fixture::{Cluster, Operator, catalog};

/// Set, the page is written instead of compared.
const WRITE: &str = "MONOK8S_WRITE_DOCS";
const STAGE: &str = "<!-- stage: ";
const TIME: &str = "2026-01-01T00:00:00Z";
/// In a command, the object of the first node.
const NAME: &str = "osupgrade-0000000000";
const UID: &str = "00000000-0000-0000-0000-000000000000";
const NEVER_TONIGHT: &str = "rollout: {maxUnavailable: 2, windows: [{kind: Allow, schedule: '0 0 29 2 *', durationMinutes: 1, timeZone: UTC}]}";

fn page() -> PathBuf {
    workspace_root().join("docs/kubectl.md")
}

/// A page in pieces: text, the beginning of a stage, a command with its output.
enum Piece {
    Text(String),
    Stage(String),
    Command { command: String, output: String },
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(stage) = line.strip_prefix(STAGE) {
            pieces.push(Piece::Stage(stage.trim_end_matches(" -->").to_owned()));
        } else if line == "```sh" {
            let command: String = lines.by_ref().take_while(|line| *line != "```").collect();
            assert_eq!(lines.next(), Some("```"), "an output follows {command}");
            let output: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            pieces.push(Piece::Command { command, output: output.join("\n") });
        } else {
            pieces.push(Piece::Text(line.to_owned()));
        }
    }
    pieces
}

fn text(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(line) => writeln!(text, "{line}").unwrap(),
            Piece::Stage(stage) => writeln!(text, "{STAGE}{stage} -->").unwrap(),
            Piece::Command { command, output } => {
                writeln!(text, "```sh\n{command}\n```\n```\n{output}\n```").unwrap();
            }
        }
    }
    text
}

/// Puts stand-ins in the place of what differs from run to run. They are as long, so that columns stay columns.
fn steady(output: &str) -> String {
    let told = output.split("\nEvents:").next().unwrap().trim_end();
    let lines: Vec<_> = told.lines().map(steady_line).collect();
    lines.join("\n")
}

fn steady_line(line: &str) -> String {
    if let Some((name, _)) = line.split_once("Resource Version:") {
        return format!("{name}Resource Version:  1000");
    }
    let mut characters: Vec<char> = line.trim_end().chars().collect();
    let is_hex = |c: &char| c.is_ascii_hexdigit() && !c.is_ascii_uppercase();
    for at in 0..characters.len() {
        let follows = |stand_in: &str, fits: &dyn Fn(&char, char) -> bool| {
            let here = characters.get(at..at + stand_in.len());
            here.is_some_and(|here| here.iter().zip(stand_in.chars()).all(|(c, model)| fits(c, model)))
        };
        let stand_in = if follows(TIME, &|c, model| {
            if model.is_ascii_digit() { c.is_ascii_digit() } else { *c == model }
        }) {
            TIME
        } else if follows(UID, &|c, model| if model == '0' { is_hex(c) } else { *c == model }) {
            UID
        } else if follows(NAME, &|c, model| {
            if model == '0' { is_hex(c) } else { *c == model }
        }) {
            NAME
        } else {
            continue;
        };
        characters.splice(at..at + stand_in.len(), stand_in.chars());
    }
    steady_age(&characters.into_iter().collect::<String>())
}

/// The age in the last column of a wide table.
fn steady_age(line: &str) -> String {
    let Some((rest, last)) = line.rsplit_once("   ") else { return line.to_owned() };
    let is_age = last.ends_with(['s', 'm']) && last.starts_with(|c: char| c.is_ascii_digit());
    if is_age && !last.contains(' ') { format!("{rest}   5s") } else { line.to_owned() }
}

fn manifest(name: &str, selector: &str, more: &str) -> String {
    let catalog = catalog("v1.35.1", &["v1.35.1", "v1.35.4"], &[]);
    let inline: Vec<_> = catalog.lines().map(|line| format!("      {line}")).collect();
    format!(
        "apiVersion: monok8s.io/v1alpha1\nkind: OSUpgrade\nmetadata: {{name: {name}}}\nspec:\n  version: v1.35.4\n  \
         nodeSelector: {selector}\n  catalog:\n    inline: |\n{}\n  {more}\n",
        inline.join("\n")
    )
}

async fn object_of_node_1(cluster: &Cluster) -> String {
    let objects = cluster.progresses().await;
    let name = objects.iter().find(|object| object.spec.node_name == "node-1").map(ResourceExt::name_any);
    name.unwrap_or_default()
}

async fn until(cluster: &Cluster, operator: &mut Operator, what: &str, test: impl AsyncFn(&Cluster) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !test(cluster).await {
        operator.child.expect_running().unwrap();
        assert!(Instant::now() < deadline, "never: {what}; {}", operator.child.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the Ready condition has this reason, and the status is about the newest spec.
async fn until_ready_says(cluster: &Cluster, operator: &mut Operator, name: &str, reason: &str) {
    until(cluster, operator, reason, async |cluster| {
        let upgrade = cluster.upgrade(name).await;
        let Some(status) = &upgrade.status else { return false };
        let ready = find_condition(&status.conditions, &"Ready".to_owned().into());
        status.observed_generation == upgrade.metadata.generation
            && ready.is_some_and(|ready| ready.reason == reason)
    })
    .await;
}

async fn reach(stage: &str, cluster: &Cluster, operator: &mut Operator) {
    let both = "{pool: two}";
    match stage {
        "no node matches" => {
            cluster.apply(&manifest("my-upgrade", "{pool: tow}", NEVER_TONIGHT)).await;
            until_ready_says(cluster, operator, "my-upgrade", "NoMatchingNodes").await;
        }
        "waits for a window" => {
            cluster.apply(&manifest("my-upgrade", both, NEVER_TONIGHT)).await;
            until_ready_says(cluster, operator, "my-upgrade", "WaitingForWindow").await;
            until(cluster, operator, "both staged", async |cluster| {
                let nodes = cluster.upgrade("my-upgrade").await.status.and_then(|status| status.nodes);
                nodes.is_some_and(|nodes| nodes.staged == 2)
            })
            .await;
        }
        "paused" => {
            let kubectl = cluster.control_plane.kubectl();
            let hold = ["annotate", "osupgrade", "my-upgrade", "monok8s.io/hold=true"];
            kubectl.succeed(&hold).await.unwrap();
            until_ready_says(cluster, operator, "my-upgrade", "Paused").await;
        }
        "completed" => {
            let kubectl = cluster.control_plane.kubectl();
            kubectl.succeed(&["annotate", "osupgrade", "my-upgrade", "monok8s.io/hold-"]).await.unwrap();
            cluster.apply(&manifest("my-upgrade", both, "rollout: {maxUnavailable: 2}")).await;
            until_ready_says(cluster, operator, "my-upgrade", "UpToDate").await;
            // The last words of the agents, and of the operator about them.
            until(cluster, operator, "rest", async |cluster| {
                cluster.writes_within(Duration::from_secs(1)).await.is_empty()
            })
            .await;
        }
        "a node fails" => {
            cluster.apply(&manifest("broken", "{pool: broken}", "")).await;
            until_ready_says(cluster, operator, "broken", "NodesFailed").await;
        }
        other => panic!("the page names an unknown stage: {other}"),
    }
}

#[tokio::test]
async fn kubectl_shows_what_the_page_says_at_every_stage() {
    let mut cluster = Cluster::start().await;
    let worker = |name: &str, pool: &str| NodeSpec::worker(name, "v1.35.1").label("pool", pool);
    cluster.add(worker("node-1", "two"), Manner::Works, 2).await;
    cluster.add(worker("node-2", "two"), Manner::Works, 2).await;
    cluster.add(worker("node-3", "broken"), Manner::FailsToStage, 2).await;
    let mut operator = cluster.operator("operator", &["--no-lease"]);
    let written = std::fs::read_to_string(page()).unwrap();
    let mut pieces = pieces(&written);
    for piece in &mut pieces {
        match piece {
            Piece::Text(_) => {}
            Piece::Stage(stage) => reach(stage, &cluster, &mut operator).await,
            Piece::Command { command, output } => {
                let command = command.replace(NAME, &object_of_node_1(&cluster).await);
                let args: Vec<_> = command.split_whitespace().skip(1).collect();
                let printed = cluster.control_plane.kubectl().run(&args).await.unwrap();
                *output = steady(&[printed.stdout, printed.stderr].concat());
            }
        }
    }
    let shown = text(&pieces);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(page(), &shown).unwrap();
    }
    let different = written.lines().zip(shown.lines()).find(|(page, kubectl)| page != kubectl);
    assert!(
        different.is_none() && written.len() == shown.len() || std::env::var_os(WRITE).is_some(),
        "page and kubectl differ first in {different:?}; with {WRITE}=1 this test writes the page"
    );
}

#[test]
fn what_differs_from_run_to_run_has_stand_ins_of_its_length() {
    let line =
        "osupgrade-1f0c2a9b77   node-1  2026-11-30T18:02:22Z 8a41d20e-3c12-4f00-9abc-0123456789ab   12s";
    assert_eq!(steady_line(line), format!("{NAME}   node-1  {TIME} {UID}   5s"));
    assert_eq!(steady("  UID:  x\nEvents:\n  Type  Reason"), "  UID:  x");
    assert_eq!(steady_line("  Resource Version:  4711"), "  Resource Version:  1000");
}
