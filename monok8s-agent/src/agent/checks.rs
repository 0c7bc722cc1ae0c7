//! The checks that an upgrade configures for a trial: HTTP, a command of the host, pods of this node.

use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use monok8s_sdk::api::{ExecCheck, HttpCheck, PodsCheck, TrialCheck};
use monok8s_sdk::disk::HostView;
use monok8s_sdk::node_upgrade::{CheckSight, Holds, NamedCheck};
use tokio::process::Command;

use super::cluster::{Cluster, ClusterError};
use crate::on_host;

/// How long a command of the host may take.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// What checks are made with.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) host: &'a HostView,
    /// `None` where nobody can ask the API server.
    pub(crate) cluster: Option<&'a Cluster>,
}

/// Looks at all of `checks` at once, and takes in what was seen at this uptime.
pub(crate) async fn observe(
    holds: &mut Holds,
    checks: &[TrialCheck],
    means: Means<'_>,
    uptime: Duration,
) -> Vec<NamedCheck> {
    let sights = futures::future::join_all(checks.iter().map(|check| look(check, means))).await;
    checks.iter().zip(sights).map(|(check, sight)| holds.see(check, sight, uptime)).collect()
}

async fn look(check: &TrialCheck, means: Means<'_>) -> CheckSight {
    match check {
        TrialCheck { http: Some(http), .. } => ask(http, means.http).await,
        TrialCheck { exec: Some(exec), .. } => execute(exec, means.host).await,
        TrialCheck { pods: Some(pods), .. } => look_at_pods(pods, means.cluster).await,
        // What a newer release checks, this one cannot; that is no reason to call it well.
        _ => CheckSight::Unwell("this agent does not know such a check".to_owned()),
    }
}

async fn ask(check: &HttpCheck, http: &reqwest::Client) -> CheckSight {
    match http.get(&check.url).send().await {
        Ok(answer) if answer.status().is_success() => CheckSight::Well,
        Ok(answer) => CheckSight::Unwell(format!("{} answers {}", check.url, answer.status())),
        Err(_) => CheckSight::Unwell(format!("{} does not answer", check.url)),
    }
}

async fn execute(check: &ExecCheck, host: &HostView) -> CheckSight {
    let Some((program, arguments)) = check.command.split_first() else {
        return CheckSight::Unwell("no command is given".to_owned());
    };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = Command::from(on_host::command(host, program, &arguments));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(EXEC_TIMEOUT, command.status()).await {
        Ok(Ok(status)) if status.success() => CheckSight::Well,
        Ok(Ok(status)) => CheckSight::Unwell(format!("{program} ends with {status}")),
        Ok(Err(error)) => CheckSight::Unwell(format!("{program} cannot be run: {error}")),
        Err(_) => CheckSight::Unwell(format!("{program} has not ended after {} s", EXEC_TIMEOUT.as_secs())),
    }
}

async fn look_at_pods(check: &PodsCheck, cluster: Option<&Cluster>) -> CheckSight {
    let Some(cluster) = cluster else { return CheckSight::ApiUnreachable };
    let selector = match check.label_selector.parse() {
        Ok(selector) => selector,
        Err(error) => return CheckSight::Unwell(error.to_string()),
    };
    match cluster.pods(&check.namespace).await {
        Ok(pods) => {
            let chosen = pods.iter().filter(|pod| {
                selector.matches(pod.metadata.labels.as_ref().unwrap_or(&std::collections::BTreeMap::new()))
            });
            judge(chosen, &check.namespace)
        }
        Err(ClusterError::Unreachable { .. }) => CheckSight::ApiUnreachable,
        Err(error) => CheckSight::Unwell(monok8s_sdk::causes::chain(&error)),
    }
}

/// A Node was seen Ready elsewhere while every pod on it failed, so none that is there may.
fn judge<'a>(pods: impl Iterator<Item = &'a Pod>, namespace: &str) -> CheckSight {
    let mut any = false;
    for pod in pods {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() || phase == "Succeeded" {
            continue;
        }
        any = true;
        let ready = status.conditions.unwrap_or_default();
        let ready = ready.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        if phase != "Running" || !ready {
            let how = if phase == "Running" { "Running, but not Ready" } else { phase.as_str() };
            return CheckSight::Unwell(format!("pod {namespace}/{name} is {how}"));
        }
    }
    if any {
        CheckSight::Well
    } else {
        CheckSight::Unwell(format!("no such pod of {namespace} is on this node"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str, ready: &str) -> Pod {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let status = json!({"phase": phase, "conditions": conditions});
        serde_json::from_value(json!({"metadata": {"name": "web-0"}, "status": status})).unwrap()
    }

    #[test]
    fn pods_are_well_if_there_are_any_and_all_of_them_are_ready() {
        let judge = |pods: &[Pod]| judge(pods.iter(), "shop");
        let (well, done) = (pod("Running", "True"), pod("Succeeded", "False"));
        assert_eq!(judge(&[well.clone(), done.clone()]), CheckSight::Well);
        let seen = |pods: &[Pod]| match judge(pods) {
            CheckSight::Unwell(seen) => seen,
            other => panic!("{other:?}"),
        };
        assert!(seen(&[]).contains("no such pod"));
        assert!(seen(&[done]).contains("no such pod"), "what has ended says nothing about this boot");
        assert_eq!(seen(&[well.clone(), pod("Pending", "False")]), "pod shop/web-0 is Pending");
        assert_eq!(seen(&[well, pod("Running", "False")]), "pod shop/web-0 is Running, but not Ready");
    }

    #[tokio::test]
    async fn a_command_of_the_host_is_judged_by_how_it_ends() {
        let host = HostView::new("/");
        let run = |command: &[&str]| {
            let check = ExecCheck { command: command.iter().map(|&word| word.to_owned()).collect() };
            let host = &host;
            async move { execute(&check, host).await }
        };
        assert_eq!(run(&["true"]).await, CheckSight::Well);
        assert!(matches!(run(&["false"]).await, CheckSight::Unwell(_)));
        assert!(matches!(run(&["/nonexistent/program"]).await, CheckSight::Unwell(_)));
        assert!(matches!(run(&[]).await, CheckSight::Unwell(_)));
    }

    #[tokio::test]
    async fn an_http_check_wants_an_answer_of_2xx() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for answer in ["200 OK", "503 Service Unavailable"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await.unwrap();
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.unwrap();
            }
        });
        // Another test of this process may have done so.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let check = HttpCheck { url };
        assert_eq!(ask(&check, &http).await, CheckSight::Well);
        assert!(matches!(ask(&check, &http).await, CheckSight::Unwell(seen) if seen.contains("503")));
        server.await.unwrap();
        assert!(
            matches!(ask(&check, &http).await, CheckSight::Unwell(seen) if seen.contains("does not answer"))
        );
    }
}
