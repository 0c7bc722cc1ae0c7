use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::controlplane::{ControlPlane, ControllerManager, Options, pinned_version};

#[tokio::test]
async fn kubectl_talks_to_the_pinned_version_and_every_write_is_audited() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let kubectl = control_plane.kubectl();

    let version = kubectl.succeed(&["version"]).await.unwrap();
    for end in ["Client", "Server"] {
        assert!(version.contains(&format!("{end} Version: {}", pinned_version().unwrap())), "{version}");
    }

    let mark = control_plane.audit().mark().unwrap();
    kubectl.succeed(&["get", "namespaces"]).await.unwrap();
    let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "audited"}});
    kubectl.succeed_with_stdin(&["create", "-f", "-"], &manifest.to_string()).await.unwrap();
    let writes = control_plane.audit().writes_since(mark).unwrap();
    let by_admin: Vec<_> = writes.iter().filter(|write| write.user == "admin").collect();
    let [write] = by_admin.as_slice() else { panic!("one write, no read: {by_admin:?}") };
    assert_eq!((write.verb.as_str(), write.resource.as_str(), write.code), ("create", "namespaces", 201));
    assert_eq!(write.name.as_deref(), Some("audited"));

    let failure = kubectl.succeed(&["get", "namespace", "nowhere"]).await.unwrap_err().to_string();
    assert!(failure.contains("kubectl get namespace nowhere") && failure.contains("NotFound"), "{failure}");
    let output = kubectl.run(&["get", "namespace", "nowhere"]).await.unwrap();
    assert_eq!((output.status.code(), output.stdout.as_str()), (Some(1), ""));
}

#[tokio::test]
async fn users_and_service_accounts_have_their_own_rights_and_node_names() {
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let admin = control_plane.client();
    create::<Node>(&Api::all(admin.clone()), json!({"metadata": {"name": "node-1"}})).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, "default");
    create(&accounts, json!({"metadata": {"name": "agent"}})).await;

    let path = control_plane.service_account_kubeconfig("default", "agent", Some("node-1")).await.unwrap();
    let agent = control_plane.client_for(&path).await.unwrap();
    let user = who_am_i(&agent).await;
    assert_eq!(user["username"], "system:serviceaccount:default:agent");
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["node-1"]));
    let refused = Api::<Namespace>::all(agent).list(&kube::api::ListParams::default()).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));

    let path = control_plane.user_kubeconfig("system:node:node-1", Some("system:nodes")).unwrap();
    let kubelet = control_plane.client_for(&path).await.unwrap();
    assert_eq!(who_am_i(&kubelet).await["groups"], json!(["system:nodes", "system:authenticated"]));
    assert_eq!(
        Api::<Node>::all(kubelet).get("node-1").await.unwrap().metadata.name.as_deref(),
        Some("node-1")
    );
}

#[tokio::test]
async fn objects_and_address_survive_a_crash_of_the_api_server() {
    let mut control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(control_plane.client());
    create(&namespaces, json!({"metadata": {"name": "kept"}})).await;
    let address = control_plane.server().to_owned();

    control_plane.kill_apiserver().unwrap();
    assert!(namespaces.get("kept").await.is_err(), "the API server is gone");
    control_plane.start_apiserver().await.unwrap();
    assert_eq!(control_plane.server(), address);
    namespaces.get("kept").await.unwrap();
}

#[tokio::test]
async fn the_controller_manager_collects_what_lost_its_owner() {
    let options = Options { controller_manager: ControllerManager::Running };
    let control_plane = ControlPlane::start(options).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(control_plane.client(), "default");
    let owner = create(&maps, json!({"metadata": {"name": "owner"}})).await;
    let reference =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid.unwrap()});
    create(&maps, json!({"metadata": {"name": "owned", "ownerReferences": [reference]}})).await;
    maps.delete("owner", &kube::api::DeleteParams::default()).await.unwrap();

    let deadline = Instant::now() + Duration::from_secs(60);
    while maps.get_opt("owned").await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn nothing_is_left_after_an_interrupt() {
    let mut up = Up::start();
    assert_eq!(up.running().len(), 3, "etcd, API server, controller manager: {:?}", up.running());
    up.signal(Signal::INT);
    assert_eq!(up.program.wait().unwrap().code(), Some(130));
    assert!(up.running().is_empty(), "still running: {:?}", up.running());
    assert!(!up.directory.exists());
}

#[test]
fn children_die_with_a_killed_parent() {
    let mut up = Up::start();
    assert_eq!(up.running().len(), 3);
    up.signal(Signal::KILL);
    up.program.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !up.running().is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", up.running());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `cargo xtask controlplane up`, and the directory that everything it starts runs in.
struct Up {
    program: Child,
    directory: PathBuf,
}

impl Up {
    fn start() -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["controlplane", "up"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut kubeconfig = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut kubeconfig).unwrap();
        let directory = Path::new(kubeconfig.trim()).parent().unwrap().to_owned();
        assert!(directory.is_absolute(), "{kubeconfig:?}");
        Self { program, directory }
    }

    fn signal(&self, signal: Signal) {
        send(self.program.id(), signal).unwrap();
    }

    fn running(&self) -> Vec<u32> {
        processes_in(&self.directory)
    }
}

impl Drop for Up {
    /// Also when the test has just found out that the program does not clean up.
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        for id in self.running() {
            let _ = send(id, Signal::KILL);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn send(id: u32, signal: Signal) -> rustix::io::Result<()> {
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal)
}

/// Processes whose working directory is `directory`.
fn processes_in(directory: &Path) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd == directory))
        .collect()
}

async fn create<K>(api: &Api<K>, object: serde_json::Value) -> K
where
    K: Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

async fn who_am_i(client: &Client) -> serde_json::Value {
    let review: Api<SelfSubjectReview> = Api::all(client.clone());
    let answer = review.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    serde_json::to_value(answer.status.unwrap().user_info.unwrap()).unwrap()
}
