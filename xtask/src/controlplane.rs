//! A real Kubernetes control plane on loopback: etcd, kube-apiserver, and kube-controller-manager and
//! kube-scheduler if asked for. No kubelet; Nodes are objects that somebody else keeps.

mod audit;
mod binaries;
mod kubeconfig;
mod kubectl;
mod pki;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use monok8s_sdk::api::crds_yaml;
use tokio::time::Instant;

pub use audit::{AuditLog, AuditMark, AuditedWrite};
pub use binaries::{Binaries, Tool, kubelet, pinned_version, scheduler};
pub use kubectl::{Kubectl, Output};

use crate::process::Child;
use crate::scratch::Scratch;
use kubeconfig::{Cluster, Credential};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const PORT_ATTEMPTS: u32 = 5;
/// Longer than any demo or test.
const TOKEN_SECONDS: i64 = 24 * 3600;
/// Unix sockets in the control plane's private directory. etcd insists on `host:port` and takes both
/// parts together as the name of the socket, below its working directory.
const ETCD: &str = "unix://etcd:0";
const ETCD_PEER: &str = "unix://peer:0";

/// What runs besides etcd and the API server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ControllerManager {
    /// Nothing: no garbage collection, no default `ServiceAccounts`, no disruption budgets.
    #[default]
    Absent,
    /// kube-controller-manager with its default controllers.
    Running,
}

/// How to start a control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether built-in controllers run.
    pub controller_manager: ControllerManager,
}

/// A running control plane. Dropping it ends every process and removes every file.
pub struct ControlPlane {
    // Dropped in this order: clients of a server before the server, files last.
    scheduler: Option<Child>,
    controllers: Option<Child>,
    apiserver: Option<Child>,
    _etcd: Child,
    client: Client,
    layout: Layout,
    authority: pki::Authority,
    _scratch: Scratch,
}

/// Where everything of one control plane is.
struct Layout {
    binaries: Binaries,
    directory: PathBuf,
    pki: pki::Files,
    cluster: Cluster,
    port: u16,
}

impl ControlPlane {
    /// Finds or builds the programs, starts them and waits until the API server is ready.
    ///
    /// # Errors
    /// The programs cannot be had (see [`Binaries::find`]), or one of them ended or did not become
    /// ready within a minute; the message ends with the last lines of its log.
    pub async fn start(options: Options) -> Result<Self> {
        install_tls_provider();
        let binaries = Binaries::find().await?;
        let scratch = Scratch::new("controlplane")?;
        let directory = scratch.path().to_owned();
        let authority = pki::Authority::new()?;
        let pki = pki::Files::write(&authority, &directory)?;
        std::fs::write(directory.join("audit-policy.yaml"), audit::POLICY)?;
        let cluster = Cluster { server: String::new(), authority: authority.certificate() };
        let mut layout = Layout { binaries, directory, pki, cluster, port: 0 };
        let etcd = layout.start_etcd().await?;
        let admin = Credential::Certificate(authority.client("admin", Some("system:masters"))?);
        let apiserver = layout.start_apiserver_on_a_free_port(&admin).await?;
        let client = kubeconfig::client(&layout.admin_kubeconfig()).await?;
        let mut this = Self {
            scheduler: None,
            controllers: None,
            apiserver: Some(apiserver),
            _etcd: etcd,
            client,
            layout,
            authority,
            _scratch: scratch,
        };
        this.wait_for_namespaces().await?;
        if options.controller_manager == ControllerManager::Running {
            this.start_controllers()?;
        }
        Ok(this)
    }

    /// A client for the administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client for the kubeconfig at `path`.
    pub async fn client_for(&self, path: &Path) -> Result<Client> {
        kubeconfig::client(path).await
    }

    /// Kubeconfig of the administrator.
    #[must_use]
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.layout.admin_kubeconfig()
    }

    /// `https://127.0.0.1:<port>`; the same after a restart.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.layout.cluster.server
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        let directory = &self.layout.directory;
        Kubectl::new(
            self.layout.binaries.path(Tool::Kubectl),
            &self.kubeconfig_path(),
            &directory.join("kubectl-cache"),
        )
    }

    /// Applies the CRDs, and waits until they are served.
    pub async fn install_crds(&self) -> Result<()> {
        let kubectl = self.kubectl();
        let crds: Vec<_> = crds_yaml().into_iter().map(|(_, crd)| crd).collect();
        kubectl.succeed_with_stdin(&["apply", "-f", "-"], &crds.join("---\n")).await?;
        kubectl.wait_for_crds().await
    }

    /// The record of every write.
    #[must_use]
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(&self.layout.audit_log())
    }

    /// Kubeconfig of a user known by a client certificate, such as `system:node:node-1` in
    /// `system:nodes`.
    pub fn user_kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let credential = Credential::Certificate(self.authority.client(user, group)?);
        self.write_kubeconfig(user, &credential)
    }

    /// Kubeconfig of the kubelet on `node`, for a machine that knows the loopback interface of this one
    /// as `host`.
    pub fn kubelet_kubeconfig(&self, node: &str, host: &str) -> Result<PathBuf> {
        let user = format!("system:node:{node}");
        let credential = Credential::Certificate(self.authority.client(&user, Some("system:nodes"))?);
        let server = format!("https://{host}:{}", self.layout.port);
        let cluster = Cluster { server, ..self.layout.cluster.clone() };
        let path = self.layout.directory.join(format!("kubelet-{node}.kubeconfig"));
        kubeconfig::write(&path, &cluster, &credential)?;
        Ok(path)
    }

    /// The API server's port on loopback; the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.layout.port
    }

    /// Builds kube-scheduler if need be, and starts it: pods get a node, those of a `DaemonSet` too.
    pub async fn start_scheduler(&mut self) -> Result<()> {
        let program = scheduler().await?;
        let kubeconfig = self.user_kubeconfig("system:kube-scheduler", None)?;
        let mut command = Command::new(program);
        command
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(["--leader-elect=false", "--secure-port=0"])
            .current_dir(&self.layout.directory);
        let log = self.layout.directory.join("kube-scheduler.log");
        self.scheduler = Some(Child::spawn("kube-scheduler", command, &log)?);
        Ok(())
    }

    /// Kubeconfig of an existing `ServiceAccount`, with a token from the `TokenRequest` API. Bound to a
    /// node, the token carries the node's name, as that of a pod on it does, and ends with the node.
    pub async fn service_account_kubeconfig(
        &self,
        namespace: &str,
        name: &str,
        node: Option<&str>,
    ) -> Result<PathBuf> {
        let bound_object_ref = match node {
            Some(node) => Some(self.node_reference(node).await?),
            None => None,
        };
        let spec =
            TokenRequestSpec { audiences: vec![], bound_object_ref, expiration_seconds: Some(TOKEN_SECONDS) };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("cannot get a token for ServiceAccount {namespace}/{name}"))?;
        let token = answer.status.context("a TokenRequest was answered without a token")?.token;
        let file = format!("{namespace}-{name}-{}", node.unwrap_or("anywhere"));
        self.write_kubeconfig(&file, &Credential::Token(token))
    }

    /// Ends the API server as a crash would; etcd and all objects stay.
    pub fn kill_apiserver(&mut self) -> Result<()> {
        match self.apiserver.take() {
            Some(apiserver) => apiserver.kill().map(drop),
            None => bail!("the API server is not running"),
        }
    }

    /// Starts the API server again after [`Self::kill_apiserver`], at the same address, and waits
    /// until it is ready.
    pub async fn start_apiserver(&mut self) -> Result<()> {
        if self.apiserver.is_some() {
            bail!("the API server is already running");
        }
        let apiserver = self.layout.start_apiserver()?;
        self.layout.wait_ready(self.apiserver.insert(apiserver)).await
    }

    async fn node_reference(&self, node: &str) -> Result<BoundObjectReference> {
        let found = Api::<Node>::all(self.client())
            .get(node)
            .await
            .with_context(|| format!("cannot read Node {node}"))?;
        Ok(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: found.metadata.uid,
        })
    }

    fn write_kubeconfig(&self, user: &str, credential: &Credential) -> Result<PathBuf> {
        let path = self.layout.directory.join(format!("{}.kubeconfig", user.replace([':', '/'], "-")));
        kubeconfig::write(&path, &self.layout.cluster, credential)?;
        Ok(path)
    }

    fn start_controllers(&mut self) -> Result<()> {
        let kubeconfig = self.user_kubeconfig("system:kube-controller-manager", None)?;
        self.controllers = Some(self.layout.start_controllers(&kubeconfig)?);
        Ok(())
    }

    /// The API server makes these a moment after it is ready, and everyone expects them.
    async fn wait_for_namespaces(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        let deadline = Instant::now() + START_TIMEOUT;
        for name in ["default", "kube-system", "kube-node-lease"] {
            while namespaces.get_opt(name).await?.is_none() {
                if Instant::now() >= deadline {
                    bail!(
                        "the API server did not create namespace {name} within {} s",
                        START_TIMEOUT.as_secs()
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }
}

impl Layout {
    fn admin_kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }

    fn spawn(&self, tool: Tool, args: &[String]) -> Result<Child> {
        let mut command = Command::new(self.binaries.path(tool));
        command.args(args).current_dir(&self.directory);
        Child::spawn(tool.name(), command, &self.directory.join(format!("{}.log", tool.name())))
    }

    /// Returns when etcd listens: an API server that finds nobody there backs off for a second.
    async fn start_etcd(&self) -> Result<Child> {
        let args = [
            "--name=controlplane".to_owned(),
            "--data-dir=etcd".to_owned(),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEER}"),
            format!("--initial-advertise-peer-urls={ETCD_PEER}"),
            format!("--initial-cluster=controlplane={ETCD_PEER}"),
            // Nothing here outlives the process, so nothing is worth a disk flush.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let mut etcd = self.spawn(Tool::Etcd, &args)?;
        let socket = self.directory.join(ETCD.trim_start_matches("unix://"));
        let deadline = Instant::now() + START_TIMEOUT;
        while !socket.exists() {
            etcd.expect_running()?;
            if Instant::now() >= deadline {
                bail!("etcd did not listen within {} s; {}", START_TIMEOUT.as_secs(), etcd.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(etcd)
    }

    /// Another program may take the port between our choice and the server's bind: choose again.
    async fn start_apiserver_on_a_free_port(&mut self, admin: &Credential) -> Result<Child> {
        let mut attempt = 1;
        loop {
            self.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            self.cluster.server = format!("https://127.0.0.1:{}", self.port);
            kubeconfig::write(&self.admin_kubeconfig(), &self.cluster, admin)?;
            let mut apiserver = self.start_apiserver()?;
            match self.wait_ready(&mut apiserver).await {
                Ok(()) => return Ok(apiserver),
                Err(_)
                    if attempt < PORT_ATTEMPTS && apiserver.log_tail().contains("address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn start_apiserver(&self) -> Result<Child> {
        let path = |path: &Path| path.display().to_string();
        let args = [
            format!("--etcd-servers={ETCD}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            format!("--tls-cert-file={}", path(&self.pki.server_certificate)),
            format!("--tls-private-key-file={}", path(&self.pki.server_key)),
            format!("--client-ca-file={}", path(&self.pki.authority)),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            // The agent's pod is privileged.
            "--allow-privileged=true".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-signing-key-file={}", path(&self.pki.tokens_key)),
            format!("--service-account-key-file={}", path(&self.pki.tokens_public_key)),
            format!("--audit-policy-file={}", path(&self.directory.join("audit-policy.yaml"))),
            format!("--audit-log-path={}", path(&self.audit_log())),
            // MiB before it is rotated, which would lose marks: never.
            "--audit-log-maxsize=1048576".to_owned(),
            // No `kubernetes` Service endpoints to keep up, so no periodic writes of its own.
            "--endpoint-reconciler-type=none".to_owned(),
        ];
        self.spawn(Tool::KubeApiserver, &args)
    }

    fn start_controllers(&self, kubeconfig: &Path) -> Result<Child> {
        let kubeconfig = kubeconfig.display();
        let args = [
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            format!("--service-account-private-key-file={}", self.pki.tokens_key.display()),
            format!("--root-ca-file={}", self.pki.authority.display()),
        ];
        self.spawn(Tool::KubeControllerManager, &args)
    }

    async fn wait_ready(&self, apiserver: &mut Child) -> Result<()> {
        let mut config = kubeconfig::config(&self.admin_kubeconfig()).await?;
        // Our own polling is faster than the client's backoff.
        config.default_retry = false;
        let probe = Client::try_from(config)?;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            apiserver.expect_running()?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let Err(last) = probe.request_text(request).await else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let seconds = START_TIMEOUT.as_secs();
                bail!("the API server was not ready within {seconds} s ({last}); {}", apiserver.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Chooses rustls' provider for this process; the SDK chooses none. Safe to call more than once.
pub fn install_tls_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
